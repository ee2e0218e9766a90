"""A device's PATH with a shell and small tools, and no Python: what a Buildroot or Yocto image has."""

from __future__ import annotations

import shutil
from pathlib import Path

TOOLS = {
    *("cat", "chmod", "cp", "date", "df", "find", "getconf", "grep", "head", "kill", "ln", "ls", "mkdir", "mv", "od"),
    "printf",
    *("readlink", "rm", "rmdir", "sha256sum", "sleep", "stat", "sync", "tail", "touch", "uname"),
}
SHELLS = {"dash": None, "mksh": "toybox", "busybox": "busybox"}
"""The program with the small tools, by shell; None for those of this machine."""


def missing(shell: str) -> str | None:
    """What this machine lacks of that kind of device, or None."""
    wanted = [shell, *filter(None, [SHELLS[shell]])]
    return next((f"apt-get install {name}" for name in wanted if shutil.which(name) is None), None)


def make_path(folder: Path, shell: str) -> Path:
    """A folder for PATH: `sh`, and the small tools."""
    folder.mkdir(parents=True)
    box = SHELLS[shell]
    (folder / "sh").symlink_to(str(shutil.which(shell)))
    for tool in TOOLS:
        # toybox has no getconf, as many small systems have none.
        source = shutil.which(box if box is not None else tool)
        if source is not None and not (box is not None and tool == "getconf"):
            (folder / tool).symlink_to(source)
    return folder
