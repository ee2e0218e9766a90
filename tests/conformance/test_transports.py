"""What every transport must do: the contract of `edgekit.transports.base`, on a real device of each kind."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgekit.core.errors import StableDeviceError, TransientDeviceError
from edgekit.transports.base import connect, registry

NO_DEVICE = {"fake"}
"""It is a script, not a device: it runs and stores nothing."""
UNITS = [*(name for name in registry.names() if name not in NO_DEVICE), "adb_legacy"]


@pytest.fixture(params=UNITS)
def unit(request):
    return request.getfixturevalue(f"unit_{request.param}")


@pytest.fixture
def transport(unit):
    with connect(unit.device) as opened:
        yield opened


def leftovers(unit):
    return [path.name for path in unit.home.rglob("*") if path.name.startswith(".") and path.is_file()]


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_command_starts_in_the_home_folder_and_tells_its_outputs_apart(transport, unit):
    result = transport.run(["sh", "-c", "pwd; echo oops >&2; exit 7"], timeout=20)
    assert (result.returncode, result.stderr) == (7, b"oops\n")
    assert result.stdout.decode() == f"{unit.home}\n"
    assert leftovers(unit) == []


@pytest.mark.parametrize(
    "word", ["two words", "it's", 'say "x"', "line\nbreak", "$(touch owned)", "größer→", "*", "", "a\\b"]
)
def test_an_argument_arrives_as_it_is(transport, unit, word):
    assert transport.run(["printf", "%s|", "first", word], timeout=20).stdout.decode() == f"first|{word}|"
    assert not (unit.home / "owned").exists()


def test_bytes_pass_unchanged_in_both_directions(transport):
    data = os.urandom(300_000) + bytes(range(256)) + b"\r\n\n\r"
    assert transport.run(["cat"], timeout=60, stdin=data).stdout == data


def test_output_without_an_end_of_line_has_none(transport):
    result = transport.run(["sh", "-c", "printf out; printf err >&2"], timeout=20)
    assert (result.stdout, result.stderr) == (b"out", b"err")


def test_a_command_that_does_not_read_its_input_is_no_failure(transport):
    assert transport.run(["true"], timeout=30, stdin=bytes(1 << 20)).returncode == 0


def test_every_line_of_standard_error_is_told(transport):
    seen = []
    transport.run(["sh", "-c", "echo one >&2; echo two >&2"], timeout=20, on_stderr=seen.append)
    assert seen == ["one", "two"]


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -KILL $$", 137)])
def test_the_exit_status_is_the_commands(transport, script, code):
    assert transport.run(["sh", "-c", script], timeout=20).returncode == code


def test_a_program_that_is_not_there_ends_as_in_a_shell(transport):
    assert transport.run(["no-such-program"], timeout=20).returncode == 127


def test_a_command_that_takes_too_long_is_given_up_and_the_connection_stays(transport):
    with pytest.raises(TransientDeviceError, match="'?sleep'? on "):
        transport.run(["sleep", "60"], timeout=1.0)
    assert transport.run(["echo", "on"], timeout=20).stdout == b"on\n"


def test_a_pushed_file_is_whole_in_folders_that_are_made(transport, unit, tmp_path):
    source, sent = tmp_path / "model.bin", []
    source.write_bytes(os.urandom(700_000))
    transport.push(source, "a/b c/model.bin", sent.append)
    arrived = (unit.home / "a/b c/model.bin").read_bytes()
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(source.read_bytes()).digest()
    assert sum(sent) == 700_000
    assert leftovers(unit) == []


def test_a_push_replaces_what_is_there_and_keeps_the_right_to_execute(transport, unit, tmp_path):
    source = tmp_path / "tool"
    for text in ("#!/bin/sh\necho old\n", "#!/bin/sh\necho new\n"):
        source.write_text(text)
        source.chmod(0o755)
        transport.push(source, "tool")
    assert (unit.home / "tool").read_text().endswith("new\n")
    assert os.access(unit.home / "tool", os.X_OK)


def test_an_empty_file_is_a_file(transport, unit, tmp_path):
    (tmp_path / "empty").touch()
    transport.push(tmp_path / "empty", "empty")
    assert (unit.home / "empty").read_bytes() == b""
    transport.pull("empty", tmp_path / "back", 0)
    assert (tmp_path / "back").read_bytes() == b""


def test_a_folder_in_the_way_is_said_and_nothing_is_left(transport, unit, tmp_path):
    (unit.home / "taken" / "inside").mkdir(parents=True)
    (tmp_path / "x").write_text("x")
    with pytest.raises(StableDeviceError, match="taken"):
        transport.push(tmp_path / "x", "taken")
    assert leftovers(unit) == []
    assert [path.name for path in (unit.home / "taken").iterdir()] == ["inside"]


def test_a_pull_is_whole_and_bounded(transport, unit, tmp_path):
    (unit.home / "out").write_bytes(b"12345")
    transport.pull("out", tmp_path / "new" / "out", max_bytes=5)
    assert (tmp_path / "new" / "out").read_bytes() == b"12345"
    with pytest.raises(StableDeviceError, match="'out'"):
        transport.pull("out", tmp_path / "more", max_bytes=4)
    with pytest.raises(StableDeviceError, match="There is no 'nothing'"):
        transport.pull("nothing", tmp_path / "more", max_bytes=4)
    (unit.home / "folder").mkdir()
    with pytest.raises(StableDeviceError, match="'folder'"):
        transport.pull("folder", tmp_path / "more", max_bytes=4)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".more", "more"))] == []


def test_absolute_paths_are_taken_as_they_are(transport, unit, tmp_path):
    (tmp_path / "x").write_text("x")
    transport.push(tmp_path / "x", str(unit.home / "deep" / "x"))
    transport.pull(str(unit.home / "deep" / "x"), tmp_path / "y", 10)
    assert (tmp_path / "y").read_text() == "x"


def test_close_may_be_called_twice_and_after_a_failed_open(unit):
    transport = connect(unit.device)
    transport.close()
    transport.open()
    transport.close()
    transport.close()
    with transport:
        assert transport.run(["true"], timeout=20).returncode == 0


# Uploads that were cut off. A copy on this very machine (`local`) starts anew, which its base says.

LARGE = 40 << 20


@pytest.fixture
def large(tmp_path):
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(1 << 20) * (LARGE >> 20))
    return source


class CutOffError(Exception):
    """What ends an upload in these tests."""


def push_and_be_cut_off(unit, source, after):
    """A push that ends once so many bytes are said to have arrived; its connection is closed."""
    done = 0

    def on_bytes(count):
        nonlocal done
        done += count
        if done >= after:
            raise CutOffError

    with pytest.raises(CutOffError), connect(unit.device) as transport:
        transport.push(source, "store/large", on_bytes)


def sent_by(unit, source):
    sent = []
    with connect(unit.device) as transport:
        transport.push(source, "store/large", sent.append)
    return sum(sent)


def partial_files(unit):
    return sorted((unit.home / "store").glob(".large.*.part"))


@pytest.fixture(params=[name for name in UNITS if name != "local"])
def resuming_unit(request):
    """A copy on this very machine starts anew."""
    return request.getfixturevalue(f"unit_{request.param}")


def test_a_push_that_was_cut_off_goes_on_where_it_was(resuming_unit, large):
    push_and_be_cut_off(resuming_unit, large, LARGE // 2)
    assert partial_files(resuming_unit)
    assert not (resuming_unit.home / "store/large").exists()
    assert 0 < sent_by(resuming_unit, large) <= LARGE // 2
    assert (resuming_unit.home / "store/large").read_bytes() == large.read_bytes()
    assert leftovers(resuming_unit) == []


def test_what_is_left_of_an_upload_is_not_believed_when_it_has_other_bytes(resuming_unit, large):
    push_and_be_cut_off(resuming_unit, large, LARGE // 2)
    for path in partial_files(resuming_unit):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert sent_by(resuming_unit, large) == LARGE
    assert (resuming_unit.home / "store/large").read_bytes() == large.read_bytes()
    assert leftovers(resuming_unit) == []


def test_what_is_left_of_an_upload_is_not_continued_with_other_content(resuming_unit, large):
    push_and_be_cut_off(resuming_unit, large, LARGE // 2)
    old = partial_files(resuming_unit)
    large.write_bytes(os.urandom(1 << 20) * (LARGE >> 20))
    assert sent_by(resuming_unit, large) == LARGE
    assert (resuming_unit.home / "store/large").read_bytes() == large.read_bytes()
    assert partial_files(resuming_unit) == old


def test_a_device_that_cannot_hash_gets_the_whole_file_again(resuming_unit, large):
    push_and_be_cut_off(resuming_unit, large, LARGE // 2)
    resuming_unit.take_away_hashes()
    assert sent_by(resuming_unit, large) == LARGE
    assert (resuming_unit.home / "store/large").read_bytes() == large.read_bytes()


def test_two_pushes_of_one_file_at_once_are_never_mixed(resuming_unit, large):
    def push():
        try:
            sent_by(resuming_unit, large)
        except TransientDeviceError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(lambda _: push(), range(3)))
    final = resuming_unit.home / "store/large"
    # Each is done, or told to try again: over ADB they may all get into each other's way, and a runner's lock prevents that.
    assert final.exists() or None not in ended
    assert not final.exists() or final.read_bytes() == large.read_bytes()
    sent_by(resuming_unit, large)
    assert final.read_bytes() == large.read_bytes()
    assert leftovers(resuming_unit) == []
