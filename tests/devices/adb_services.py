"""The services of the device's side of ADB: commands and files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tests.devices.adb_wire import GoneError, Stream

if TYPE_CHECKING:
    from tests.devices.adb_daemon import AdbDaemon

Service = Callable[[Stream], None]
_CHUNK = 64 << 10
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)


def service_for(name: bytes, daemon: AdbDaemon) -> Service | None:
    """The service that a host asks for, or None where there is none."""
    kind, _, line = name.partition(b":")
    words = kind.split(b",")
    if kind == b"sync":
        return lambda stream: _Sync(stream, daemon).serve()
    if words[0] == b"shell" and b"v2" in words:
        return lambda stream: _shell_v2(stream, daemon, line)
    if words[0] in (b"shell", b"exec"):
        return lambda stream: _raw(stream, daemon, line)
    return None


# --- commands -------------------------------------------------------------------------------------------------------


def _start(daemon: AdbDaemon, line: bytes, stderr: int) -> subprocess.Popen[bytes]:
    daemon.commands.append(line.decode("utf-8", "replace"))
    process = subprocess.Popen(
        [*daemon.shell, line],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd="/",
        env=daemon.environment,
        start_new_session=True,
    )
    daemon.processes.add(process)
    return process


def _raw(stream: Stream, daemon: AdbDaemon, line: bytes) -> None:
    """One stream for everything, and no exit status."""
    process = _start(daemon, line, subprocess.STDOUT)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdin.close()
    try:
        while data := os.read(process.stdout.fileno(), _CHUNK):
            stream.write(data)
        process.wait()
    finally:
        _reap(daemon, process)


def _shell_v2(stream: Stream, daemon: AdbDaemon, line: bytes) -> None:
    process = _start(daemon, line, subprocess.PIPE)
    assert process.stdin is not None
    lock = threading.Lock()

    def send(kind: int, data: bytes) -> None:
        with lock:
            stream.write(struct.pack("<BI", kind, len(data)) + data)

    def forward(kind: int, pipe: BinaryIO) -> None:
        with contextlib.suppress(GoneError, OSError):
            while data := os.read(pipe.fileno(), _CHUNK):
                send(kind, data)

    readers = [
        threading.Thread(target=forward, args=(kind, pipe), daemon=True)
        for kind, pipe in ((_STDOUT, process.stdout), (_STDERR, process.stderr))
    ]
    feeder = threading.Thread(target=_feed, args=(stream, process), daemon=True)
    for thread in (*readers, feeder):
        thread.start()
    try:
        # As the real one: not over before everybody who has the outputs has closed them.
        for reader in readers:
            while reader.is_alive():
                reader.join(0.05)
                if stream.is_lost:
                    raise GoneError
        code = process.wait()
        send(_EXIT, bytes([128 - code if code < 0 else code & 0xFF]))
    finally:
        _reap(daemon, process)


def _feed(stream: Stream, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(GoneError, OSError, ValueError):
        while True:
            kind, length = struct.unpack("<BI", stream.read(5))
            data = stream.read(length)
            if kind == _STDIN:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(data)
                    process.stdin.flush()
            elif kind == _CLOSE_STDIN:
                process.stdin.close()


def _reap(daemon: AdbDaemon, process: subprocess.Popen[bytes]) -> None:
    """Close the pipes of a command; it lives on where the host left before its end, as on a real device."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if process.poll() is not None:
        daemon.processes.discard(process)


# --- files ----------------------------------------------------------------------------------------------------------


