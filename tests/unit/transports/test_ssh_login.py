"""Host keys, logins and jump hosts of the SSH transport, against real servers on the loopback interface."""

from __future__ import annotations

import getpass
import logging
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError
from edgekit.transports.base import connect
from tests.devices.sshd import eventually, make_key
from tests.unit.transports.password_server import PasswordServer

CANARY = "canary-5up3r-s3cret"

pytestmark = pytest.mark.usefixtures("own_home")


# Host keys


def test_an_unknown_host_key_is_refused_and_the_hint_says_how_to_trust_it(sshd):
    device = sshd.device(trusted=False)
    with pytest.raises(StableDeviceError, match="is not known") as caught:
        connect(device).__enter__()
    assert sshd.fingerprint() in caught.value.message
    assert caught.value.hint == "edgekit devices trust pi"
    assert "Accepted" not in sshd.log


def test_a_key_is_shown_then_recorded_then_accepted(sshd, own_home):
    device = sshd.device(trusted=False)
    options = {key: value for key, value in device.options.items() if key != "known_hosts"}
    transport = connect(replace(device, options=options))
    assert transport.trust() == f"{sshd.fingerprint()} (ED25519)"
    own = own_home / "edgekit" / "known_hosts"
    assert not own.exists()
    assert str(own) in transport.record_trust()
    assert own.read_text() == sshd.known_hosts()
    assert not (own_home / ".ssh" / "known_hosts").exists()
    with transport:
        assert transport.run(["echo", "hello"], timeout=20).stdout == b"hello\n"
    assert "authenticating user" not in sshd.log.split("Accepted")[0]


def test_nothing_can_be_recorded_that_was_not_shown(sshd):
    with pytest.raises(ConfigError, match="only a key that was shown"):
        connect(sshd.device(trusted=False)).record_trust()


def test_a_changed_host_key_is_a_danger_and_both_fingerprints_are_shown(sshd):
    device = sshd.device()
    old = sshd.fingerprint()
    sshd.rotate_host_key()
    new = sshd.fingerprint()
    with pytest.raises(StableDeviceError, match="DANGER: the host key of the device 'pi' .* has CHANGED") as caught:
        connect(device).__enter__()
    assert old != new
    assert f"on record: {old}" in caught.value.message
    assert f"shown now: {new}" in caught.value.message
    assert f"{device.options['known_hosts']}:1" in caught.value.message
    assert "edgekit devices trust pi" in caught.value.hint
    transport = connect(device)
    assert transport.trust() == (
        f"{new} (ED25519)\non record until now: {old} (ED25519) in {device.options['known_hosts']}:1"
    )
    transport.record_trust()
    assert Path(str(device.options["known_hosts"])).read_text() == sshd.known_hosts()
    with transport:
        assert transport.run(["true"], timeout=20).returncode == 0


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_the_kind_of_key_that_is_on_record_is_the_one_asked_for(make_sshd, kind):
    sshd = make_sshd(host_key_kinds=("ed25519", "ecdsa", "rsa"))
    device = sshd.device()
    Path(str(device.options["known_hosts"])).write_text(sshd.known_hosts(kind=kind))
    with connect(device) as transport:
        assert transport.run(["true"], timeout=20).returncode == 0


def test_hashed_names_patterns_and_several_files_are_understood(sshd, own_home):
    device = sshd.device()
    known = Path(str(device.options["known_hosts"]))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()
    with connect(device):
        pass
    key = sshd.known_hosts().split(" ", 1)[1]
    known.write_text(f"# a comment\nnonsense\n@cert-authority * {key}other,[127.0.*]:{sshd.port} {key}")
    with connect(device):
        pass
    known.write_text(f"*,![127.0.0.1]:{sshd.port} {key}@cert-authority * {key}")
    with pytest.raises(StableDeviceError, match="is not known"):
        connect(device).__enter__()


def test_a_revoked_key_is_refused_even_where_it_is_also_trusted(sshd):
    device = sshd.device()
    known = Path(str(device.options["known_hosts"]))
    known.write_text(known.read_text() + "@revoked * " + sshd.known_hosts().split(" ", 1)[1])
    with pytest.raises(StableDeviceError, match="DANGER: .* marks as revoked"):
        connect(device).__enter__()


