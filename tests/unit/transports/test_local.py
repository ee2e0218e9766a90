from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from edgekit.core.device import Device
from edgekit.core.errors import StableDeviceError, TransientDeviceError
from edgekit.transports import local as module
from edgekit.transports.base import connect


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    with connect(Device("local", "here", "local")) as transport:
        yield transport


def python(code):
    return [sys.executable, "-c", code]


def test_commands_start_in_a_folder_of_the_cache(local, tmp_path):
    result = local.run(["pwd"], timeout=10)
    assert Path(result.stdout.decode().strip()) == tmp_path / "cache" / "devices" / "local"


def test_arguments_and_input_arrive_as_they_are(local):
    text = "a b'\"$(x)\n"
    result = local.run([*python("import sys; print(sys.argv[1:], sys.stdin.read())"), text], timeout=10, stdin=b"in\n")
    assert result.stdout.decode() == f"{[text]} in\n\n"
    assert result.returncode == 0


def test_lines_of_standard_error_come_while_the_command_runs(local):
    seen = []
    code = "import sys, time\nfor i in range(3): print(i, file=sys.stderr, flush=True); time.sleep(.1)\nsys.exit(3)"
    result = local.run(python(code), timeout=10, on_stderr=lambda line: seen.append((line, time.monotonic())))
    assert [line for line, _ in seen] == ["0", "1", "2"]
    assert seen[2][1] - seen[0][1] > 0.1
    assert (result.returncode, result.stderr) == (3, b"0\n1\n2\n")


def test_a_command_that_is_not_there_ends_as_in_a_shell(local):
    assert local.run(["no-such-command"], timeout=10).returncode == 127


def test_a_signal_ends_as_in_a_shell(local):
    assert local.run(python("import os; os.kill(os.getpid(), 9)"), timeout=10).returncode == 137


def test_a_time_out_ends_the_command_and_its_children(local, tmp_path):
    code = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '300']); print(p.pid, file=open(sys.argv[1], 'w'), flush=True); time.sleep(300)"
    with pytest.raises(TransientDeviceError, match="took longer than 2 s"):
        local.run([*python(code), str(tmp_path / "pid")], timeout=2)
    child = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_command_that_does_not_read_its_input_does_no_harm(local):
    assert local.run(["true"], timeout=10, stdin=b"x" * 1_000_000).returncode == 0


def test_too_much_output_is_refused(local, monkeypatch):
    monkeypatch.setattr(module, "MAX_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(StableDeviceError, match="more than 1 MiB"):
        local.run(["yes"], timeout=30)


def test_a_pushed_file_is_a_copy_that_does_not_change_with_its_source(local, tmp_path):
    source, sent = tmp_path / "model.bin", []
    source.write_bytes(b"x" * 3_000_000)
    local.push(source, ".edgekit/store/abc", sent.append)
    with source.open("r+b") as stream:
        stream.write(b"changed in place")
    assert (local.home / ".edgekit/store/abc").read_bytes() == b"x" * 3_000_000
    assert sum(sent) == 3_000_000
    assert len(list((local.home / ".edgekit/store").iterdir())) == 1


def test_a_pull_is_whole_and_bounded(local, tmp_path):
    (local.home / "out").write_bytes(b"12345")
    local.pull("out", tmp_path / "a" / "out", max_bytes=5)
    assert (tmp_path / "a" / "out").read_bytes() == b"12345"
    with pytest.raises(StableDeviceError, match="5 bytes; at most 4"):
        local.pull("out", tmp_path / "b", max_bytes=4)
    with pytest.raises(StableDeviceError, match="There is no 'nothing'"):
        local.pull("nothing", tmp_path / "b", max_bytes=4)
    assert not (tmp_path / "b").exists()


def test_what_cannot_be_written_is_named(local, tmp_path):
    (local.home / "file").write_text("")
    (tmp_path / "x").write_text("x")
    with pytest.raises(StableDeviceError, match="'file/x' cannot be written"):
        local.push(tmp_path / "x", "file/x")
