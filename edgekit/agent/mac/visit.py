"""Answers for a Mac: the agent's requests, and what the Mac and its Xcode know. Standard library only, Python 3.9 or newer.

Reads one JSON request and prints one JSON document, as agent.py does, which it stands beside.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

# On a device these files lie side by side and belong to no package.
import agent  # type: ignore[import-not-found]
import facts  # type: ignore[import-not-found]
import store  # type: ignore[import-not-found]

MAX_LISTING_BYTES = 4 << 20
QUICK_SECONDS = 20.0
LIST_SECONDS = 60.0
HERE = os.path.dirname(os.path.abspath(__file__))
OURS = re.compile(r"[0-9a-f]{16}")
"""Folders of files like these, beside their own; a phone's app is kept there too."""
Json = dict[str, Any]


def said(*argv: str) -> str | None:
    """The first line that a program prints; None where there is none, or it fails, or it takes too long."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=QUICK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def system() -> str | None:
    """`macOS 15.1 (24B83)`; None where this is no Mac."""
    name, version, build = (said("sw_vers", "-" + key) for key in ("productName", "productVersion", "buildVersion"))
    return f"{name} {version} ({build})" if name and version else None


def mac_facts() -> Json:
    """The agent's facts, with what only a Mac's own programs tell in place of what /proc and /sys would."""

    def number(key: str) -> int | None:
        text = said("sysctl", "-n", key) or ""
        return int(text) if text.isdigit() else None

    found: Json = facts.read()
    cores, memory, load = number("hw.ncpu"), number("hw.memsize"), os.getloadavg()[0]
    found.update(
        os=system(),
        arch="aarch64" if number("hw.optional.arm64") == 1 else found["arch"],
        cpu_model=said("sysctl", "-n", "machdep.cpu.brand_string"),
        machine_model=said("sysctl", "-n", "hw.model"),
        cores=cores or os.cpu_count(),
        ram_mib=round(memory / (1 << 20), 1) if memory else None,
        load_1min=round(load, 2),
    )
    return found


def version_of(distribution: str) -> str | None:
    """The version of a distribution of this interpreter's."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def tools() -> Json:
    """What is here of all that a visit may need."""
    return {
        "macos": system(),
        "python": sys.executable,
        "coremltools": version_of("coremltools"),
        "numpy": version_of("numpy"),
        "xcrun": shutil.which("xcrun"),
        "xcode": said("xcodebuild", "-version"),
        "devicectl": said("xcrun", "--find", "devicectl"),
    }


def listing() -> Json:
    """What `devicectl` says of all devices that it knows: the text of its JSON, as it is."""
    handle, path = tempfile.mkstemp(suffix=".json", prefix="edgekit-devices-")
    os.close(handle)
    argv = ["xcrun", "devicectl", "list", "devices", "--timeout", "15", "--json-output", path]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIST_SECONDS, check=False)
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            text = stream.read(MAX_LISTING_BYTES).decode("utf-8", "replace")
        complaint = done.stderr.decode("utf-8", "replace").strip()[-600:]
        return {"returncode": done.returncode, "stderr": complaint, "bytes": size, "text": text}
    except subprocess.TimeoutExpired:
        raise store.AgentError(
            "timeout", f"`xcrun devicectl list devices` took longer than {LIST_SECONDS:.0f} s"
        ) from None
    finally:
        store.remove(path)


def look(request: Json, root: str) -> Json:
    """What is here: the agent's `inspect`, the tools, and with `"phones": true` the devices that Xcode knows."""
    found = agent.inspect(dict(request, model=None), root)
    for name in store.names(os.path.dirname(HERE)):
        path = os.path.join(os.path.dirname(HERE), name)
        if OURS.fullmatch(name) and store.is_old(path) and path != HERE:
            store.remove(path)
    found_tools = tools()
    wanted = store.field(request, "phones", bool) and found_tools["devicectl"]
    return {
        "facts": mac_facts(),
        "missing": found["missing"],
        "free_bytes": found["free_bytes"],
        "tools": found_tools,
        "listing": listing() if wanted else None,
    }


def run(request: Json, root: str) -> Json:
    """The agent's `run`, with a Mac's facts; nothing becomes a release here."""
    if store.field(request, "release", bool):
        raise store.AgentError("request", "a Mac keeps no releases")
    before = mac_facts()
    return dict(agent.run(request, root), facts_before=before, facts_after=mac_facts())


def main() -> None:
    """Answer one request."""
    agent.COMMANDS = {"look": look, "run": run}
    os.utime(HERE)
    agent.main()


if __name__ == "__main__":
    main()
