"""What the ADB transport makes of what `adb` and a device's shell print. Pure."""

from __future__ import annotations

import pytest

from edgekit.core.errors import StableDeviceError, TransientDeviceError
from edgekit.transports import _adb_devices as listing
from edgekit.transports import _adb_shell as shell
from edgekit.transports._adb_errors import explain, state_error

LISTING = """\
* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
0A1B2C3D4E5F\tdevice
127.0.0.1:5555\toffline
emulator-5554          device product:sdk_gphone64_x86_64 model:sdk transport_id:3
R58M1234\tno permissions (user in plugdev group; are your udev rules wrong?); see [http://developer.android.com/tools/device.html]
ZY22\tunauthorized

"""


def test_the_listing_gives_the_state_of_each_device():
    assert listing.attached(LISTING) == {
        "0A1B2C3D4E5F": "device",
        "127.0.0.1:5555": "offline",
        "emulator-5554": "device",
        "R58M1234": "no permissions",
        "ZY22": "unauthorized",
    }
    assert "ZY22 (unauthorized)" in listing.described(listing.attached(LISTING))
    assert listing.described({}) == "none is attached"


@pytest.mark.parametrize("address", ["192.0.2.7:5555", "phone.local:41235", "[fe80::1%eth0]:5555"])
def test_an_address_in_the_network_is_told_from_a_serial_number(address):
    assert listing.is_network_address(address)


@pytest.mark.parametrize(
    "address", ["0A1B2C3D", "emulator-5554", "adb-39_serial._adb-tls-connect._tcp", "", "host:0", "host:99999"]
)
def test_a_serial_number_is_no_address(address):
    assert not listing.is_network_address(address)


@pytest.mark.parametrize(
    ("said", "connected"),
    [
        ("connected to 127.0.0.1:5555", True),
        ("* daemon started successfully\nalready connected to 127.0.0.1:5555", True),
        ("failed to connect to '127.0.0.1:5555': Connection refused", False),
        ("unable to connect to 127.0.0.1:5555", False),
        ("", False),
    ],
)
def test_a_failed_connect_is_known_by_its_words(said, connected):
    assert listing.is_connected(said) is connected


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set",
            StableDeviceError,
            "not allowed",
        ),
        ("error: device offline", TransientDeviceError, "does not answer"),
        (
            "adb: error: failed to copy 'a' to 'b': remote write failed: No space left on device",
            StableDeviceError,
            "Disk full",
        ),
        (
            "adb: error: failed to copy 'a' to '/x': remote couldn't create file: Permission denied",
            StableDeviceError,
            "may not write",
        ),
        (
            "adb: error: failed to copy 'a' to '/x': remote secure_mkdirs failed: Operation not permitted",
            StableDeviceError,
            "refuses",
        ),
        (
            "* cannot start server on remote host\nadb: cannot connect to daemon at tcp:5037: Connection refused",
            StableDeviceError,
            "adb server",
        ),
        ("error: closed", TransientDeviceError, "was lost"),
        ("error: protocol fault (couldn't read status): Connection reset by peer", TransientDeviceError, "was lost"),
        ("adb: device '127.0.0.1:5555' not found", TransientDeviceError, "was lost"),
    ],
)
def test_each_failure_is_said_in_our_words(said, kind, words):
    found = explain(said, "phone", "127.0.0.1:5555", "pushing 'x'")
    assert type(found) is kind
    assert words in found.message
    assert "'phone'" in found.message or "adb server" in found.message
    assert found.hint


@pytest.mark.parametrize(("state", "kind"), [("recovery", StableDeviceError), ("offline", TransientDeviceError)])
def test_a_device_that_is_not_ready_is_said_to_be_what_it_is(state, kind):
    assert type(state_error("phone", "X", state)) is kind
    assert state in state_error("phone", "X", state).message


# Marks


def fed(raw, step, token="tok", on_line=None):
    marks = shell.Marks(token, on_line)
    for start in range(0, len(raw), step):
        marks.feed(raw[start : start + step])
    return marks


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_marks_are_found_however_the_stream_is_cut(step):
    seen = []
    marks = fed(b"* daemon started successfully\ntok:123\none\ntwo\nrest tok:7\n", step, on_line=seen.append)
    assert (marks.pid, marks.returncode, marks.text) == (123, 7, b"one\ntwo\nrest ")
    assert seen == ["one", "two", "rest "]


def test_a_command_that_never_started_has_no_number():
    marks = fed(b"error: device offline\n", 5)
    assert (marks.pid, marks.returncode, marks.text) == (None, None, b"")


def test_a_command_that_was_cut_off_has_no_end():
    assert fed(b"tok:5\nhalf a line", 4).returncode is None


def test_a_missing_home_is_told():
    assert fed(b"sh: cd: /x: No such file or directory\ntok:home \n", 100).no_home


def test_what_comes_after_the_end_changes_nothing():
    marks = fed(b"tok:5\nerr\ntok:0\nlate words of a child\n", 100)
    assert (marks.returncode, marks.text) == (0, b"err\n")


def test_a_command_line_is_quoted_once():
    line = shell.command_line(["printf", "it's; rm -rf $HOME"], "/data/local/tmp", "tok").decode()
    assert line.startswith("cd /data/local/tmp || ")
    assert """printf 'it'"'"'s; rm -rf $HOME'; r=$?""" in line


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"tok:12 \nout\nno end\ntok:3\nerr\n", (True, 3, b"out\nno end", b"err\n")),
        (b"tok:12 \n\ntok:0\n", (True, 0, b"", b"")),
        (b"tok:12 \nhalf", (True, None, b"half", b"")),
        (b"", (False, None, b"", b"")),
    ],
)
def test_one_stream_is_taken_apart(raw, expected):
    assert shell.split_legacy(raw, "tok") == expected
