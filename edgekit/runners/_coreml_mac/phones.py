"""What Xcode's `devicectl` says of the devices it knows, and which of them is meant."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, DeviceError, StableDeviceError, TransientDeviceError
from edgekit.runners._checks import printable

MAX_DEVICES = 500
_KINDS = ("iphone", "ipad")
HINTS: Mapping[str, str] = {
    "locked": "Unlock the phone, and keep it unlocked while it is measured (Settings, Display, Auto-Lock: Never).",
    "developer mode": "On the phone: Settings, Privacy & Security, Developer Mode; it restarts.",
    "not paired": "Attach the phone by cable, unlock it, and answer Trust; Xcode's window Devices shows when it is ready.",
    "unpaired": "Attach the phone by cable, unlock it, and answer Trust; Xcode's window Devices shows when it is ready.",
    "errsecinternalcomponent": "The Mac's keychain is locked in an SSH session: on the Mac, security unlock-keychain"
    " ~/Library/Keychains/login.keychain-db",
    "user interaction is not allowed": "The Mac's keychain is locked in an SSH session: on the Mac, security"
    " unlock-keychain ~/Library/Keychains/login.keychain-db",
    "development team": "Name who signs coremltools' app: runner_options: {development_team: ABCDE12345}",
    "no profiles for": "Name who signs coremltools' app: runner_options: {development_team: ABCDE12345}, and perhaps a"
    " bundle_identifier of your own",
    "model runner directory": "coremltools' wheel for macOS has the app: pip install --force-reinstall 'coremltools>=9,<10'",
    "tunnel": "Attach the phone by cable and unlock it; on the Mac, xcrun devicectl list devices shows its state.",
    "does not answer": "Attach the phone by cable and unlock it; on the Mac, xcrun devicectl list devices shows its state.",
}
"""What to do, by a word of what coremltools, Xcode or the phone says."""


@dataclass(frozen=True)
class Listing:
    """What `xcrun devicectl list devices` left.

    Attributes:
        returncode: Its exit status.
        stderr: The end of its complaints.
        bytes: How long its JSON is.
        text: The JSON, cut off at what the Mac's side reads.
    """

    returncode: int
    stderr: str
    bytes: int
    text: str


@dataclass(frozen=True)
class Phone:
    """An iPhone or iPad that Xcode knows.

    Attributes:
        name: What its owner calls it.
        udid: Its identity.
        kind: `iPhone` or `iPad`.
        model: `iPhone 15 (iPhone15,4)`.
        arch: The processor's instruction set as edgekit names it.
        os: `iOS 18.1 (22B83)`.
        paired: Whether it trusts the Mac.
        developer_mode: Whether it runs apps of a developer's; None where it is not said.
        tunnel: `connected`, `disconnected` (can be opened) or `unavailable` (it is not there).
    """

    name: str
    udid: str
    kind: str
    model: str
    arch: str
    os: str
    paired: bool
    developer_mode: bool | None
    tunnel: str

    @property
    def trouble(self) -> str:
        """Why it cannot be used; empty where it can, as far as is known."""
        if not self.paired:
            return "not paired with the Mac"
        if self.tunnel == "unavailable":
            return "not connected (its tunnel is unavailable)"
        return "Developer Mode is off" if self.developer_mode is False else ""

    def __str__(self) -> str:
        said = ", ".join(part for part in (self.model, self.os, self.trouble) if part)
        return f"'{self.name}' ({said}; udid {self.udid or 'not known'})"


def parse(listing: Listing, device: Device) -> list[Phone]:
    """The iPhones and iPads in a listing; simulators and other devices are left out.

    Raises:
        StableDeviceError: `devicectl` failed, or what it wrote is not what it writes.
    """
    broken = f"Look at it on the Mac that '{device.name}' is: xcrun devicectl list devices --json-output -"
    if listing.bytes > len(listing.text.encode()):
        raise StableDeviceError(
            f"'{device.name}': devicectl's list of devices has {listing.bytes} bytes, which no list has.", broken
        )
    try:
        document = json.loads(listing.text) if listing.text.strip() else None
    except (ValueError, RecursionError) as error:
        raise StableDeviceError(
            f"'{device.name}': devicectl's list of devices is not JSON: {printable(str(error))}.", broken
        ) from error
    failure = _failure(listing, document)
    if failure:
        raise StableDeviceError(
            f"'{device.name}': devicectl cannot list devices: {printable(failure, 500)}", advice(failure) or broken
        )
    entries = _part(_part(document, "result"), "devices")
    if not isinstance(entries, list) or len(entries) > MAX_DEVICES:
        raise StableDeviceError(f"'{device.name}': devicectl's list of devices has no `result.devices`.", broken)
    found = [_phone(entry) for entry in entries if isinstance(entry, dict)]
    return [phone for phone in found if phone is not None]


def _failure(listing: Listing, document: Any) -> str:
    if listing.returncode == 0 and _text(document, "info", "outcome") in ("success", ""):
        return ""
    said = _errors(_part(document, "error"))
    return " ".join(said) or listing.stderr or f"exit status {listing.returncode}"


def _errors(error: Any, depth: int = 0) -> list[str]:
    """Descriptions of an error and of those below it, as devicectl nests them."""
    user = _part(error, "userInfo")
    keys = ("NSLocalizedDescription", "NSLocalizedFailureReason", "NSLocalizedRecoverySuggestion")
    said = [found for key in keys if (found := _text(user, key, "string"))]
    below = _part(_part(user, "NSUnderlyingError"), "error")
    return said + (_errors(below, depth + 1) if below is not None and depth < 8 else [])


def _part(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _text(value: Any, *keys: str) -> str:
    for key in keys:
        value = _part(value, key)
    return printable(value, 120) if isinstance(value, str) else ""


def _phone(entry: Mapping[str, Any]) -> Phone | None:
    kind = _text(entry, "hardwareProperties", "deviceType")
    # From Xcode 27 on simulators are listed beside real devices.
    simulated = _text(entry, "hardwareProperties", "reality") not in ("physical", "")
    paired = _text(entry, "connectionProperties", "pairingState") != "unpaired"
    if simulated or (kind.lower() not in _KINDS and (kind or paired)):
        return None
    version, build = (_text(entry, "deviceProperties", key) for key in ("osVersionNumber", "osBuildUpdate"))
    product, marketed = (_text(entry, "hardwareProperties", key) for key in ("productType", "marketingName"))
    cpu = _text(entry, "hardwareProperties", "cpuType", "name")
    mode = _text(entry, "deviceProperties", "developerModeStatus")
    system = _text(entry, "hardwareProperties", "platform") or "iOS"
    return Phone(
        name=_text(entry, "deviceProperties", "name") or _text(entry, "identifier"),
        udid=_text(entry, "hardwareProperties", "udid"),
        kind=kind,
        model=f"{marketed} ({product})" if marketed and product else marketed or product,
        arch="aarch64" if cpu.startswith("arm64") and cpu != "arm64_32" else cpu,
        os=f"{system} {version}{f' ({build})' if build else ''}" if version else "",
        paired=paired,
        developer_mode=None if not mode else mode == "enabled",
        tunnel=_text(entry, "connectionProperties", "tunnelState") or "unavailable",
    )


def choose(phones: Sequence[Phone], wanted: str, device: Device) -> Phone:
    """The phone that is meant.

    Args:
        phones: From `parse`.
        wanted: Its udid or name, as `runner_options: {device: …}` has it; empty for the only one that can be used.
        device: The Mac.

    Raises:
        ConfigError: There are several, or none of that name.
        StableDeviceError: It is not there, or not in a state in which it can be used.
    """
    listed = "; ".join(map(str, phones)) or "none"
    if wanted:
        named = [phone for phone in phones if wanted in (phone.udid, phone.name)]
        if not named:
            raise ConfigError(
                f"'{device.name}' knows no phone '{wanted}'. It knows: {listed}.",
                f"devices.yaml: {device.name}: runner_options: {{device: UDID}}",
            )
        fitting = [phone for phone in named if not phone.trouble] or named
    else:
        fitting = [phone for phone in phones if not phone.trouble] or list(phones)
    if len(fitting) > 1 and not fitting[0].trouble:
        raise ConfigError(
            f"Several phones are attached to '{device.name}': {'; '.join(map(str, fitting))}.",
            f"devices.yaml: {device.name}: runner_options: {{device: {fitting[0].udid}}}",
        )
    if not fitting or len(fitting) > 1:
        raise StableDeviceError(
            f"No iPhone is connected to '{device.name}'. Xcode there knows: {listed}.",
            "Attach one by cable, unlock it and answer Trust; or measure on the Mac itself: edgekit deploy --target mac",
        )
    (phone,) = fitting
    if phone.trouble:
        raise StableDeviceError(
            f"{phone} at '{device.name}' cannot be used: {phone.trouble}.", advice(phone.trouble) or HINTS["tunnel"]
        )
    return phone


def advice(said: str) -> str:
    """What to do about what coremltools, Xcode or the phone says; empty where nothing is known."""
    lower = said.lower()
    return next((hint for word, hint in HINTS.items() if word in lower), "")


def advised(error: DeviceError) -> DeviceError:
    """The error, with advice in place of its hint where its words are known."""
    hint = advice(error.message)
    if not hint:
        return error
    kind = TransientDeviceError if isinstance(error, TransientDeviceError) else StableDeviceError
    return kind(error.message, hint)
