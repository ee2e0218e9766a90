r"""The fake transport: a device made of a script. Public API, as an HTTP client's mock transport is.

In Python, a handler answers each command; files are kept in memory and every call is recorded:

    def handler(argv, stdin):
        return CommandResult(0, b'{"ok": true}', b"", seconds=0.0)

    with FakeTransport.scripted(device, handler) as transport:
        transport.push(Path("model.tflite"), ".edgekit/store/abc")
        transport.run(["python3", "agent.py"], timeout=10)
    assert transport.files[".edgekit/store/abc"] == Path("model.tflite").read_bytes()
    assert [call.kind for call in transport.calls] == ["push", "run"]

In devices.yaml, `script:` names a JSON file of recorded replies:

    {"schema_version": 1,
     "files": {"etc/hostname": "pi\n"},
     "replies": [{"argv": ["python3", "*agent.py"], "stdout": "{}", "times": 2},
                 {"argv": ["uname", "-m"], "stdout": "aarch64\n", "stderr": "", "returncode": 0, "seconds": 0.01}]}

A reply answers the first command that it fits and that no reply before it answers; each word of its `argv` may hold
the wildcards of a shell. `stdout` that is not text stands in `stdout_base64`.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from edgekit.core import schema
from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, DeviceError, StableDeviceError, TransientDeviceError
from edgekit.core.files import write_atomic
from edgekit.core.units import format_bytes
from edgekit.transports._faults import FaultyTransport
from edgekit.transports.base import MAX_OUTPUT_BYTES, CommandResult, Transport

__all__ = ["Call", "FakeOptions", "FakeTransport", "FaultyTransport", "Handler", "Reply", "Script"]

Handler = Callable[[Sequence[str], bytes], CommandResult]
"""What answers a command: takes `argv` and standard input."""


@dataclass(frozen=True)
class FakeOptions:
    """What `options:` of a fake device may hold.

    Attributes:
        script: JSON file of recorded replies.
        latency_seconds: Every call takes at least this long.
        fail_at: Which call of `run`, `push` or `pull` fails, counted from 1 over all three.
        error: How it fails.
    """

    script: str | None = None
    latency_seconds: float = 0.0
    fail_at: int | None = None
    error: Literal["transient", "stable"] = "transient"


@dataclass(frozen=True)
class Reply:
    """One recorded answer.

    Attributes:
        argv: The command it answers; each word may hold the wildcards of a shell.
        stdout: What the command prints.
        stdout_base64: The same where it is not text.
        stderr: What it prints to standard error.
        returncode: Its exit status.
        seconds: What is reported as its duration; nothing waits that long.
        times: How many commands it answers.
    """

    argv: tuple[str, ...]
    stdout: str = ""
    stdout_base64: str | None = None
    stderr: str = ""
    returncode: int = 0
    seconds: float = 0.0
    times: int = 1

    def fits(self, argv: Sequence[str]) -> bool:
        """Whether it answers that command."""
        return len(argv) == len(self.argv) and all(
            fnmatch.fnmatchcase(word, pattern) for word, pattern in zip(argv, self.argv, strict=True)
        )

    def result(self) -> CommandResult:
        """The answer."""
        out = self.stdout.encode() if self.stdout_base64 is None else base64.b64decode(self.stdout_base64)
        return CommandResult(self.returncode, out, self.stderr.encode(), self.seconds)


@dataclass(frozen=True)
class Script:
    """A file of recorded replies.

    Attributes:
        replies: The answers, in order.
        files: Text files that are there from the start, by path.
    """

    schema_version: int
    replies: tuple[Reply, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One call that was made.

    Attributes:
        kind: Which method.
        argv: The command of a `run`.
        stdin: What the command was given.
        remote: The path of a `push` or `pull`.
    """

    kind: Literal["run", "push", "pull"]
    argv: tuple[str, ...] = ()
    stdin: bytes = b""
    remote: str = ""


