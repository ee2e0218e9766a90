"""`sw_vers`, `sysctl`, `xcrun`, `xcodebuild` and `devicectl` of the stand-in Mac: one program under five names.

Its settings are in `state.json`: `listing` (what `list devices` writes), `list_returncode`, `list_stderr`, `list_sleep`,
`refuses` (what every command for a phone fails with), `build_error` (what xcodebuild prints and fails with).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN_MAC"])
VERSIONS = {"-productName": "macOS", "-productVersion": "15.1", "-buildVersion": "24B83"}
PHONE = FOLDER / "phone"
WAIT_SECONDS = 60.0


def main(name: str, arguments: list[str]) -> int:
    state = json.loads((FOLDER / "state.json").read_text())
    if name == "sw_vers":
        print(VERSIONS[arguments[0]])
        return 0
    if name == "sysctl":
        value = state["sysctl"].get(arguments[1])
        print(value if value is not None else "unknown oid")
        return 0 if value is not None else 1
    if name == "xcrun":
        if arguments[:1] == ["--find"]:
            print(FOLDER / "xcode" / arguments[1])
            return 0
        return main(arguments[0], arguments[1:])
    if name == "xcodebuild":
        return build(state, arguments)
    return devicectl(state, arguments)


def build(state: dict, arguments: list[str]) -> int:
    if arguments == ["-version"]:
        print("Xcode 16.1\nBuild version 16B40")
        return 0
    if state.get("build_error"):
        print(state["build_error"])
        return 65
    root = next(argument[8:] for argument in arguments if argument.startswith("SYMROOT="))
    Path(root, "Release-iphoneos", "modelrunnerd.app").mkdir(parents=True)
    return 0


def devicectl(state: dict, arguments: list[str]) -> int:
    options = {key: value for key, value in itertools.pairwise(arguments) if key.startswith("-")}
    options |= dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    out = options.get("--json-output") or options.get("-j")
    if arguments[:2] == ["list", "devices"]:
        return listed(state, out)
    if state.get("refuses"):
        print(f"ERROR: {state['refuses']}", file=sys.stderr)
        return 1
    command = arguments[1:3]
    if command == ["info", "details"]:
        (FOLDER / "tunnel").touch()
        return 0
    if command == ["install", "app"]:
        result = {"installedApplications": [{"bundleID": "com.coremltools.modelrunnerd", "databaseUUID": "1"}]}
        return answered(out, result)
    if command == ["process", "launch"]:
        shutil.rmtree(PHONE, ignore_errors=True)
        (PHONE / "Documents/modelrunnerd").mkdir(parents=True)
        os.execv(state["python"], [state["python"], "-m", "tests.devices.mac_app", str(PHONE)])
    if command == ["copy", "to"]:
        return copied(Path(options["--source"]), PHONE / options["--destination"], out, 0)
    if command == ["copy", "from"]:
        return copied(PHONE / options["--source"], Path(options["--destination"]), out, WAIT_SECONDS)
    print(f"ERROR: unknown command {arguments}", file=sys.stderr)
    return 64


def listed(state: dict, out: str) -> int:
    time.sleep(state.get("list_sleep", 0))
    found = state["listing"]
    if isinstance(found, dict) and (FOLDER / "tunnel").exists():
        for device in found["result"]["devices"]:
            device["connectionProperties"]["tunnelState"] = "connected"
    Path(out).write_text(found if isinstance(found, str) else json.dumps(found, indent=2))
    print(state.get("list_stderr", ""), file=sys.stderr)
    return state.get("list_returncode", 0)


def copied(source: Path, target: Path, out: str, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while not source.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    if not source.exists():
        print("ERROR: The specified file could not be found.", file=sys.stderr)
        return 1
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        part = target.with_name(target.name + ".part")
        shutil.copyfile(source, part)
        part.replace(target)
    return answered(out, {"source": str(source), "destination": str(target)})


def answered(out: str, result: dict) -> int:
    Path(out).write_text(json.dumps({"info": {"outcome": "success"}, "result": result}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[0]).name, sys.argv[1:]))
