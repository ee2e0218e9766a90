"""The native runner's program, compiled on this host for a device's processor with the compiler of the ziglang wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from edgekit.core import schema
from edgekit.core.errors import BackendError, StableDeviceError
from edgekit.core.extras import require, version_of
from edgekit.core.files import sha256_bytes, sha256_file
from edgekit.core.places import cache_dir

EXTRA = "native"
SECONDS = 600.0
TARGETS = {arch: f"{arch}-linux-gnu.2.28" for arch in ("aarch64", "x86_64")}
"""What the compiler calls a processor, with the oldest glibc that the program starts with."""
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-s")
LIBRARIES = ("-lm", "-ldl")


def folder() -> Path:
    """Where the sources are."""
    return Path(__file__).resolve().parent / "_native"


@cache
def abi() -> str:
    """The release family of LiteRT whose C API the program speaks: `2.3`."""
    found = re.search(r'#define LITERT_ABI_RELEASE "([\d.]+)"', (folder() / "litert.h").read_text(encoding="utf-8"))
    if found is None:
        raise BackendError(f"{folder() / 'litert.h'} does not say which release of LiteRT it is for.")
    return found[1]


def program(arch: object, device: str) -> Path:
    """The program for a processor, from the cache or the compiler.

    Args:
        arch: As the device's facts name it.
        device: The device's name.

    Raises:
        StableDeviceError: There is no LiteRT for that processor.
        MissingExtraError: The compiler is not installed.
        BackendError: The compiler failed.
    """
    from filelock import FileLock

    if arch not in TARGETS:
        raise StableDeviceError(
            f"'{device}' is {arch or 'a processor that it does not name'}; the native runner is made for"
            f" {' and '.join(TARGETS)}.",
            "Where the device has Python, the runner agent can run ONNX artifacts: edgekit deploy --backend onnxruntime",
        )
    require("ziglang", EXTRA, "the native runner")
    target = _cache() / key(str(arch)) / "edgekit-runner"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.is_file():
                _compile(TARGETS[str(arch)], target)
    return target


def key(arch: str) -> str:
    """Identity of what a compilation gives: sources, flags, compiler and processor."""
    sources = {path.name: sha256_file(path) for path in sorted(folder().glob("*.[ch]"))}
    return sha256_bytes(schema.canonical_json([sources, [*FLAGS, *LIBRARIES], version_of("ziglang"), TARGETS[arch]]))[
        :32
    ]


def _cache() -> Path:
    return cache_dir() / "native" / "programs"


def _compile(target: str, out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".", suffix=".part") as staging:
        made = Path(staging) / out.name
        argv = [sys.executable, "-m", "ziglang", "cc", "-target", target, *FLAGS, "-o", str(made)]
        argv += [*map(str, sorted(folder().glob("*.c"))), *LIBRARIES]
        # Its own caches would stand in the person's home.
        own = {f"ZIG_{kind}_CACHE_DIR": str(cache_dir() / "native" / "compiler") for kind in ("GLOBAL", "LOCAL")}
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
                env=os.environ | own,
            )
        except subprocess.TimeoutExpired as error:
            raise BackendError(f"The compiler took longer than {SECONDS:.0f} s for the native runner.") from error
        if done.returncode != 0 or not made.is_file():
            raise BackendError(
                f"The compiler of ziglang {version_of('ziglang')} could not make the native runner for {target}:"
                f" {(done.stderr or done.stdout).strip()[:600] or f'exit status {done.returncode}'}",
                f"pip install --force-reinstall 'edgekit[{EXTRA}]'",
            )
        made.chmod(0o755)
        made.replace(out)
