"""Releases on a device that has a shell and no Python: what the agent does elsewhere, in few commands."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core import schema
from edgekit.core.artifact import Artifact
from edgekit.core.errors import DeviceError, StableDeviceError, TransientDeviceError
from edgekit.core.files import safe_relative
from edgekit.runners import _shell_scripts
from edgekit.runners._checks import harmless
from edgekit.runners._shell_facts import FactsReader, free_bytes, sections
from edgekit.transports.base import CommandResult, Transport

SECONDS = 120.0
LOCK_SECONDS = 60.0
_TRANSIENT = frozenset({"busy", "blob", "lost"})
_HINTS = {
    "disk-full": "Free some space there, or set `root:` of the device in devices.yaml to a larger disk.",
    "permission": "Choose a `root:` in devices.yaml below which the device's shell may write (Android: /data/local/tmp).",
    "blob": "Try again: what arrived wrong has been removed and is sent anew.",
    "busy": "Wait for the other run to end, then try again.",
    "lost": "Try again when the other run has ended.",
    "release": "edgekit deploy puts a release there.",
    "model": "edgekit compile makes the artifact anew for the runtime that is pinned for the target.",
}


@dataclass(frozen=True)
class Seen:
    """What `inspect` found.

    Attributes:
        facts: Of the device.
        missing: Blobs that are not there.
        current: Digest in force.
        free_bytes: Room; None where it is not told.
        trusted_key: The public key whose releases alone the device takes; None where it takes any.
    """

    facts: Mapping[str, Any]
    missing: frozenset[str]
    current: str | None
    free_bytes: int | None
    trusted_key: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a script said: values by word, the last of each."""

    values: Mapping[str, str]
    lines: tuple[tuple[str, str], ...]