# Logging in


def test_a_key_that_the_device_does_not_know_is_refused_in_words(sshd, tmp_path):
    stranger = make_key(tmp_path / "stranger")
    with pytest.raises(
        StableDeviceError, match=r"login on the device 'pi' .* was refused. Tried: the key .*stranger"
    ) as caught:
        connect(sshd.device(key=str(stranger.private))).__enter__()
    assert "It accepts: publickey" in caught.value.message
    assert f"ssh-copy-id -i {stranger.private} -p {sshd.port}" in caught.value.hint


def test_a_key_that_was_revoked_is_refused(sshd):
    with connect(sshd.device()):
        pass
    sshd.revoke_key()
    with pytest.raises(StableDeviceError, match="was refused"):
        connect(sshd.device()).__enter__()


def test_a_key_file_that_is_missing_or_no_key_is_named(sshd, tmp_path):
    with pytest.raises(StableDeviceError, match=r"The private key '.*/none' .* does not exist"):
        connect(sshd.device(key=str(tmp_path / "none"))).__enter__()
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StableDeviceError, match="is not a private key"):
        connect(sshd.device(key=str(tmp_path / "text"))).__enter__()


def test_with_nothing_to_offer_the_error_says_so(sshd):
    options = {key: value for key, value in sshd.device().options.items() if key != "key"}
    with pytest.raises(StableDeviceError, match="nothing to try: no key, no password. It accepts: publickey"):
        connect(replace(sshd.device(), options=options)).__enter__()


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_a_locked_key_is_opened_with_the_passphrase_from_the_environment(make_sshd, tmp_path, monkeypatch, kind):
    key = make_key(tmp_path / "locked", passphrase=CANARY, kind=kind)
    sshd = make_sshd(key=key)
    with pytest.raises(StableDeviceError, match="needs a passphrase"):
        connect(sshd.device()).__enter__()
    monkeypatch.setenv("PI_PASSPHRASE", CANARY)
    with connect(sshd.device(passphrase={"env": "PI_PASSPHRASE"})):
        pass
    monkeypatch.setenv("PI_PASSPHRASE", CANARY + "-wrong")
    with pytest.raises(StableDeviceError, match="The passphrase in PI_PASSPHRASE does not open") as caught:
        connect(sshd.device(passphrase={"env": "PI_PASSPHRASE"})).__enter__()
    assert CANARY not in str(caught.value)


def test_a_locked_key_is_used_through_the_agent_that_holds_it(make_sshd, tmp_path, monkeypatch):
    key = make_key(tmp_path / "locked", passphrase=CANARY)
    sshd = make_sshd(key=key)
    open_copy = tmp_path / "open"
    open_copy.write_bytes(key.private.read_bytes())
    open_copy.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", CANARY, "-N", "", "-f", str(open_copy)], check=True)
    socket_path = tmp_path / "agent.sock"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket_path))
        # 1: it answers, and holds nothing; 2: it does not answer.
        assert eventually(lambda: subprocess.run(["ssh-add", "-l"], check=False, capture_output=True).returncode == 1)
        subprocess.run(["ssh-add", "-q", str(open_copy)], check=True)
        with connect(sshd.device(agent=True)):
            pass
        plain = {name: value for name, value in sshd.device(agent=True).options.items() if name != "key"}
        with connect(replace(sshd.device(), options=plain)):
            pass
    finally:
        agent.terminate()
        agent.wait()


@pytest.fixture
def password_server():
    with PasswordServer(getpass.getuser(), CANARY) as server:
        yield server


def password_device(server: PasswordServer, tmp_path: Path) -> Device:
    known = tmp_path / "known_password"
    known.write_text(server.known_hosts())
    options = {"password": {"env": "PI_PASSWORD"}, "known_hosts": str(known), "agent": False}
    return Device("pw", "rpi4", "ssh", f"{getpass.getuser()}@127.0.0.1:{server.port}", options)


def test_a_password_from_the_environment_logs_in(password_server, tmp_path, monkeypatch):
    monkeypatch.setenv("PI_PASSWORD", CANARY)
    with connect(password_device(password_server, tmp_path)) as transport:
        assert transport.run(["hello"], timeout=20).stdout == b"hello"


