"""What `adb devices` and `adb connect` print. Pure."""

from __future__ import annotations

import re

_TCP = re.compile(r"(\[[0-9A-Za-z:.%]+\]|[^\s:\[\]]+):(\d{1,5})")
_STATES = (
    "device",
    "offline",
    "unauthorized",
    "authorizing",
    "connecting",
    "no permissions",
    "recovery",
    "rescue",
    "sideload",
    "bootloader",
    "host",
    "no device",
    "unknown",
)
READY = "device"
PASSING = ("authorizing", "connecting")
"""States that a device leaves by itself."""


def is_network_address(address: str) -> bool:
    """Whether it is `host:port`, to which adb has to be connected first; else it is a serial number."""
    found = _TCP.fullmatch(address)
    return found is not None and 0 < int(found[2]) < 65536


def attached(listing: str) -> dict[str, str]:
    """State by serial number, from `adb devices`."""
    found = {}
    for line in listing.splitlines():
        serial, _, rest = line.strip().replace("\t", " ").partition(" ")
        state = next(
            (state for state in _STATES if rest.strip() == state or rest.strip().startswith(f"{state} ")), None
        )
        # Messages of the server (`* daemon started successfully`) and the heading have no state after one word.
        if serial and state is not None and not serial.startswith("*"):
            found[serial] = state
    return found


def described(devices: dict[str, str]) -> str:
    """The attached devices for a message: serial and, where it is not ready, its state."""
    if not devices:
        return "none is attached"
    words = [serial if state == READY else f"{serial} ({state})" for serial, state in sorted(devices.items())]
    return f"attached: {', '.join(words)}"


def is_connected(said: str) -> bool:
    """Whether `adb connect` succeeded: it tells a failure on standard output too, and ends with status 0."""
    text = said.lower()
    return bool(re.search(r"(^|\n)(already )?connected to ", text)) and "failed to" not in text
