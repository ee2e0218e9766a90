"""Programs of another instruction set, run by QEMU through the kernel's binfmt_misc."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/proc/sys/fs/binfmt_misc")
_FLAGS = "OCF"
"""The interpreter gets an open file (O) and the file's own rights (C), and is opened now (F): so it works in a chroot."""
_ANY, _ALL = r"\x00", r"\xff"


@dataclass(frozen=True)
class Interpreter:
    """How programs of an instruction set are known, and what runs them.

    Attributes:
        program: The emulator.
        machine: `e_machine` of their ELF header.
        is_64bit: Whether their class is ELFCLASS64.
    """

    program: str
    machine: int
    is_64bit: bool

    @property
    def magic(self) -> str:
        """The first 20 bytes of a program: identification, type (executable; see `mask`), machine."""
        kind = r"\x02" if self.is_64bit else r"\x01"
        return rf"\x7fELF{kind}\x01\x01" + _ANY * 9 + r"\x02\x00" + rf"\x{self.machine:02x}\x00"

    @property
    def mask(self) -> str:
        """Which of their bits count: neither the system's name nor whether it is position-independent."""
        return _ALL * 7 + r"\x00" + _ALL * 8 + r"\xfe\xff" + _ALL * 2


INTERPRETERS = {
    "arm64": Interpreter("qemu-aarch64-static", 183, is_64bit=True),
    "armhf": Interpreter("qemu-arm-static", 40, is_64bit=False),
}
"""By Debian's name of the instruction set."""


def register(arch: str) -> None:
    """Have the kernel run programs for `arch` by QEMU, unless it does already.

    Raises:
        OSError: The kernel will not: there is no binfmt_misc, or no right to it.
    """
    interpreter = INTERPRETERS[arch]
    if not (FOLDER / "register").exists():
        done = subprocess.run(
            ["mount", "-t", "binfmt_misc", "binfmt_misc", str(FOLDER)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise OSError(done.stderr.strip() or "it cannot be mounted")
    program = shutil.which(interpreter.program)
    name = interpreter.program.removesuffix("-static")
    if is_registered(name):
        return
    if (FOLDER / name).exists():
        # One without F: its interpreter is looked for inside the chroot, where it is not.
        (FOLDER / name).write_text("-1")
    line = f":{name}:M::{interpreter.magic}:{interpreter.mask}:{program}:{_FLAGS}"
    (FOLDER / "register").write_text(line)


def is_registered(name: str) -> bool:
    """Whether the kernel has an enabled interpreter of that name that works in a chroot."""
    entry = FOLDER / name
    if not entry.exists():
        return False
    text = entry.read_text()
    flags = next((line.partition(":")[2] for line in text.splitlines() if line.startswith("flags:")), "")
    return text.startswith("enabled") and "F" in flags
