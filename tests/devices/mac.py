"""A stand-in for a Mac with Xcode and an iPhone on a cable: programs on PATH, and what macOS alone has of coremltools.

Real are: everything of edgekit's, and coremltools 9 with its own search for devices, its benchmarker, its files to and
fro and its tensors. Stand-ins are: `sw_vers`, `sysctl`, `xcrun`, `xcodebuild`, `devicectl`; coremltools' binding to
Core ML (`libcoremlpython`), whose place edgekit's reference evaluator takes; and the ModelRunner app, a process that
answers coremltools' requests with the same evaluator. Its times say nothing.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
UDID = "00008120-000A11223344801E"
IDENTIFIER = "6F1B2C3D-0000-4000-8000-00000000A001"
SYSCTL = {
    "hw.model": "Mac14,3",
    "machdep.cpu.brand_string": "Apple M2",
    "hw.ncpu": "8",
    "hw.memsize": str(16 << 30),
    "hw.optional.arm64": "1",
}


def phone(**changes: Any) -> dict[str, Any]:
    """One device as devicectl lists it; `changes` are of its connection and properties, by their keys there."""
    entry: dict[str, Any] = {
        "identifier": changes.pop("identifier", IDENTIFIER),
        "connectionProperties": {"pairingState": "paired", "transportType": "wired", "tunnelState": "connected"},
        "deviceProperties": {
            "name": "Test iPhone",
            "osVersionNumber": "18.1",
            "osBuildUpdate": "22B83",
            "developerModeStatus": "enabled",
        },
        "hardwareProperties": {
            "cpuType": {"name": "arm64e"},
            "deviceType": "iPhone",
            "marketingName": "iPhone 15",
            "platform": "iOS",
            "productType": "iPhone15,4",
            "reality": "physical",
            "udid": UDID,
        },
    }
    for key, value in changes.items():
        next(part for part in entry.values() if isinstance(part, dict) and key in part)[key] = value
    return entry


def listing(*devices: dict[str, Any]) -> dict[str, Any]:
    """The document of `devicectl list devices`."""
    info = {"commandType": "devicectl.list.devices", "jsonVersion": 2, "outcome": "success", "version": "397.28"}
    return {"info": info, "result": {"devices": list(devices)}}


class StandInMac:
    """Programs and settings below one folder.

    Args:
        folder: An empty one.
        devices: The document that `devicectl list devices` writes; text as it is, None for a Mac without Xcode.
    """

    def __init__(self, folder: Path, devices: Any = None) -> None:
        self.folder, self.bin, self.site = folder, folder / "bin", folder / "site"
        for path in (self.bin, self.site, folder / "xcode"):
            path.mkdir(parents=True)
        self.state: dict[str, Any] = {"listing": devices, "python": sys.executable, "sysctl": SYSCTL}
        self.set()
        self._program(self.bin / "sw_vers")
        self._program(self.bin / "sysctl")
        if devices is not None:
            self._program(self.bin / "xcrun")
            self._program(self.bin / "xcodebuild")
            # Not on PATH, as with many a real Xcode: only xcrun finds it.
            self._program(folder / "xcode" / "devicectl")
        (self.bin / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (self.bin / "python3").chmod(0o755)
        (self.site / "sitecustomize.py").write_text("import tests.devices.mac_framework\n")
        (folder / "modelrunner" / "ModelRunner.xcworkspace").mkdir(parents=True)

    def set(self, **changes: Any) -> None:
        """Change how the programs behave; see `mac_tools.py`."""
        self.state.update(changes)
        (self.folder / "state.json").write_text(json.dumps(self.state))

    @property
    def environment(self) -> dict[str, str]:
        """What a login on it has."""
        return {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "PYTHONPATH": f"{self.site}:{ROOT}",
            "STAND_IN_MAC": str(self.folder),
        }

    @property
    def login(self) -> str:
        """Lines of shell for `Sshd.wrap`."""
        return "\n".join(f"export {key}={shlex.quote(value)}" for key, value in self.environment.items())

    def _program(self, path: Path) -> None:
        tools = Path(__file__).with_name("mac_tools.py")
        # Without site: these start a hundred times in a test, and must not meet the stand-in of Core ML.
        path.write_text(f"#!{sys.executable} -S\n{tools.read_text()}")
        path.chmod(0o755)