class FakeTransport(Transport):
    """A device made of a script.

    Attributes:
        calls: Every call of `run`, `push` and `pull`, also those that failed.
        files: Files on the device, by normalised path; relative ones are below the login's home folder.
        is_open: Whether it is between `open` and `close`.
    """

    summary: ClassVar[str] = "recorded replies instead of a device, for tests and for trying things out"
    extra: ClassVar[str | None] = None
    Options: ClassVar[type[Any]] = FakeOptions

    def __init__(self, device: Device, options: FakeOptions) -> None:
        super().__init__(device, options)
        self.calls: list[Call] = []
        self.files: dict[str, bytes] = {}
        self.is_open = False
        self._handler: Handler | None = None
        self._failure: DeviceError | None = None
        if options.script is not None:
            self._load(Path(options.script))

    @classmethod
    def scripted(
        cls,
        device: Device,
        handler: Handler,
        *,
        files: Mapping[str, bytes] | None = None,
        fail_at: int | None = None,
        error: DeviceError | None = None,
        latency_seconds: float = 0.0,
    ) -> Self:
        """A fake device whose commands a function answers.

        Args:
            device: The unit it plays.
            handler: Called with each command; may raise a DeviceError.
            files: Files that are there from the start.
            fail_at: Which call of `run`, `push` or `pull` fails, counted from 1 over all three.
            error: What it raises; by default a TransientDeviceError.
            latency_seconds: Every call takes at least this long.
        """
        fake = cls(device, FakeOptions(latency_seconds=latency_seconds, fail_at=fail_at))
        fake._handler = handler
        fake._failure = error
        fake.files.update({posixpath.normpath(path): data for path, data in (files or {}).items()})
        return fake

    def open(self) -> None:
        """Connect: nothing to do but to remember it."""
        self.is_open = True

    def close(self) -> None:
        """Disconnect; files and calls stay."""
        self.is_open = False

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        on_stderr: Callable[[str], None] | None = None,
    ) -> CommandResult:
        """Let the handler or the script answer a command.

        Raises:
            TransientDeviceError: The fault that was asked for, or an answer that takes longer than `timeout`.
            StableDeviceError: The fault that was asked for, no reply fits, or the answer is too large.
        """
        self._begin(Call("run", argv=tuple(argv), stdin=stdin))
        if self._handler is None:
            raise StableDeviceError(
                f"The fake device '{self.device.name}' has no script to answer {list(argv)}.",
                "Set `script: replies.json` in its options, or use FakeTransport.scripted in Python.",
            )
        result = self._handler(tuple(argv), stdin)
        if result.seconds > timeout:
            raise TransientDeviceError(
                f"'{argv[0]}' on the device '{self.device.name}' did not end within {timeout:g} s.",
                f"edgekit devices probe {self.device.name}",
            )
        if len(result.stdout) + len(result.stderr) > MAX_OUTPUT_BYTES:
            raise StableDeviceError(
                f"'{argv[0]}' on the device '{self.device.name}' printed more than {format_bytes(MAX_OUTPUT_BYTES)}."
            )
        if on_stderr is not None:
            for line in result.stderr.decode(errors="replace").splitlines():
                on_stderr(line)
        return result

    def push(self, local: Path, remote: str, on_bytes: Callable[[int], None] | None = None) -> None:
        """Keep a file's bytes in `files`.

        Raises:
            ConfigError: The file here cannot be read.
            DeviceError: The fault that was asked for.
        """
        self._begin(Call("push", remote=remote))
        try:
            data = local.read_bytes()
        except OSError as error:
            raise ConfigError(f"'{local}' cannot be read: {error.strerror}.") from error
        self.files[posixpath.normpath(remote)] = data
        if on_bytes and data:
            on_bytes(len(data))

    def pull(self, remote: str, local: Path, max_bytes: int) -> None:
        """Write a file of `files` here.

        Raises:
            StableDeviceError: There is none, it is larger than `max_bytes`, or the fault that was asked for.
            TransientDeviceError: The fault that was asked for.
        """
        self._begin(Call("pull", remote=remote))
        data = self.files.get(posixpath.normpath(remote))
        if data is None:
            raise StableDeviceError(
                f"There is no '{remote}' on the device '{self.device.name}'.",
                f"edgekit devices probe {self.device.name}",
            )
        if len(data) > max_bytes:
            raise StableDeviceError(
                f"'{remote}' on the device '{self.device.name}' has {format_bytes(len(data))}; at most"
                f" {format_bytes(max_bytes)} are taken."
            )
        write_atomic(local, data)

    def _begin(self, call: Call) -> None:
        self.calls.append(call)
        if not self.is_open:
            raise TransientDeviceError(
                f"There is no open connection to the device '{self.device.name}'.",
                f"edgekit devices probe {self.device.name}",
            )
        if self.options.latency_seconds > 0:
            time.sleep(self.options.latency_seconds)
        if len(self.calls) == self.options.fail_at:
            raise self._failure or self._default_failure(call)

    def _default_failure(self, call: Call) -> DeviceError:
        kind = TransientDeviceError if self.options.error == "transient" else StableDeviceError
        return kind(
            f"The device '{self.device.name}' failed on purpose in call {len(self.calls)} ({call.kind}).",
            f"edgekit devices probe {self.device.name}",
        )

    def _load(self, path: Path) -> None:
        document = schema.load_json(path)
        script = schema.versioned(Script, document)
        for index, reply in enumerate(script.replies):
            try:
                reply.result()
            except binascii.Error as error:
                raise ConfigError(f"{path}: `replies.{index}.stdout_base64` is not base64: {error}.") from error
        self.files.update({posixpath.normpath(name): text.encode() for name, text in script.files.items()})
        left = [reply.times for reply in script.replies]

        def answer(argv: Sequence[str], _stdin: bytes) -> CommandResult:
            for index, reply in enumerate(script.replies):
                if left[index] > 0 and reply.fits(argv):
                    left[index] -= 1
                    return reply.result()
            waiting = [list(reply.argv) for index, reply in enumerate(script.replies) if left[index] > 0]
            raise StableDeviceError(
                f"The script '{path}' of the fake device '{self.device.name}' has no reply left for {list(argv)}."
                f" Left: {waiting or 'none'}.",
                "Add the reply to the script.",
            )

        self._handler = answer
