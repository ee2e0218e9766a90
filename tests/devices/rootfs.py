"""Small Debian systems for Arm, built from packages and kept between runs: `python -m tests.devices.rootfs arm64`.

What makes them quick to build is that nothing of them runs while they are built: debootstrap fetches the packages and
checks their signatures, all are unpacked by this machine, and the few files that their install scripts would write are
written here. QEMU then runs their programs through the kernel's binfmt_misc.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock

from tests.devices import binfmt

INSTALL = "bash scripts/install-system-packages.sh   (Debian: debootstrap, debian-archive-keyring, qemu-user-static)"
CACHE_VARIABLE = "EDGEKIT_TESTS_CACHE"
MIRROR_VARIABLE = "EDGEKIT_DEBIAN_MIRROR"
_FETCH_SECONDS = 1200
_VERSION = 2
"""Counts changes of this file that make another tree out of the same recipe."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What a root file system is made of.

    Attributes:
        arch: Debian's name of the instruction set.
        suite: Debian's release: it decides which Python and which glibc there is.
        packages: Beside those that no Debian is without.
        components: Parts of the archive.
    """

    arch: str
    suite: str
    packages: tuple[str, ...]
    components: tuple[str, ...] = ("main",)
    version: int = field(default=_VERSION, init=False)

    @property
    def key(self) -> str:
        """Identity: another recipe has another one."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


RECIPES = {
    # Python 3.11 and glibc 2.36, as on Raspberry Pi OS bookworm; mksh and toybox are what Android has.
    "arm64": Recipe("arm64", "bookworm", ("python3", "openssh-server", "mksh", "toybox")),
    # The same for the 32-bit system, for which no index but Raspberry Pi's own has numpy wheels.
    "armhf": Recipe("armhf", "bookworm", ("python3", "python3-numpy", "openssh-server")),
    # Python 3.9 and glibc 2.31: too old for LiteRT's wheels.
    "arm64-bullseye": Recipe("arm64", "bullseye", ("python3", "openssh-server")),
}
"""By name."""


class UnavailableError(Exception):
    """This machine cannot build or run such a system; says what it lacks and what to type."""


def cache_folder() -> Path:
    """Where built systems are kept: `EDGEKIT_TESTS_CACHE`, else the place for caches by the XDG specification."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "edgekit-tests"


def require_tools(name: str) -> None:
    """Check that the system of that name can be built and run here.

    Raises:
        UnavailableError: Not; says why.
    """
    if name not in RECIPES:
        raise UnavailableError(f"There is no recipe '{name}'. Known: {', '.join(RECIPES)}.")
    if sys.platform != "linux":
        raise UnavailableError(f"Emulated Arm systems need Linux; this is {sys.platform}.")
    if os.geteuid() != 0:
        raise UnavailableError("Emulated Arm systems need root, for chroot, mounts and binfmt_misc: run it with sudo.")
    wanted = ("debootstrap", "dpkg-deb", "tar", "unshare", "nsenter", "setpriv", emulator_of(name))
    lacking = [program for program in wanted if shutil.which(program) is None]
    if lacking:
        raise UnavailableError(f"Emulated Arm systems need {', '.join(lacking)}, not installed here: {INSTALL}")


def emulator_of(name: str) -> str:
    """The program that runs a system's programs."""
    return binfmt.INTERPRETERS[RECIPES[name].arch].program


def ensure(name: str, say: Say = lambda _: None) -> Path:
    """The root file system of that name, built now or earlier; it is to be used read-only.

    Args:
        name: A name in `RECIPES`.
        say: Told what is done.

    Raises:
        UnavailableError: It cannot be built or run here.
    """
    require_tools(name)
    recipe = RECIPES[name]
    try:
        binfmt.register(recipe.arch)
    except OSError as error:
        raise UnavailableError(
            f"The kernel takes no interpreter for {recipe.arch} programs here (binfmt_misc): {error}."
        ) from error
    final = cache_folder() / f"{recipe.suite}-{recipe.arch}-{recipe.key}"
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.with_name(f"{final.name}.lock")):
        if final.is_dir():
            say(f"{final} is there already")
            return final
        _forget_older(final)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}-", suffix=".part") as staging:
            tree = Path(staging) / "root"
            _build(recipe, tree, say)
            tree.rename(final)
    say(f"{final} is ready")
    return final


def _forget_older(final: Path) -> None:
    """Remove what earlier recipes of a system, and builds of it that were killed, have left."""
    system = final.name.rpartition("-")[0]
    for path in [*final.parent.glob(f"{system}-*"), *final.parent.glob(f".{system}-*.part")]:
        if path.is_dir() and path != final:
            shutil.rmtree(path)


