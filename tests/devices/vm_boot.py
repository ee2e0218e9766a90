"""What a virtual Raspberry Pi boots: Debian's kernel for clouds, and a first root file system with the modules for its disk.

The kernel and busybox are fetched once and kept (`~/.cache/edgekit-tests/`); the archive that the kernel unpacks is made
anew for each machine, for it carries the machine's keys.
"""

from __future__ import annotations

import gzip
import re
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tests.devices.debian import Apt, unpack
from tests.devices.rootfs import UnavailableError, cache_folder

RECIPE = "1"
"""Changes with what `_fetch` puts there."""
KERNEL = "linux-image-cloud-arm64"
MODULES = ("virtio_pci", "virtio_blk", "virtio_net")
SETTINGS = "settings"
_INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in MODULES; do /bin/busybox insmod "/modules/$module.ko"; done
tries=0
while [ ! -b /dev/vda ] && [ "$tries" -lt 100 ]; do /bin/busybox sleep 0.1; tries=$((tries + 1)); done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mkdir -p /root/vm
/bin/busybox cp -p /settings/* /bin/busybox /root/vm/
/bin/busybox ln -sf busybox /root/vm/init
/bin/busybox cp /settings/inittab /root/etc/inittab
/bin/busybox umount /proc
exec /bin/busybox switch_root /root /vm/init
"""


@dataclass(frozen=True)
class Boot:
    """Where the parts are.

    Attributes:
        kernel: The kernel's image.
        busybox: A static busybox for the machine.
        modules: Kernel modules, by name.
    """

    kernel: Path
    busybox: Path
    modules: Mapping[str, Path]


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made under another name and renamed: it is there whole or not at all."""
    final = cache_folder() / name
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.with_name(f"{name}.lock")):
        if not final.is_dir():
            with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{name}-", suffix=".part") as staging:
                made = Path(staging) / "made"
                made.mkdir()
                make(made)
                made.rename(final)
    return final


def boot() -> Boot:
    """The kernel, its modules and busybox, from the cache or from Debian.

    Raises:
        UnavailableError: They cannot be fetched here.
    """
    folder = kept(f"vm-boot-{RECIPE}", _fetch)
    return Boot(folder / "vmlinuz", folder / "busybox", {path.stem: path for path in folder.glob("modules/*.ko")})


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        apt = Apt(Path(scratch) / "apt", "arm64")
        images = [name for name in apt.needs(KERNEL) if name.startswith("linux-image-")]
        if len(images) != 1:
            raise UnavailableError(
                f"'{KERNEL}' should depend on one kernel; it depends on {', '.join(images) or 'none'}."
            )
        tree = Path(scratch) / "tree"
        for package in apt.fetch([*images, "busybox-static"]):
            unpack(package, tree)
        next((tree / "boot").glob("vmlinuz-*")).rename(folder / "vmlinuz")
        (tree / "bin/busybox").rename(folder / "busybox")
        (folder / "modules").mkdir()
        found = {path.stem.replace("-", "_"): path for path in tree.glob("lib/modules/*/kernel/**/*.ko")}
        for name in _with_needed(MODULES, found):
            found[name].rename(folder / f"modules/{name}.ko")


def _with_needed(names: tuple[str, ...], found: Mapping[str, Path]) -> list[str]:
    """Modules and those that they need, each after what it needs."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        for needed in _needed(found[name]):
            add(needed)
        order.append(name)

    for name in names:
        add(name)
    return order


def _needed(module: Path) -> list[str]:
    match = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return [name.replace("-", "_") for name in match[1].decode().split(",") if name] if match else []


def initrd(parts: Boot, settings: Mapping[str, tuple[str, int]]) -> bytes:
    """The archive that the kernel unpacks and starts from.

    Args:
        parts: Kernel modules and busybox.
        settings: Files for the machine's folder `/vm`: text and mode by name.
    """
    modules = _with_needed(MODULES, parts.modules)
    archive = _Archive()
    for folder in ("bin", "dev", "proc", "root", "modules", SETTINGS):
        archive.add(folder, b"", stat.S_IFDIR | 0o755)
    archive.add("bin/busybox", parts.busybox.read_bytes(), stat.S_IFREG | 0o755)
    for name in modules:
        archive.add(f"modules/{name}.ko", parts.modules[name].read_bytes(), stat.S_IFREG | 0o644)
    for name, (text, mode) in settings.items():
        archive.add(f"{SETTINGS}/{name}", text.encode(), stat.S_IFREG | mode)
    archive.add("init", _INIT.replace("MODULES", " ".join(modules)).encode(), stat.S_IFREG | 0o755)
    return gzip.compress(archive.closed(), compresslevel=1, mtime=0)


class _Archive:
    """A cpio archive of the form that the kernel reads (`newc`)."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._count = 0

    def add(self, name: str, content: bytes, mode: int) -> None:
        self._count += 1
        path = name.encode() + b"\0"
        # inode, mode, owner, group, links, time, size, device and special device (two numbers each), name, checksum
        numbers = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        self._bytes += b"070701" + b"".join(b"%08X" % number for number in numbers) + path
        self._pad()
        self._bytes += content
        self._pad()

    def _pad(self) -> None:
        self._bytes += bytes(-len(self._bytes) % 4)

    def closed(self) -> bytes:
        """The whole archive."""
        self.add("TRAILER!!!", b"", 0)
        return bytes(self._bytes)