class ShellStore:
    """The store of one device.

    Args:
        transport: An open transport.
        facts: How the device is asked what it is.
    """

    def __init__(self, transport: Transport, facts: FactsReader) -> None:
        self._transport = transport
        self._facts = facts
        self.device = transport.device
        self.root = self.device.root.rstrip("/") or "/"
        self._token = secrets.token_hex(8)

    def at(self, *parts: str) -> str:
        """A path below the root."""
        return "/".join((self.root, *parts))

    def inspect(self, model: str = "-", blobs: Sequence[str] = ()) -> Seen:
        """Facts of the device, and what it lacks of some blobs."""
        script = _shell_scripts.INSPECT + self._facts.script
        result = self._shell(script, [self.root, self._token, model, *blobs], SECONDS)
        parts = sections(result.stdout.decode("utf-8", "replace"), self._token)
        answer = self._answer(CommandResult(result.returncode, parts[""].encode(), result.stderr, 0.0), may_be_cut=True)
        return Seen(
            facts=harmless(self._facts.read(parts)),
            missing=frozenset(value for word, value in answer.lines if word == "missing"),
            current=answer.values.get("current"),
            free_bytes=free_bytes(parts.get("df", "")),
            trusted_key=answer.values.get("trusted"),
        )

    def push(self, local: Path, *remote: str) -> int:
        """Send a file to a path below the root; how many bytes had to be sent."""
        sent: list[int] = []
        self._transport.push(local, self.at(*remote), sent.append)
        return sum(sent)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The only one who changes anything there, for as long as each step says it needs."""
        try:
            # Inside: where only the answer was lost, the lock is held all the same.
            self._ask(_shell_scripts.LOCK, LOCK_SECONDS + SECONDS, str(int(LOCK_SECONDS)))
            yield
        finally:
            self._unlock()

    def _unlock(self) -> None:
        for _ in range(2):
            # What was done is done: a device that is gone by now loses the lock when its time is over.
            with contextlib.suppress(DeviceError):
                self._ask(_shell_scripts.UNLOCK, 15.0)
                return

    def hold(self, seconds: float) -> None:
        """Keep the lock for a step of so many seconds that is not one of the store's own.

        Raises:
            TransientDeviceError: Another run has taken it.
        """
        self._answer(self._shell(_shell_scripts.HOLD, [self.root, self._token, str(int(seconds) + 60)], SECONDS))

    def verify(self, blobs: Sequence[str]) -> None:
        """Read blobs and compare them with their names.

        Raises:
            TransientDeviceError: One is not what it should be; it is removed, and sent anew the next time.
        """
        self._ask(_shell_scripts.VERIFY, SECONDS * 2, *blobs)

    def install(self, artifact: Artifact, main: str) -> str:
        """Lay the artifact's files out as a release, each checked by its hash; the folder's path."""
        manifest = artifact.manifest
        record = {
            "schema_version": schema.SCHEMA_VERSION,
            "name": manifest.name,
            "digest": artifact.digest,
            "main": main,
            "files": [schema.to_plain(entry) for entry in manifest.files],
        }
        pairs = [word for entry in manifest.files for word in (entry.sha256, str(safe_relative(entry.path)))]
        self._ask(
            _shell_scripts.INSTALL,
            SECONDS + artifact.bytes / (4 << 20),
            manifest.name,
            artifact.digest,
            schema.canonical_json(record).decode(),
            *pairs,
        )
        return self.at("models", manifest.name, "releases", artifact.digest)

    def switch(self, model: str, digest: str, keep: int) -> Answer:
        """Make a release current: programs see the one before or this one, never none."""
        return self._ask(_shell_scripts.SWITCH, SECONDS, model, digest, str(keep))

    def rollback(self, model: str, to: str | None) -> Answer:
        """Make an earlier release current again."""
        return self._ask(_shell_scripts.ROLLBACK, SECONDS, model, to or "")

    def outputs(
        self,
        work: str,
        blob: str,
        call_bytes: int,
        argv: Sequence[str],
        seconds: float,
        on_line: Callable[[str], None] | None = None,
    ) -> int:
        """Run a command once for each piece of a blob, and gather what it writes in `<work>/all`; how many there were."""
        answer = self._ask(_shell_scripts.OUTPUTS, seconds, work, blob, str(call_bytes), *argv, on_line=on_line)
        return int(answer.values.get("computed", "0"))

    def _ask(
        self, script: str, seconds: float, *arguments: str, on_line: Callable[[str], None] | None = None
    ) -> Answer:
        # The lock outlives the step by a margin: a device's clock is coarse, and so is its scheduler.
        words = [self.root, self._token, str(int(seconds) + 60), *arguments]
        return self._answer(self._shell(script, words, seconds, on_line))

    def _shell(
        self, script: str, arguments: Sequence[str], seconds: float, on_line: Callable[[str], None] | None = None
    ) -> CommandResult:
        argv = ["sh", "-s", "--", *arguments]
        return self._transport.run(argv, timeout=seconds, stdin=script.encode(), on_stderr=on_line)

    def _answer(self, result: CommandResult, *, may_be_cut: bool = False) -> Answer:
        lines = []
        for line in result.stdout.decode("utf-8", "replace").splitlines():
            word, _, value = line.strip().partition(" ")
            if word:
                lines.append((word, value))
        values = dict(lines)
        if "error" in values:
            raise self._error(values["error"], lines)
        if result.returncode != 0 and not may_be_cut:
            said = _clean(result.stderr.decode("utf-8", "replace"))
            raise StableDeviceError(
                f"The shell of '{self.device.name}' did not do what it was asked (exit status {result.returncode}): {said}",
                f"edgekit devices probe {self.device.name}",
            )
        return Answer(values, tuple(lines))

    def _error(self, text: str, lines: Sequence[tuple[str, str]]) -> DeviceError:
        kind, _, detail = text.partition(" ")
        words = {
            "disk-full": "there is no room left",
            "permission": "the shell may not write there",
            "blob": "what arrived has another hash",
        }
        said = ": ".join(filter(None, (words.get(kind, ""), detail)))
        if kind == "model":
            said += ": " + "; ".join(" ".join(line) for line in lines if line[0] != "error")[-600:]
        error = TransientDeviceError if kind in _TRANSIENT else StableDeviceError
        hint = _HINTS.get(kind, f"edgekit devices probe {self.device.name}")
        return error(f"{self.device.name}: {_clean(said)}", hint)


def _clean(text: str, limit: int = 700) -> str:
    """Text from a device without what would steer a terminal, and not too long."""
    clean = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