def _build(recipe: Recipe, tree: Path, say: Say) -> None:
    started = time.monotonic()
    say(f"fetching Debian {recipe.suite} for {recipe.arch}: {', '.join(recipe.packages)}, and what they need")
    _fetch(recipe, tree, say)
    packages = [line.split() for line in (tree / "debootstrap" / "debpaths").read_text().splitlines()]
    say(f"unpacking {len(packages)} packages")
    for _, path in packages:
        _unpack(tree / path.lstrip("/"), tree)
    say("writing what their install scripts would have written")
    _finish(tree)
    say("trying it")
    _try(recipe, tree)
    say(f"done in {time.monotonic() - started:.0f} s, {_mib(tree)} MiB")


def _fetch(recipe: Recipe, tree: Path, say: Say) -> None:
    """The first stage of debootstrap: packages, checked against Debian's signatures."""
    argv = ["debootstrap", f"--arch={recipe.arch}", "--foreign", "--variant=minbase", "--force-check-gpg"]
    argv += [f"--components={','.join(recipe.components)}", f"--include={','.join(recipe.packages)}"]
    argv += [recipe.suite, str(tree), *filter(None, [os.environ.get(MIRROR_VARIABLE)])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("E:", "W:"))]
        raise UnavailableError(
            f"debootstrap cannot fetch Debian {recipe.suite} for {recipe.arch}: {' '.join(lines[-3:]) or done.stderr}"
            f" Another mirror is taken from {MIRROR_VARIABLE}."
        )
    say(f"fetched {sum('Validating' in line for line in done.stdout.splitlines())} files")


def _unpack(package: Path, tree: Path) -> None:
    # `dpkg-deb --extract` alone may put a directory in the place of the link /lib -> usr/lib.
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as source:
        argv = ["tar", "--extract", "--keep-directory-symlink", "--same-permissions", "--directory", str(tree)]
        subprocess.run(argv, stdin=source.stdout, check=True)
    if source.returncode != 0:
        raise UnavailableError(f"dpkg-deb cannot read {package.name}: remove it and try again.")


def _finish(tree: Path) -> None:
    """What the packages' own scripts would do, as far as logging in and running Python need it."""
    shutil.rmtree(tree / "debootstrap")
    shutil.rmtree(tree / "var" / "cache" / "apt" / "archives", ignore_errors=True)
    for name in ("proc", "sys", "dev"):
        # In a container debootstrap makes /proc a link to the host's.
        if (tree / name).is_symlink():
            (tree / name).unlink()
        (tree / name).mkdir(exist_ok=True)
    masters = tree / "usr" / "share" / "base-passwd"
    passwd, group = (masters / "passwd.master").read_text(), (masters / "group.master").read_text()
    passwd += "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    (tree / "etc" / "passwd").write_text(passwd.replace("root:*:", "root:x:"))
    (tree / "etc" / "group").write_text(group)
    shadow = "".join(f"{line.partition(':')[0]}:*:20000:0:99999:7:::\n" for line in passwd.splitlines())
    (tree / "etc" / "shadow").write_text(shadow)
    (tree / "etc" / "shadow").chmod(0o640)
    # NumPy finds these two through links that update-alternatives makes.
    libraries = [f"/{path.relative_to(tree)}" for path in tree.glob("usr/lib/*/*") if path.name in ("blas", "lapack")]
    (tree / "etc" / "ld.so.conf.d" / "alternatives.conf").write_text("".join(f"{path}\n" for path in libraries))
    (tree / "etc" / "hostname").write_text("emulated-pi\n")
    (tree / "etc" / "hosts").write_text("127.0.0.1 localhost emulated-pi\n")
    (tree / "run" / "sshd").mkdir(parents=True, exist_ok=True)
    (tree / "root").mkdir(mode=0o700, exist_ok=True)


def _try(recipe: Recipe, tree: Path) -> None:
    """The loader's cache, made by the system's own ldconfig, and proof that its Python starts."""
    for argv in (["/sbin/ldconfig"], ["/usr/bin/python3", "-c", "import ssl, ctypes, lzma; print(1)"]):
        done = subprocess.run(["chroot", str(tree), *argv], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise UnavailableError(
                f"{argv[0]} of Debian {recipe.suite} for {recipe.arch} does not run here: {done.stderr.strip()[-300:]}"
            )


def _mib(tree: Path) -> int:
    found = (path.lstat() for path in tree.rglob("*"))
    return sum(entry.st_blocks for entry in found) * 512 >> 20


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.devices.rootfs", description=__doc__)
    parser.add_argument("system", choices=sorted(RECIPES))
    system = parser.parse_args().system
    try:
        print(ensure(system, lambda text: print(text, file=sys.stderr, flush=True)))
    except UnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
