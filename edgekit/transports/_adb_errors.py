"""What `adb` prints when something fails, said in our own words. Pure."""

from __future__ import annotations

import re

from edgekit.core.errors import DeviceError, StableDeviceError, TransientDeviceError

_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\U0010ffff]+")
_LIMIT = 300


def printable(text: str) -> str:
    """Text of a device without what would steer a terminal, and not too long."""
    clean = _UNPRINTABLE.sub(" ", text).strip()
    return clean if len(clean) <= _LIMIT else clean[: _LIMIT - 1] + "…"


def state_error(name: str, serial: str, state: str) -> DeviceError:
    """The error for a device that is attached but not ready."""
    what = f"The device '{name}' ({serial})"
    probe = f"edgekit devices probe {name}"
    if state == "unauthorized":
        return StableDeviceError(
            f"{what} has not allowed this computer to debug it.",
            f"Unlock its screen and accept “Allow USB debugging?”, ticking “Always allow”; then: {probe}",
        )
    if state == "no permissions":
        return StableDeviceError(
            f"This user may not open the USB device of '{name}' ({serial}).",
            f"Install Android's udev rules (apt install android-sdk-platform-tools-common), replug it; then: {probe}",
        )
    if state in ("offline", "authorizing", "connecting", "no device", "unknown"):
        return TransientDeviceError(f"{what} is attached but does not answer ({state}).", f"Replug it, then: {probe}")
    return StableDeviceError(
        f"{what} is in the mode '{state}', not in Android.", f"adb -s {serial} reboot; then: {probe}"
    )


def explain(said: str, name: str, serial: str, doing: str) -> DeviceError:
    """The DeviceError for a call of adb that failed.

    Args:
        said: What it printed.
        name: The device's name.
        serial: Its serial number or address.
        doing: What was being done, as a phrase: "pushing 'x'".
    """
    text, probe = said.lower(), f"edgekit devices probe {name}"
    what = f"the device '{name}' ({serial})"
    for state in ("unauthorized", "offline", "no permissions"):
        if f"device {state}" in text or (state == "no permissions" and state in text):
            return state_error(name, serial, state)
    if "no space left" in text:
        return StableDeviceError(f"Disk full on {what} while {doing}.", f"Make room there; then: {probe}")
    if "permission denied" in text or "read-only file system" in text:
        return StableDeviceError(
            f"The shell on {what} may not write there: {printable(_last(said))} ({doing}).",
            f"Choose another `root:` for '{name}' in devices.yaml; /data/local/tmp is open to adb.",
        )
    if "is a directory" in text:
        return StableDeviceError(f"A folder is in the way on {what} while {doing}.", "Choose another `root:`.")
    if any(word in text for word in ("cannot connect to daemon", "failed to start daemon", "daemon not running;")) and (
        "cannot connect" in text or "failed to start" in text
    ):
        return StableDeviceError(
            f"The adb server of this machine does not start: {printable(_last(said))}.",
            "adb kill-server; adb start-server   (is another program on its port? ANDROID_ADB_SERVER_PORT chooses one)",
        )
    if "remote " in text and "remote object" not in text:
        return StableDeviceError(f"{what[0].upper()}{what[1:]} refuses: {printable(_last(said))} ({doing}).", probe)
    detail = printable(_last(said))
    return TransientDeviceError(
        f"The connection to {what} was lost while {doing}{f' ({detail})' if detail else ''}.", probe
    )


def lost(name: str, serial: str, doing: str) -> TransientDeviceError:
    """The error for a connection that is gone."""
    return TransientDeviceError(
        f"The connection to the device '{name}' ({serial}) was lost while {doing}.", f"edgekit devices probe {name}"
    )


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("adb: ").removeprefix("error: ") if lines else ""
