"""Conditions that are held while a device is measured, and given back: standard library only, Python ≥ 3.9."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

# On a device these files lie side by side and belong to no package.
import conditions  # type: ignore[import-not-found]
import facts  # type: ignore[import-not-found]
import store  # type: ignore[import-not-found]

NOTE = "governor-before.json"
"""Which governors to give back. It is there for exactly as long as they are changed, also after a crash."""
Json = dict[str, Any]


def _boot(proc: str) -> str | None:
    boot: str | None = facts.read_text(os.path.join(proc, "sys/kernel/random/boot_id"))
    return boot


def _file(sys: str, policy: str) -> str:
    return os.path.join(sys, "devices/system/cpu/cpufreq", policy, "scaling_governor")


def _write(path: str, text: str) -> str | None:
    """Write to a file of the kernel; what it says where it refuses."""
    try:
        with open(path, "w") as stream:
            stream.write(text)
    except OSError as error:
        return error.strerror or str(error)
    return None


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No signal that would end the process is taken in here: it is taken afterwards."""
    held = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def restore(root: str, proc: str = "/proc", sys: str = "/sys") -> list[str]:
    """Give back the governors that a run changed, if it did not itself; the policies that would not be.

    Called under the lock only: the note of a run that still goes on is not touched.
    """
    note = os.path.join(root, NOTE)
    left = store.read(note, None)
    if left is None:
        # Nothing that can be read was kept: half a note says nothing, and is never left by `store.write`.
        store.remove(note)
        return []
    if left.get("boot") != _boot(proc):
        # A system that started anew has its own governors again.
        store.remove(note)
        return []
    with undisturbed():
        trouble = [policy for policy, governor in left["governors"].items() if _write(_file(sys, policy), governor)]
        if not trouble:
            store.remove(note)
    return trouble


def governor(root: str, wanted: str, proc: str = "/proc", sys: str = "/sys") -> Json:
    """Set the governor of every policy, after noting which there were; what cannot be is said, and nothing fails.

    The answer has `asked`, `before` (by policy), `set` (the policies that have it now) and `trouble`.
    """
    found = {policy: state["governor"] for policy, state in conditions.policies(sys).items() if state["governor"]}
    answer: Json = {"asked": wanted, "before": found, "set": [], "trouble": None}
    if not found:
        return dict(answer, trouble="this device shows no frequency policies")
    with undisturbed():
        store.write(os.path.join(root, NOTE), {"boot": _boot(proc), "governors": found})
        for policy in found:
            refused = _write(_file(sys, policy), wanted)
            if refused is None:
                answer["set"].append(policy)
                continue
            path = os.path.join(os.path.dirname(_file(sys, policy)), "scaling_available_governors")
            choices = (facts.read_text(path) or "").split()
            known = wanted in choices or not choices
            answer["trouble"] = (
                refused if known else f"there is no governor '{wanted}'; there are: {', '.join(choices)}"
            )
        if not answer["set"]:
            store.remove(os.path.join(root, NOTE))
    return answer


def cool(
    below: float, seconds: float, temperature: Callable[[], float | None], wait: Callable[[float], None] = time.sleep
) -> Json:
    """Wait until the processor is below a temperature in °C, `seconds` at most.

    The answer has `below_c`, `from_c`, `to_c`, `seconds` and `reached`: None where the device tells no temperature.
    """
    begin = time.monotonic()
    first = now = temperature()
    while now is not None and now >= below and time.monotonic() - begin < seconds:
        wait(min(1.0, seconds))
        now = temperature()
    return {
        "below_c": below,
        "from_c": first,
        "to_c": now,
        "seconds": round(time.monotonic() - begin, 1),
        "reached": None if now is None else now < below,
    }
