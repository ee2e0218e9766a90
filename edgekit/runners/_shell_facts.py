"""What a device's shell tells of it: one script, its output taken apart by marks, and who reads the parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FactsReader:
    """How a kind of device is asked what it is.

    Attributes:
        script: For its shell; prints sections by `section NAME`, which stands before it with the variable `token`.
        read: All facts in the sections, with the names that the agent's facts have.
    """

    script: str
    read: Callable[[Mapping[str, str]], dict[str, Any]]


def sections(text: str, token: str) -> dict[str, str]:
    """The parts of what a script printed, by the names in its marks; what stands before the first is under ``."""
    found = {"": ""}
    name = ""
    for line in text.splitlines():
        if line.startswith(f"{token} "):
            name = line.removeprefix(f"{token} ").strip()
            found[name] = ""
        else:
            found[name] += line + "\n"
    return found


def free_bytes(text: str) -> int | None:
    """Bytes free, from `df -k FOLDER`; None where it is not told."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if len(rows) < 2:
        return None
    # A long device name stands on a line of its own.
    numbers = [word for word in " ".join(" ".join(row) for row in rows[1:]).split() if word.isdigit()]
    return int(numbers[2]) * 1024 if len(numbers) >= 3 else None