class _Sync:
    """`sync:`: SEND, RECV, STAT, LIST and the second version of STAT."""

    def __init__(self, stream: Stream, daemon: AdbDaemon) -> None:
        self._stream = stream
        self._daemon = daemon

    def serve(self) -> None:
        answers = {b"STAT": self._stat, b"LST2": self._stat2, b"STA2": self._stat2, b"LIST": self._list}
        answers |= {b"RECV": self._receive, b"SEND": self._send}
        while True:
            name, length = struct.unpack("<4sI", self._stream.read(8))
            text = self._stream.read(length).decode("utf-8", "surrogateescape") if name != b"QUIT" else ""
            if name not in answers:
                return
            if name in (b"STAT", b"LST2", b"STA2"):
                answers[name](text, name)  # type: ignore[operator]
            else:
                answers[name](text)  # type: ignore[operator]

    def _at(self, path: str) -> Path:
        return self._daemon.root / path.lstrip("/")

    def _stat(self, path: str, name: bytes) -> None:
        try:
            found = os.lstat(self._at(path))
            values = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
        except OSError:
            values = (0, 0, 0)
        self._stream.write(struct.pack("<4s3I", name, *values))

    def _stat2(self, path: str, name: bytes) -> None:
        try:
            found = self._at(path).stat(follow_symlinks=name != b"LST2")
            times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
            fields = (
                found.st_dev,
                found.st_ino,
                found.st_mode,
                found.st_nlink,
                found.st_uid,
                found.st_gid,
                found.st_size,
            )
            error = 0
        except OSError as problem:
            error, times, fields = problem.errno or errno.EIO, (0, 0, 0), (0,) * 7
        self._stream.write(struct.pack("<4sI2Q4IQ3q", name, error, *fields, *times))

    def _list(self, path: str) -> None:
        with contextlib.suppress(OSError):
            for name in sorted(entry.name for entry in self._at(path).iterdir()):
                found = os.lstat(self._at(path) / name)
                encoded = os.fsencode(name)
                head = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime), len(encoded))
                self._stream.write(struct.pack("<4s4I", b"DENT", *head) + encoded)
        self._stream.write(struct.pack("<4s4I", b"DONE", 0, 0, 0, 0))

    def _receive(self, path: str) -> None:
        try:
            with self._at(path).open("rb") as stream:
                while data := stream.read(_CHUNK):
                    self._stream.write(struct.pack("<4sI", b"DATA", len(data)) + data)
        except OSError as error:
            self._fail(f"open failed: {error.strerror}")
            return
        self._stream.write(struct.pack("<4sI", b"DONE", 0))

    def _send(self, text: str) -> None:
        path, _, mode = text.rpartition(",")
        problem, modified = "", 0
        target = self._at(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            problem, handle = f"couldn't create file: {error.strerror}", -1
        try:
            while True:
                name, length = struct.unpack("<4sI", self._stream.read(8))
                if name == b"DONE":
                    modified = length
                    break
                data = self._stream.read(length)
                # After a failure what still comes is thrown away: old hosts look for the answer only at the end.
                problem = problem or self._write(handle, data)
        finally:
            if handle >= 0:
                os.close(handle)
        if problem:
            if handle >= 0:
                target.unlink(missing_ok=True)
            self._fail(problem)
            return
        target.chmod(stat.S_IMODE(int(mode)))
        os.utime(target, (modified, modified))
        self._stream.write(struct.pack("<4sI", b"OKAY", 0))

    def _write(self, handle: int, data: bytes) -> str:
        quota = self._daemon.faults.quota
        if quota is not None:
            if quota < len(data):
                return f"write failed: {os.strerror(errno.ENOSPC)}"
            self._daemon.faults.quota = quota - len(data)
        try:
            os.write(handle, data)
        except OSError as error:
            return f"write failed: {error.strerror}"
        return ""

    def _fail(self, message: str) -> None:
        data = message.encode()
        self._stream.write(struct.pack("<4sI", b"FAIL", len(data)) + data)


# --- what prints recordings -----------------------------------------------------------------------------------------


def install_recordings(folder: Path, fixtures: Path, properties: dict[str, str]) -> None:
    """`getprop` and `dumpsys` that print recorded outputs.

    Args:
        folder: Where the programs go.
        fixtures: The recordings.
        properties: Properties that differ from the recorded ones.
    """
    recorded = json.loads((fixtures / "getprop_pixel8.json").read_text())["output"]
    text = recorded + "".join(f"[{key}]: [{value}]\n" for key, value in properties.items())
    (folder / "getprop.txt").write_text(text)
    outputs = {
        "battery": json.loads((fixtures / "dumpsys_battery_samsung.json").read_text())["output"],
        "thermalservice": json.loads((fixtures / "dumpsys_thermalservice_shield.json").read_text())["output"],
    }
    for name, output in outputs.items():
        (folder / f"dumpsys-{name}.txt").write_text(output)
    for program, body in (
        ("getprop", f"exec cat {folder}/getprop.txt"),
        (
            "dumpsys",
            f'[ -f "{folder}/dumpsys-$1.txt" ] && exec cat "{folder}/dumpsys-$1.txt"; echo "Can\'t find service: $1"',
        ),
    ):
        (folder / program).write_text(f"#!{folder}/sh\n{body}\n")
        (folder / program).chmod(0o755)
