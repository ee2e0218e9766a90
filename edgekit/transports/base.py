"""Transport: how bytes and commands get to a device. It knows nothing of models."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from edgekit.core import schema
from edgekit.core.device import Device
from edgekit.core.errors import ConfigError
from edgekit.core.registry import Registry

MAX_OUTPUT_BYTES = 64 << 20
"""More output than this from one command is refused: a device is not trusted to be sane."""


@dataclass(frozen=True)
class CommandResult:
    """What a command on a device left.

    Attributes:
        returncode: Its exit status; 128 + the signal's number where a signal ended it.
        stdout: What it printed.
        stderr: What it printed to standard error.
        seconds: Wall time seen from the host.
    """

    returncode: int
    stdout: bytes
    stderr: bytes
    seconds: float


@dataclass(frozen=True)
class NoOptions:
    """A transport that has no options."""


class Transport(abc.ABC):
    """A way to one device. Use it as a context manager: it is open inside the block.

    Paths on the device that are not absolute are taken from the login's home folder, which is also where commands
    start. Every method raises `TransientDeviceError` where trying again may help and `StableDeviceError` where it
    will not.

    Args:
        device: The unit; its `options` have been checked against `Options`.
        options: The typed options.
    """

    summary: ClassVar[str]
    """One line for `edgekit doctor`."""
    extra: ClassVar[str | None] = None
    """The extra of edgekit that it needs."""
    Options: ClassVar[type[Any]] = NoOptions
    """Dataclass of what `options:` in devices.yaml may hold."""

    def __init__(self, device: Device, options: Any) -> None:
        self.device = device
        self.options = options

    @classmethod
    def missing(cls) -> str | None:
        """The command that mends what this transport lacks on this host, or None where it works."""
        return None

    @abc.abstractmethod
    def open(self) -> None:
        """Connect."""

    @abc.abstractmethod
    def close(self) -> None:
        """Disconnect; may be called twice, and after a failed `open`."""

    @abc.abstractmethod
    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        on_stderr: Callable[[str], None] | None = None,
    ) -> CommandResult:
        """Run a command.

        Args:
            argv: Program and arguments. Never a shell line: a transport that needs one quotes it itself, once.
            timeout: Seconds after which the command is given up.
            stdin: What the command reads.
            on_stderr: Called with each whole line that the command prints to standard error, while it runs.
        """

    @abc.abstractmethod
    def push(self, local: Path, remote: str, on_bytes: Callable[[int], None] | None = None) -> None:
        """Copy a file to the device: to a temporary name, its size checked, then renamed. Makes the folders.

        What its owner may execute here may be executed there. A large file whose push was cut off is continued by the
        next push of the same content, as far as the device's own hash of what it has is right; then less is sent than
        the file is long. (A copy on this very machine starts anew.)

        Args:
            local: The file here.
            remote: Its path there.
            on_bytes: Called with the number of bytes each time some more have been sent.
        """

    @abc.abstractmethod
    def pull(self, remote: str, local: Path, max_bytes: int) -> None:
        """Copy a file from the device; refuses one larger than `max_bytes`. Atomic here."""

    def trust(self) -> str:
        """Look at the device's identity without trusting it, and say it (an SSH host key's fingerprint).

        Called on a transport that is not open. Further lines say what a person should know before saying yes.
        """
        raise ConfigError(
            f"The transport '{self.device.transport}' has no keys to trust.",
            f"edgekit devices probe {self.device.name}",
        )

    def record_trust(self) -> str:
        """Record the identity that `trust` said last, so that `open` accepts it; says what was recorded, and where."""
        raise ConfigError(
            f"The transport '{self.device.transport}' has no keys to trust.",
            f"edgekit devices probe {self.device.name}",
        )

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            with contextlib.suppress(Exception):
                self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


registry: Registry[Transport] = Registry("transport", "edgekit.transports", Transport)  # type: ignore[type-abstract]


def connect(device: Device) -> Transport:
    """The transport of a device, not yet open.

    Raises:
        ConfigError: No transport has that name, or the device's options are not of its form.
    """
    kind = registry.get(device.transport)
    document = schema.Document(dict(device.options), f"devices.yaml: {device.name}: options")
    return kind(device, schema.convert(kind.Options, document))
