"""An emulated Raspberry Pi: a Debian system for Arm whose programs run under QEMU, with an SSH server of its own.

Everything it runs is in name spaces of its own that end with the process that started it, however that ends: no mount
and no process is ever left behind. Its speed and its memory are the emulator's and say nothing of a board's.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.core.device import Device
from tests.devices import rootfs
from tests.devices.sshd import LoginKey, Sshd, eventually

CORES = 4
_TMPFS = "size=50%,mode=755"


@dataclass(frozen=True)
class Board:
    """What is emulated.

    Attributes:
        system: What runs on it: a name in `rootfs.RECIPES`.
        cpu: QEMU's name of the processor. Its default one has what no Pi has, and gave wrong int8 results.
        features: What the kernel of such a board says the processor can do.
        part: The number of the core design, as its identification register gives it.
    """

    system: str
    cpu: str
    features: str
    part: int

    @property
    def cpuinfo(self) -> str:
        """/proc/cpuinfo of the emulated processor; QEMU shows programs the host's."""
        return "".join(
            f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {self.part:#05x}\nCPU revision\t: 3\n\n"
            for core in range(CORES)
        )


PI4 = Board("arm64", "cortex-a72", "fp asimd evtstrm crc32 cpuid", 0xD08)
PI4_BULLSEYE = dataclasses.replace(PI4, system="arm64-bullseye")
PI4_32BIT = Board(
    "armhf",
    "cortex-a15",
    "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm",
    0xC0F,
)
"""QEMU's user mode runs 32-bit programs on 32-bit processors only: the largest of those with the same instructions."""


class EmulatedPi(Sshd):
    """A private SSH server inside an emulated system; its home folder is a folder of this machine too.

    Args:
        folder: An empty folder for everything it needs; it has the same path inside.
        key: The key that may log in.
        board: What is emulated.
        target: The target that its `device()` is of.
        settings: More lines for its sshd_config.

    Raises:
        rootfs.UnavailableError: On `start`: this machine cannot run it.
    """

    def __init__(
        self,
        folder: Path,
        key: LoginKey,
        board: Board = PI4,
        target: str = "rpi4",
        settings: tuple[str, ...] = (),
    ) -> None:
        super().__init__(folder, key, settings=settings)
        self.user = "root"
        self.board = board
        self.target = target
        self.environment["QEMU_CPU"] = board.cpu

    def device(self, name: str = "pi", *, port: int | None = None, trusted: bool = True, **options: object) -> Device:
        """See `Sshd.device`; marked as emulated."""
        found = super().device(name, port=port, trusted=trusted, **options)
        return dataclasses.replace(found, target=self.target, emulated=True)

    @property
    def pid(self) -> int:
        """See `Sshd.pid`: what was started is outside, and its one child is the first process inside."""
        outside = super().pid
        (inside,) = Path(f"/proc/{outside}/task/{outside}/children").read_text().split()
        return int(inside)

    def within(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs one inside the emulated system."""
        enter = [_path("nsenter"), f"--target={self.pid}", "--mount", "--pid", "--root"]
        return [*enter, "/usr/bin/env", "--chdir=/", f"QEMU_CPU={self.board.cpu}", *argv]

    def start(self) -> None:
        """See `Sshd.start`; builds the system first where that was not done yet."""
        self._tree = rootfs.ensure(self.board.system)
        super().start()

    def stop(self) -> None:
        """See `Sshd.stop`; returns when everything inside is gone, so that its folder can be removed."""
        namespace = self._namespace()
        super().stop()
        assert eventually(lambda: not _members(namespace)), "the emulated system does not end"

    def _namespace(self) -> str | None:
        """What the kernel calls the space that its processes are in; None where it does not run."""
        if self._process is None or self._process.poll() is not None:
            return None
        return str(Path(f"/proc/{self.pid}/ns/pid").readlink())

    def _prepare(self) -> None:
        super()._prepare()
        (self.folder / "mounts").mkdir(exist_ok=True)
        (self.folder / "cpuinfo").write_text(self.board.cpuinfo)
        boot = self.folder / "boot.sh"
        boot.write_text(_boot(self._tree, self.folder, self.board))
        boot.chmod(0o755)

    def _program(self) -> list[str]:
        # setpriv: when this process dies, so does the first one inside, and with it, by the kernel, all others there.
        alone = ["--mount", "--pid", "--fork", "--kill-child", "--propagation=private"]
        return [_path("setpriv"), "--pdeathsig=KILL", _path("unshare"), *alone, str(self.folder / "boot.sh")]

    def _has_penalties(self, config: Path) -> bool:
        return False  # its OpenSSH, 9.2, is older than they are


def _path(program: str) -> str:
    found = shutil.which(program)
    assert found, f"There is no {program}: {rootfs.INSTALL}"
    return found


def _members(namespace: str | None) -> list[str]:
    """Processes in a space."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/ns/pid"):
        try:
            if str(entry.readlink()) == namespace:
                found.append(entry.parts[2])
        except OSError:
            continue  # it ended while we looked
    return found


def _boot(tree: Path, folder: Path, board: Board) -> str:
    """The script that becomes the first process inside; its arguments are the server's."""
    root, own = shlex.quote(f"{folder}/mounts/root"), shlex.quote(str(folder))
    mounts = shlex.quote(f"{folder}/mounts")
    layers = shlex.quote(f"lowerdir={tree},upperdir={folder}/mounts/upper,workdir={folder}/mounts/work")
    return f"""#!/bin/sh
set -e
mount -t tmpfs -o {_TMPFS} edgekit-pi {mounts}
mkdir {mounts}/upper {mounts}/work {root}
mount -t overlay -o {layers} edgekit-pi {root}
mkdir -p {root}{own}
mount --bind {own} {root}{own}
mount -t proc proc {root}/proc
mount --bind {own}/cpuinfo {root}/proc/cpuinfo
# Without these XNNPACK is silently not applied; with the host's it crashes.
mkdir -p {root}/sys/devices/system/cpu
for name in possible present; do echo 0-{CORES - 1} > {root}/sys/devices/system/cpu/$name; done
exec env -i PATH=/usr/sbin:/usr/bin QEMU_CPU={board.cpu} {_path("chroot")} {root} /usr/sbin/sshd "$@"
"""
