"""The SSH transport against a real OpenSSH server on the loopback interface."""

from __future__ import annotations

import hashlib
import os
import signal
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
from tests.devices.sshd import eventually

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def pi(sshd):
    with connect(sshd.device()) as transport:
        yield transport


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part")]


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


def test_nothing_is_printed_when_a_connection_breaks(sshd, capfd):
    with CuttingProxy(sshd.port, cut_after=2000, stays_cut=True) as proxy:
        with pytest.raises(TransientDeviceError):
            connect(sshd.device(port=proxy.port)).__enter__()
    assert capfd.readouterr() == ("", "")


# What is missing


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