def test_no_secret_is_in_an_error_or_a_log(password_server, tmp_path, monkeypatch, caplog, capfd):
    log = logging.getLogger("edgekit.paramiko")
    log.addHandler(caplog.handler)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "edgekit.paramiko")
    monkeypatch.setenv("PI_PASSWORD", CANARY + "-wrong")
    transport = connect(password_device(password_server, tmp_path))
    with pytest.raises(StableDeviceError, match="Tried: the password in PI_PASSWORD") as caught:
        transport.__enter__()
    log.removeHandler(caplog.handler)
    assert "userauth" in caplog.text.lower(), "the login was not logged, so the log shows nothing"
    texts = [caplog.text, str(transport.options), str(transport.device), *capfd.readouterr()]
    error = caught.value
    while error is not None:
        texts += [str(error), repr(error), repr(error.args)]
        error = error.__cause__ or error.__context__
    assert not [text for text in texts if CANARY in text]


def test_a_password_that_is_not_in_the_environment_is_asked_for_by_name(password_server, tmp_path, monkeypatch):
    monkeypatch.delenv("PI_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="PI_PASSWORD is not set"):
        connect(password_device(password_server, tmp_path)).__enter__()


# The way there


def test_a_jump_host_is_gone_through(make_sshd):
    jump, target = make_sshd(), make_sshd()
    device = target.device(proxy_jump=jump.address)
    known = Path(str(device.options["known_hosts"]))
    known.write_text(target.known_hosts() + jump.known_hosts())
    with connect(device) as transport:
        assert transport.run(["pwd"], timeout=20).stdout.decode().strip() == str(target.home)
    assert "Accepted publickey" in jump.log


def test_the_host_key_of_a_jump_host_is_checked_and_comes_first_in_trust(make_sshd):
    jump, target = make_sshd(), make_sshd()
    device = target.device(trusted=False, proxy_jump=jump.address)
    with pytest.raises(StableDeviceError, match=f"The host key of the jump host {jump.address} of the device 'pi'"):
        connect(device).__enter__()
    transport = connect(device)
    assert transport.trust() == f"{jump.fingerprint()} (ED25519) of the jump host {jump.address} of the device 'pi'"
    transport.record_trust()
    assert transport.trust() == f"{target.fingerprint()} (ED25519)"
    transport.record_trust()
    with transport:
        assert transport.run(["pwd"], timeout=20).stdout.decode().strip() == str(target.home)


def test_a_jump_host_that_forwards_nothing_is_named(make_sshd):
    jump, target = make_sshd(settings=("AllowTcpForwarding no",)), make_sshd()
    device = target.device(proxy_jump=jump.address)
    Path(str(device.options["known_hosts"])).write_text(target.known_hosts() + jump.known_hosts())
    with pytest.raises(StableDeviceError, match="refused to open a channel to the device 'pi'"):
        connect(device).__enter__()
    target.stop()
    open_jump = make_sshd()
    device = target.device(proxy_jump=open_jump.address)
    Path(str(device.options["known_hosts"])).write_text(target.known_hosts() + open_jump.known_hosts())
    with pytest.raises(TransientDeviceError, match="cannot be reached from the jump host"):
        connect(device).__enter__()


def test_the_ssh_configuration_says_where_and_how(make_sshd, own_home):
    jump, target = make_sshd(), make_sshd()
    (own_home / ".ssh" / "known_hosts").write_text(target.known_hosts() + jump.known_hosts())
    (own_home / ".ssh" / "config").write_text(
        f"""
Host gate
    HostName 127.0.0.1
    Port {jump.port}
Host board*
    HostName 127.0.0.1
    Port {target.port}
    ProxyJump gate
Host *
    User {target.user}
    IdentityFile {target.key.private}
    StrictHostKeyChecking no
"""
    )
    with connect(Device("pi", "rpi4", "ssh", "board7")) as transport:
        assert transport.run(["pwd"], timeout=20).stdout.decode().strip() == str(target.home)
    assert "Accepted publickey" in jump.log
    (own_home / ".ssh" / "known_hosts").write_text("")
    with pytest.raises(StableDeviceError, match="is not known"):
        connect(Device("pi", "rpi4", "ssh", "board7")).__enter__()
