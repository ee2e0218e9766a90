"""The ADB transport: the real `adb` program against a device's side of ADB on the loopback interface, with faults."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError
from edgekit.transports import adb as adb_module
from edgekit.transports.adb import AdbTransport
from edgekit.transports.base import connect


@pytest.fixture
def phone(adb_daemon):
    with connect(adb_daemon.device()) as transport:
        yield transport


def on_cable(daemon, serial, **options):
    return replace(daemon.device(options=options), address=serial)


# Finding a device


def test_a_device_whose_daemon_restarted_is_reached_again(adb_daemon):
    with connect(adb_daemon.device()) as transport:
        transport.run(["true"], timeout=20)
    adb_daemon.reboot()
    with connect(adb_daemon.device()) as transport:
        assert transport.run(["echo", "back"], timeout=20).stdout == b"back\n"


def test_nobody_at_the_address_is_said_in_our_words(adb_daemon):
    adb_daemon.stop()
    with pytest.raises(TransientDeviceError, match=r"'phone' at 127\.0\.0\.1:\d+ cannot be reached"):
        connect(adb_daemon.device()).open()


def test_a_device_that_has_not_allowed_this_computer_is_not_tried_again(adb_daemon):
    adb_daemon.faults.unauthorized = True
    with pytest.raises(StableDeviceError, match="has not allowed this computer to debug it") as caught:
        connect(adb_daemon.device(options={"connect_seconds": 5.0})).open()
    assert "accept" in caught.value.hint


def test_a_silent_device_is_given_up_in_the_time_that_was_said(adb_daemon):
    adb_daemon.faults.silent = True
    started = time.monotonic()
    with pytest.raises(TransientDeviceError, match=r"did not answer within 1\.5 s while connecting"):
        connect(adb_daemon.device(options={"connect_seconds": 1.5})).open()
    assert time.monotonic() - started < 8


def test_an_unknown_serial_number_lists_what_is_attached(adb_daemon, phone):
    with pytest.raises(StableDeviceError, match=f"serial number 'R5CT0000': attached: {adb_daemon.address}") as caught:
        connect(on_cable(adb_daemon, "R5CT0000")).open()
    assert "adb devices" in caught.value.hint


def test_no_address_takes_the_only_device_and_refuses_to_choose(adb_daemon, make_adb_daemon, phone):
    nameless = on_cable(adb_daemon, "", home=str(adb_daemon.home))
    with connect(nameless) as transport:
        assert transport.run(["pwd"], timeout=20).stdout.decode().strip() == str(adb_daemon.home)
    with connect(make_adb_daemon().device()), pytest.raises(ConfigError, match="Several devices are attached"):
        connect(nameless).open()


def test_nothing_attached_is_said(adb_daemon):
    with pytest.raises(StableDeviceError, match="no Android device on any cable: none is attached"):
        connect(on_cable(adb_daemon, "")).open()


def test_a_machine_without_adb_is_told_what_to_install(adb_daemon, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "apt install adb" in AdbTransport.missing()
    with pytest.raises(StableDeviceError, match="'adb' is not installed") as caught:
        connect(adb_daemon.device()).open()
    assert "apt install adb" in caught.value.hint


def test_an_unknown_option_is_named():
    with pytest.raises(ConfigError, match="serial_number"):
        connect(Device("phone", "pixel8", "adb", options={"serial_number": "1"}))


def test_a_home_that_is_not_there_is_said(adb_daemon):
    with (
        connect(adb_daemon.device(options={"home": "/no/such/folder"})) as transport,
        pytest.raises(StableDeviceError, match="There is no folder '/no/such/folder'"),
    ):
        transport.run(["true"], timeout=20)


def test_what_is_not_open_says_so(adb_daemon):
    with pytest.raises(TransientDeviceError, match="no open connection"):
        connect(adb_daemon.device()).run(["true"], timeout=5)


# Commands


def test_a_command_that_is_given_up_is_ended_on_the_device(phone, adb_daemon):
    script = "echo $$ > pid; sleep 300; true"
    with pytest.raises(TransientDeviceError, match=r"did not end within 1 s"):
        phone.run(["sh", "-c", script], timeout=1)
    pid = int((adb_daemon.home / "pid").read_text())
    deadline = time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_a_command_leaves_running_does_not_hold_us(phone):
    result = phone.run(["sh", "-c", "sleep 60 & echo done"], timeout=50)
    assert result.stdout == b"done\n"
    assert result.seconds < 30


def test_lines_of_standard_error_come_while_the_command_runs(phone, adb_daemon):
    seen = []

    def on_stderr(line):
        seen.append(line)
        (adb_daemon.home / "go").touch()

    script = "echo first >&2; while [ ! -e go ]; do sleep 0.05; done; printf 'second\\nthird' >&2"
    phone.run(["sh", "-c", script], timeout=30, on_stderr=on_stderr)
    assert seen == ["first", "second", "third"]


def test_more_output_than_allowed_is_refused(phone, monkeypatch):
    monkeypatch.setattr(adb_module, "MAX_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(StableDeviceError, match="printed more than"):
        phone.run(["cat", "/dev/zero"], timeout=30)


@pytest.mark.parametrize("argv", [[], ["printf", "a\0b"]])
def test_a_command_without_a_program_or_with_a_nul_is_refused(phone, argv):
    with pytest.raises(ConfigError, match="no NUL"):
        phone.run(argv, timeout=5)


def test_a_command_cut_off_is_a_lost_connection_whatever_it_printed(phone, adb_daemon):
    threading.Timer(0.5, adb_daemon.drop).start()
    with pytest.raises(TransientDeviceError, match="lost while running 'sh'"):
        phone.run(["sh", "-c", "echo some; sleep 30"], timeout=20)


def test_a_reboot_in_the_middle_of_a_command_is_transient_and_the_next_visit_works(phone, adb_daemon):
    threading.Timer(0.5, adb_daemon.reboot).start()
    with pytest.raises(TransientDeviceError):
        phone.run(["sleep", "30"], timeout=20)
    deadline = time.monotonic() + 10
    while True:
        try:
            with connect(adb_daemon.device()) as again:
                assert again.run(["echo", "up"], timeout=20).stdout == b"up\n"
            return
        except TransientDeviceError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


# Files


def test_a_full_disk_is_said_and_nothing_is_left(phone, adb_daemon, tmp_path):
    (tmp_path / "big").write_bytes(bytes(1 << 20))
    adb_daemon.faults.quota = 300_000
    with pytest.raises(StableDeviceError, match="Disk full on the device 'phone'"):
        phone.push(tmp_path / "big", "store/big")
    assert list((adb_daemon.home / "store").iterdir()) == []


def test_a_push_cut_at_any_byte_leaves_no_file_of_that_name(adb_daemon, tmp_path):
    (tmp_path / "file").write_bytes(os.urandom(200_000))
    whole = 0
    for after in (1, 500, 3_000, 66_000, 150_000, 200_500, 201_500, 1 << 30):
        target = f"store/cut{after}"
        with connect(adb_daemon.device()) as transport:
            adb_daemon.faults.drop_after = after
            try:
                transport.push(tmp_path / "file", target)
                whole += 1
            except TransientDeviceError:
                assert not (adb_daemon.home / target).exists() or after > 200_000
            adb_daemon.faults.drop_after = None
        if (adb_daemon.home / target).exists():
            assert (adb_daemon.home / target).read_bytes() == (tmp_path / "file").read_bytes()
    assert whole >= 1


def test_a_file_that_cannot_be_read_here_is_named(phone, tmp_path):
    with pytest.raises(ConfigError, match=r"missing' cannot be read"):
        phone.push(tmp_path / "missing", "x")


def test_a_file_of_the_kernel_is_pulled_though_it_says_it_is_empty(phone, tmp_path):
    phone.pull("/proc/version", tmp_path / "version", 10_000)
    assert (tmp_path / "version").read_text().startswith("Linux version")
    with pytest.raises(StableDeviceError, match="at most 10"):
        phone.pull("/proc/version", tmp_path / "short", 10)
    assert not (tmp_path / "short").exists()


def test_a_large_push_that_is_cut_off_brings_only_the_missing_pieces_next(adb_daemon, tmp_path):
    local, sent = tmp_path / "large", []
    local.write_bytes(os.urandom(1 << 20) * 40)
    with connect(adb_daemon.device()) as phone:
        adb_daemon.faults.drop_after = 20 << 20
        with pytest.raises(TransientDeviceError, match="lost while pushing 'large'"):
            phone.push(local, "large")
    assert not (adb_daemon.home / "large").exists()
    with connect(adb_daemon.device()) as phone:
        phone.push(local, "large", sent.append)
    assert sum(sent) == 24 << 20
    assert (adb_daemon.home / "large").read_bytes() == local.read_bytes()
    assert list(adb_daemon.home.glob(".large*")) == []


def test_a_large_push_keeps_the_right_to_execute(adb_daemon, tmp_path):
    local = tmp_path / "tool"
    local.write_bytes(bytes(17 << 20))
    local.chmod(0o755)
    with connect(adb_daemon.device()) as phone:
        phone.push(local, "tool")
    assert os.access(adb_daemon.home / "tool", os.X_OK)


def test_a_disk_that_fills_up_in_a_large_push_leaves_nothing(adb_daemon, tmp_path):
    local = tmp_path / "large"
    local.write_bytes(bytes(40 << 20))
    adb_daemon.faults.quota = 20 << 20
    with connect(adb_daemon.device()) as phone, pytest.raises(StableDeviceError, match="Disk full"):
        phone.push(local, "large")
    assert list(adb_daemon.home.iterdir()) == []
