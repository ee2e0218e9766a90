"""A transport that fails on purpose: what a fault sweep puts around a real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from edgekit.core.errors import DeviceError, TransientDeviceError
from edgekit.transports.base import CommandResult, NoOptions, Transport

T = TypeVar("T")
When = Literal["before", "after"]


class FaultyTransport(Transport):
    """Passes everything on to another transport, and cuts one call of `run`, `push` or `pull`.

    Run a piece of work once with `fail_at=None`, read `count`, and then once for each number up to it: after every
    single failure the device must be left whole and a second try must succeed.

        for number in range(1, calls + 1):
            with FaultyTransport(connect(device), fail_at=number) as transport:
                ...

    Args:
        inner: The transport that does the work.
        fail_at: Which call fails, counted from 1 over `run`, `push` and `pull` together; None for none.
        error: What is raised; by default a TransientDeviceError.
        when: `before` the call reaches the device, or `after` it was done there and only its answer is lost.

    Attributes:
        count: Calls made so far; opening again does not reset it.
    """

    summary: ClassVar[str] = "fails on purpose around another transport, for tests"

    def __init__(
        self,
        inner: Transport,
        fail_at: int | None,
        error: DeviceError | None = None,
        when: When = "before",
    ) -> None:
        super().__init__(inner.device, NoOptions())
        self.inner = inner
        self.fail_at = fail_at
        self.count = 0
        self._error = error
        self._when = when

    def open(self) -> None:
        """Open the inner transport."""
        self.inner.open()

    def close(self) -> None:
        """Close the inner transport."""
        self.inner.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        on_stderr: Callable[[str], None] | None = None,
    ) -> CommandResult:
        """Run a command on the inner transport, or fail."""
        return self._call(
            f"running '{argv[0]}'",
            lambda: self.inner.run(argv, timeout=timeout, stdin=stdin, on_stderr=on_stderr),
        )

    def push(self, local: Path, remote: str, on_bytes: Callable[[int], None] | None = None) -> None:
        """Push over the inner transport, or fail."""
        self._call(f"pushing '{remote}'", lambda: self.inner.push(local, remote, on_bytes))

    def pull(self, remote: str, local: Path, max_bytes: int) -> None:
        """Pull over the inner transport, or fail."""
        self._call(f"pulling '{remote}'", lambda: self.inner.pull(remote, local, max_bytes))

    def trust(self) -> str:
        """The inner transport's answer; not counted."""
        return self.inner.trust()

    def record_trust(self) -> str:
        """The inner transport's answer; not counted."""
        return self.inner.record_trust()

    def _call(self, doing: str, work: Callable[[], T]) -> T:
        self.count += 1
        fails = self.count == self.fail_at
        if fails and self._when == "before":
            raise self._failure(doing)
        result = work()
        if fails:
            raise self._failure(doing)
        return result

    def _failure(self, doing: str) -> DeviceError:
        if self._error is not None:
            return self._error
        return TransientDeviceError(
            f"The connection to the device '{self.device.name}' was cut on purpose while {doing} (call {self.count}).",
            f"edgekit devices probe {self.device.name}",
        )
