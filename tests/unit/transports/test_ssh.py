"""The SSH transport against a real OpenSSH server on the loopback interface."""

from __future__ import annotations

import getpass
import hashlib
import logging
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError
from edgekit.transports import ssh as ssh_module
from edgekit.transports.base import connect
from edgekit.transports.ssh import SshTransport
from tests.devices.proxy import CuttingProxy
from tests.devices.sshd import make_key
from tests.unit.transports.password_server import PasswordServer

CANARY = "canary-5up3r-s3cret"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Neither the keys nor the configuration of whoever runs the tests take part."""
    home = tmp_path / "operator"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGEKIT_CONFIG_DIR", str(home / "edgekit"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def pi(sshd):
    with connect(sshd.device()) as transport:
        yield transport


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part")]


def eventually(condition) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


# Commands


def test_a_command_starts_in_the_home_folder_and_tells_its_outputs_apart(pi, sshd):
    result = pi.run(["sh", "-c", "pwd; echo $HOME; echo oops >&2; exit 7"], timeout=20)
    assert result.returncode == 7
    assert result.stdout.decode().split() == [str(sshd.home), str(sshd.home)]
    assert result.stderr == b"oops\n"
    assert result.seconds > 0


@pytest.mark.parametrize(
    "word",
    [
        "two words",
        "it's",
        'say "x"',
        "line\nbreak",
        "$(touch owned)",
        "`touch owned`",
        "größer→",
        "*",
        "",
        "-n",
        "a\\b",
    ],
)
def test_an_argument_arrives_as_it_is(pi, sshd, word):
    result = pi.run(["printf", "%s|", "first", word], timeout=20)
    assert result.stdout.decode() == f"first|{word}|"
    assert not (sshd.home / "owned").exists()


def test_bytes_pass_unchanged_in_both_directions_at_once(pi):
    data = bytes(range(256)) * 16384
    result = pi.run(["sh", "-c", "tee /dev/stderr"], timeout=60, stdin=data)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()
    assert len(result.stderr) == len(data)


def test_a_command_that_does_not_read_its_input_is_no_failure(pi):
    result = pi.run(["true"], timeout=30, stdin=bytes(8 << 20))
    assert result.returncode == 0


def test_lines_of_standard_error_come_while_the_command_runs(pi, sshd):
    seen = []

    def on_stderr(line):
        seen.append(line)
        (sshd.home / "go").touch()

    script = "echo first >&2; while [ ! -e go ]; do sleep 0.05; done; printf 'second\\nthird' >&2"
    pi.run(["sh", "-c", script], timeout=30, on_stderr=on_stderr)
    assert seen == ["first", "second", "third"]


def test_a_command_ended_by_a_signal_says_which(pi):
    assert pi.run(["sh", "-c", "kill -KILL $$"], timeout=20).returncode == 128 + signal.SIGKILL


def test_a_command_that_takes_too_long_is_given_up_and_the_connection_stays(pi):
    with pytest.raises(TransientDeviceError, match=r"'sleep' on the device 'pi' .* did not end within 0.5 s"):
        pi.run(["sleep", "30"], timeout=0.5)
    assert pi.run(["echo", "on"], timeout=20).stdout == b"on\n"


def test_what_a_command_leaves_running_does_not_hold_us(pi):
    result = pi.run(["sh", "-c", "sleep 60 & echo done"], timeout=50)
    assert result.stdout == b"done\n"
    assert result.seconds < 40


def test_more_output_than_allowed_is_refused(pi, monkeypatch):
    monkeypatch.setattr(ssh_module, "MAX_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(StableDeviceError, match=r"printed more than 1.05 MB"):
        pi.run(["cat", "/dev/zero"], timeout=30)


def test_a_command_without_a_program_or_with_a_nul_is_refused(pi):
    for argv in ([], ["printf", "a\0b"]):
        with pytest.raises(ConfigError, match="no NUL"):
            pi.run(argv, timeout=5)


# Files


def test_a_file_goes_there_and_back_through_folders_that_do_not_exist_yet(pi, sshd, tmp_path):
    data = os.urandom(1_000_003)
    local, moved = tmp_path / "model.bin", []
    local.write_bytes(data)
    pi.push(local, "a/b/ünï code/model.bin", moved.append)
    assert (sshd.home / "a/b/ünï code/model.bin").read_bytes() == data
    assert sum(moved) == len(data)
    pi.pull("a/b/ünï code/model.bin", tmp_path / "back" / "model.bin", max_bytes=len(data))
    assert (tmp_path / "back" / "model.bin").read_bytes() == data
    assert leftovers(sshd.home) == leftovers(tmp_path / "back") == []


@pytest.mark.parametrize("size", [0, 1, 32767, 32768, 32769, 64 * 32768 + 1])
def test_any_size_arrives_whole(pi, tmp_path, size):
    local = tmp_path / "x"
    local.write_bytes(os.urandom(size))
    pi.push(local, "x")
    pi.pull("x", tmp_path / "y", max_bytes=size)
    assert (tmp_path / "y").read_bytes() == local.read_bytes()


def test_a_program_stays_a_program(pi, sshd, tmp_path):
    local = tmp_path / "hello"
    local.write_text("#!/bin/sh\necho hello\n")
    pi.push(local, "plain")
    local.chmod(0o755)
    pi.push(local, "program")
    assert pi.run(["./program"], timeout=20).stdout == b"hello\n"
    assert not os.access(sshd.home / "plain", os.X_OK)


def test_a_push_replaces_what_was_there(pi, sshd, tmp_path):
    (sshd.home / "x").write_bytes(b"old and longer")
    local = tmp_path / "x"
    local.write_bytes(b"new")
    pi.push(local, str(sshd.home / "x"))
    assert (sshd.home / "x").read_bytes() == b"new"


def test_a_file_that_tells_no_size_is_read_to_its_end(pi, tmp_path):
    pi.pull("/proc/version", tmp_path / "version", max_bytes=4096)
    assert (tmp_path / "version").read_text().startswith("Linux")
    with pytest.raises(StableDeviceError, match="at most 10 B"):
        pi.pull("/proc/version", tmp_path / "other", max_bytes=10)
    assert not (tmp_path / "other").exists()


def test_a_file_that_is_too_large_missing_or_no_file_is_not_pulled(pi, sshd, tmp_path):
    (sshd.home / "big").write_bytes(bytes(101))
    os.mkfifo(sshd.home / "pipe")
    with pytest.raises(StableDeviceError, match="'big' on the device 'pi' .* has 101 B; at most 100 B"):
        pi.pull("big", tmp_path / "x", max_bytes=100)
    with pytest.raises(StableDeviceError, match="There is no 'none' on"):
        pi.pull("none", tmp_path / "x", max_bytes=100)
    for path in (".", "pipe"):
        with pytest.raises(StableDeviceError, match="is not a file"):
            pi.pull(path, tmp_path / "x", max_bytes=100)
    assert not (tmp_path / "x").exists()
    assert leftovers(tmp_path) == []


def test_a_path_that_cannot_be_written_is_named(pi, sshd, tmp_path):
    local = tmp_path / "x"
    local.write_bytes(b"x")
    (sshd.home / "folder").mkdir()
    with pytest.raises(StableDeviceError, match="'folder' on the device 'pi' .* is a folder"):
        pi.push(local, "folder")
    with pytest.raises(StableDeviceError, match="/proc/no/x"):
        pi.push(local, "/proc/no/x")
    with pytest.raises(ConfigError, match="cannot be read"):
        pi.push(tmp_path / "none", "x")
    assert leftovers(sshd.home) == []


def test_what_the_login_may_not_write_is_named(make_sshd, tmp_path):
    sshd = make_sshd()
    # A read-only SFTP server forbids it to root, too.
    sshd.wrap('SSH_ORIGINAL_COMMAND="$SSH_ORIGINAL_COMMAND -R"')
    local = tmp_path / "x"
    local.write_bytes(b"x")
    with connect(sshd.device()) as transport:
        with pytest.raises(StableDeviceError, match="may not touch 'x': permission denied"):
            transport.push(local, "x")


def test_a_full_disk_is_called_that_and_nothing_is_left(make_sshd, tmp_path):
    sshd = make_sshd()
    (sshd.home / "small").mkdir()
    # A file system of 1 MiB that only this session sees: mounted in a name space, which needs no root.
    name_space = "--mount" if os.geteuid() == 0 else "--mount --map-root-user"
    sshd.wrap(
        f'[ -n "$SMALL" ] || SMALL=1 exec unshare {name_space} "$0"\nmount -t tmpfs -o size=1m tmpfs small || exit 1'
    )
    local = tmp_path / "x"
    local.write_bytes(bytes(3 << 20))
    with connect(sshd.device()) as transport:
        assert transport.run(["true"], timeout=20).returncode == 0, "no name space can be made here"
        with pytest.raises(StableDeviceError, match=r"Disk full on the device 'pi' .*: '.*x' needs 3.15 MB"):
            transport.push(local, "small/deep/x")
        local.write_bytes(b"fits")
        transport.push(local, "small/deep/x")
        assert transport._sftp.listdir("small/deep") == ["x"]


def test_a_write_that_is_refused_with_room_on_the_disk_is_not_called_full(make_sshd, tmp_path):
    sshd = make_sshd()
    sshd.wrap("trap '' XFSZ; ulimit -f 512")
    local = tmp_path / "x"
    local.write_bytes(bytes(3 << 20))
    with connect(sshd.device()) as transport:
        with pytest.raises(StableDeviceError, match=r"The device 'pi' .* refuses 'x': Failure"):
            transport.push(local, "x")
    assert leftovers(sshd.home) == []


def test_the_rate_of_a_large_push_and_pull(pi, tmp_path, capsys):
    local = tmp_path / "big"
    local.write_bytes(os.urandom(1 << 20) * 50)
    started = time.monotonic()
    pi.push(local, "big")
    pushed = time.monotonic()
    pi.pull("big", tmp_path / "back", max_bytes=50 << 20)
    pulled = time.monotonic()
    assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(local.read_bytes()).digest()
    with capsys.disabled():
        print(f" push {50 / (pushed - started):.0f} MiB/s, pull {50 / (pulled - pushed):.0f} MiB/s", end="")


# Connections that break


def test_a_connection_killed_in_a_command_is_transient(pi, sshd):
    def kill():
        assert eventually((sshd.home / "started").exists)
        sshd.kill_connections()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TransientDeviceError, match=r"connection to the device 'pi' .* lost while running 'sh'"):
        pi.run(["sh", "-c", "touch started; sleep 60"], timeout=50)
    killer.join()
    with pytest.raises(TransientDeviceError, match="lost"):
        pi.run(["true"], timeout=20)
    pi.open()
    assert pi.run(["echo", "again"], timeout=20).stdout == b"again\n"


def test_a_connection_killed_in_a_push_is_transient_and_the_file_keeps_its_old_bytes(pi, sshd, tmp_path):
    (sshd.home / "x").write_bytes(b"old")
    local = tmp_path / "x"
    local.write_bytes(bytes(32 << 20))
    sent = 0

    def on_bytes(count):
        nonlocal sent
        sent += count
        if sent >= 4 << 20 and sent - count < 4 << 20:
            sshd.kill_connections()

    with pytest.raises(TransientDeviceError, match="lost while pushing 'x'"):
        pi.push(local, "x", on_bytes)
    assert (sshd.home / "x").read_bytes() == b"old"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_pull_that_is_cut_leaves_nothing_here(sshd, tmp_path, share):
    (sshd.home / "x").write_bytes(bytes(4 << 20))
    with CuttingProxy(sshd.port, cut_after=round(share * (4 << 20))) as proxy:
        with connect(sshd.device(port=proxy.port)) as transport:
            with pytest.raises(TransientDeviceError, match="lost while pulling 'x'"):
                transport.pull("x", tmp_path / "here" / "x", max_bytes=8 << 20)
            assert list((tmp_path / "here").iterdir()) == []
            transport.open()
            transport.pull("x", tmp_path / "here" / "x", max_bytes=8 << 20)
    assert (tmp_path / "here" / "x").stat().st_size == 4 << 20


@pytest.mark.parametrize("cut_after", [10, 500, 2000, 2900])
def test_a_connection_cut_before_it_is_made_is_transient(sshd, cut_after):
    with CuttingProxy(sshd.port, cut_after=cut_after, stays_cut=True) as proxy:
        with pytest.raises(TransientDeviceError, match="the device 'pi'"):
            connect(sshd.device(port=proxy.port)).__enter__()
        assert proxy.was_cut


def test_a_port_on_which_nobody_listens_is_transient(sshd):
    sshd.stop()
    with pytest.raises(TransientDeviceError, match="refused the connection: no SSH server listens on port") as caught:
        connect(sshd.device()).__enter__()
    assert "edgekit devices probe pi" in caught.value.hint


def test_a_server_that_never_says_hello_is_transient(sshd):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        device = sshd.device(port=silent.getsockname()[1], connect_timeout_seconds=0.3)
        with pytest.raises(TransientDeviceError, match="The device 'pi' .* did not answer in time while connecting"):
            connect(device).__enter__()


def test_a_name_that_does_not_exist_is_stable_or_transient_in_words(sshd):
    device = replace(sshd.device(), address="pi@no-such-host.invalid")
    with pytest.raises((StableDeviceError, TransientDeviceError), match=r"no-such-host\.invalid"):
        connect(device).__enter__()


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
    logging.getLogger("edgekit.paramiko").propagate = True
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PI_PASSWORD", CANARY + "-wrong")
    transport = connect(password_device(password_server, tmp_path))
    with pytest.raises(StableDeviceError, match="Tried: the password in PI_PASSWORD") as caught:
        transport.__enter__()
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


def test_nothing_is_printed_when_a_connection_breaks(sshd, capfd):
    with CuttingProxy(sshd.port, cut_after=2000, stays_cut=True) as proxy:
        with pytest.raises(TransientDeviceError):
            connect(sshd.device(port=proxy.port)).__enter__()
    assert capfd.readouterr() == ("", "")


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


def a_route(address: str, config: Path, text: str, **options: object):
    from edgekit.transports._ssh_route import SshOptions, route

    config.write_text(text)
    return route(address, SshOptions(config=str(config), **options), "pi")


def test_the_first_of_proxy_command_and_proxy_jump_wins(tmp_path):
    config = tmp_path / "config"
    assert len(a_route("x", config, "Host x\n  ProxyCommand none\nHost *\n  ProxyJump gate\n")) == 1
    assert len(a_route("x", config, "Host x\n  ProxyJump none\nHost *\n  ProxyCommand nc %h %p\n")) == 1
    assert len(a_route("x", config, "Host x\n  ProxyJump gate\n", proxy_jump="none")) == 1
    assert [hop.host for hop in a_route("x", config, "Host x\n  ProxyJump u@a:1,b\nHost a\n  ProxyJump c\n")] == [
        "c",
        "a",
        "b",
        "x",
    ]
    with pytest.raises(ConfigError, match="'x' has a ProxyCommand"):
        a_route("x", config, "Host x\n  ProxyCommand nc %h %p\n")
    with pytest.raises(ConfigError, match="lead in a circle: a → b → a"):
        a_route("x", config, "Host x\n  ProxyJump a\nHost a\n  ProxyJump b\nHost b\n  ProxyJump a\n")


def test_the_address_wins_over_the_configuration(tmp_path):
    text = "Host x\n  HostName 10.0.0.9\n  Port 2200\n  User deploy\n  HostKeyAlias board\n"
    (hop,) = a_route("me@x:22", tmp_path / "config", text)
    assert (hop.user, hop.host, hop.port, hop.key_name) == ("me", "10.0.0.9", 22, "board")
    (hop,) = a_route("x", tmp_path / "config", text)
    assert hop.address == "deploy@10.0.0.9:2200"


@pytest.mark.parametrize(
    ("address", "user", "host", "port"),
    [
        ("pi@raspberry", "pi", "raspberry", 22),
        ("a@b@host.local:2222", "a@b", "host.local", 2222),
        ("u@[fe80::1%eth0]:2222", "u", "fe80::1%eth0", 2222),
        ("u@[::1]", "u", "::1", 22),
        ("ssh://u@h:7/", "u", "h", 7),
    ],
)
def test_addresses_are_taken_apart(tmp_path, address, user, host, port):
    (hop,) = a_route(address, tmp_path / "config", "")
    assert (hop.user, hop.host, hop.port) == (user, host, port)


@pytest.mark.parametrize("address", ["", "u@", "@host", "host:", "host:0", "host:70000", "u@::1", "a b", "h/x", "[::1"])
def test_an_address_of_another_form_is_refused(tmp_path, address):
    with pytest.raises(ConfigError, match=r"is not of the form \[user@\]host\[:port\]"):
        a_route(address, tmp_path / "config", "")


def test_an_ipv6_address_without_brackets_says_where_they_go(tmp_path):
    with pytest.raises(ConfigError, match="stands in brackets"):
        a_route("pi@fe80::1", tmp_path / "config", "")


def test_a_configuration_that_is_named_must_exist_and_make_sense(tmp_path):
    from edgekit.transports._ssh_route import SshOptions, route

    with pytest.raises(ConfigError, match="which does not exist"):
        route("x", SshOptions(config=str(tmp_path / "none")), "pi")
    with pytest.raises(ConfigError, match="the port 'many' is not a number"):
        a_route("x", tmp_path / "config", "Port many\n")


def test_an_unknown_option_is_named():
    with pytest.raises(ConfigError, match="unknown key 'pasword'. Did you mean 'password'"):
        connect(Device("pi", "rpi4", "ssh", "x", {"pasword": {"env": "X"}}))


def test_a_server_without_sftp_is_told_how_to_get_it(make_sshd, tmp_path):
    sshd = make_sshd()
    sshd.wrap('case "$SSH_ORIGINAL_COMMAND" in *sftp*) exit 1;; esac')
    local = tmp_path / "x"
    local.write_bytes(b"x")
    with connect(sshd.device()) as transport:
        with pytest.raises(StableDeviceError, match="offers no SFTP"):
            transport.push(local, "x")
        assert transport.run(["echo", "on"], timeout=20).stdout == b"on\n"


def test_without_paramiko_the_pip_line_is_said(monkeypatch):
    assert SshTransport.missing() is None
    monkeypatch.setattr(ssh_module, "is_installed", lambda module: False)
    assert SshTransport.missing() == "pip install 'edgekit[ssh]'"


def test_a_transport_that_is_not_open_says_so_and_may_be_closed_twice(sshd):
    transport = connect(sshd.device())
    with pytest.raises(TransientDeviceError, match="no open connection"):
        transport.run(["true"], timeout=5)
    transport.close()
    with transport:
        pass
    transport.close()
