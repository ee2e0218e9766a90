"""Runtime wheels for a device's own platform, fetched on the host: a device needs no network and no pip.

pip does the resolving and honours the person's own index and settings. What it chose is written down, so that the
second time needs neither network nor pip.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core import schema
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError
from edgekit.core.extras import normalized
from edgekit.core.files import sha256_bytes, sha256_file, write_atomic
from edgekit.core.places import cache_dir
from edgekit.core.workload import RuntimeRequirement

PIP_SECONDS = 1800
_OLDEST_GLIBC = {"x86_64": 5, "i686": 5}
_LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
_GLIBC = re.compile(r"glibc (\d+)\.(\d+)")
_PYTHON = re.compile(r"3\.(\d+)(\.|$)")
_WHEEL = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[^-\s/]+)(-\d[^-\s/]*)?"
    r"-(?P<python>[^-\s/]+)-(?P<abi>[^-\s/]+)-(?P<platform>[^-\s/]+)\.whl"
)
_UNREACHABLE = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|Max retries")


@dataclass(frozen=True)
class Wheel:
    """One wheel.

    Attributes:
        name: Its file name.
        sha256: Of its bytes.
        bytes: Its size.
        unpacked: What its files take when unpacked.
    """

    name: str
    sha256: str
    bytes: int
    unpacked: int


@dataclass(frozen=True)
class WheelSet:
    """The wheels of one runtime for one platform.

    Attributes:
        digest: Identity of the set.
        wheels: Its wheels, by name.
        folder: Where their files are, named by their hashes.
    """

    digest: str
    wheels: tuple[Wheel, ...]
    folder: Path

    def path(self, wheel: Wheel) -> Path:
        """The file of a wheel."""
        return self.folder / wheel.sha256

    @property
    def unpacked(self) -> int:
        """Bytes that the runtime takes on the device."""
        return sum(wheel.unpacked for wheel in self.wheels)


@dataclass(frozen=True)
class Platform:
    """What decides which wheels fit a device.

    Attributes:
        arch: As wheels name it: `aarch64`.
        glibc: Minor version of its glibc 2.
        python: Minor version of its CPython 3.
    """

    arch: str
    glibc: int
    python: int

    @property
    def tags(self) -> tuple[str, ...]:
        """Platform tags that fit, the newest first, under all the names in use."""
        found = []
        for minor in range(self.glibc, _OLDEST_GLIBC.get(self.arch, 17) - 1, -1):
            found.append(f"manylinux_2_{minor}_{self.arch}")
            if minor in _LEGACY:
                found.append(f"{_LEGACY[minor]}_{self.arch}")
        return (*found, f"linux_{self.arch}")

    def __str__(self) -> str:
        return f"CPython 3.{self.python} on {self.arch} with glibc 2.{self.glibc}"


@dataclass(frozen=True)
class _Lock:
    schema_version: int
    wheels: tuple[Wheel, ...]


def platform_of(requirement: RuntimeRequirement, facts: Mapping[str, Any]) -> Platform:
    """The platform of a device by its facts.

    Raises:
        StableDeviceError: It has no CPython 3 or no glibc, or one too old for the runtime; said before anything is sent.
    """
    name = facts.get("hostname") or "The device"
    libc, python = _GLIBC.fullmatch(str(facts.get("libc"))), _PYTHON.match(str(facts.get("python")))
    if facts.get("implementation") != "CPython" or python is None or not isinstance(facts.get("arch"), str):
        raise StableDeviceError(
            f"{name} has no CPython 3 that runtime wheels exist for"
            f" (it has {facts.get('implementation')} {facts.get('python')}).",
            "Install CPython 3.11 or newer there, and name it as `python:` of the device in devices.yaml; or, for LiteRT"
            " models, set `runner: native` of the device: it needs no Python there.",
        )
    if libc is None or libc[1] != "2":
        raise StableDeviceError(
            f"{name} has no glibc ({facts.get('libc') or facts.get('os') or 'another C library'}), and the wheels of"
            f" {', '.join(requirement.packages)} need it.",
            "Use a system with glibc (Debian, Ubuntu, Raspberry Pi OS, Fedora, Yocto with glibc).",
        )
    needed = re.fullmatch(r"2\.(\d+)", requirement.min_glibc or "")
    if needed and int(libc[2]) < int(needed[1]):
        raise no_wheel(
            requirement.packages[0],
            f"{name} has {libc[0]}, but {', '.join(requirement.packages)} needs glibc {requirement.min_glibc} or newer.",
            "Use a newer system there (Debian 12, Ubuntu 22.04, Raspberry Pi OS bookworm or newer), pin an older runtime"
            " under `runtimes:` of the target, or compile with --backend onnxruntime.",
        )
    return Platform(facts["arch"], int(libc[2]), int(python[1]))


def resolve(requirement: RuntimeRequirement, facts: Mapping[str, Any], *, dependencies: bool = True) -> WheelSet:
    """The wheels that a device of those facts needs, from the cache or through pip.

    Args:
        requirement: What it needs.
        facts: What it is.
        dependencies: Whether what the packages depend on is taken too.

    Raises:
        StableDeviceError: No wheels fit the device.
        TransientDeviceError: The package index cannot be reached.
        ConfigError: This Python has no pip.
    """
    from filelock import FileLock

    platform = platform_of(requirement, facts)
    folder = cache_dir() / "wheels" / "files"
    identity: list[object] = [requirement, platform, *([] if dependencies else ["alone"])]
    key = sha256_bytes(schema.canonical_json(identity))[:32]
    path = folder.parent / "locks" / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _known(path, folder)
    if known is None:
        with FileLock(path.with_suffix(".lock")):
            known = _known(path, folder)
            if known is None:
                known = _download(requirement, platform, folder, dependencies)
                write_atomic(path, schema.to_json(_Lock(schema.SCHEMA_VERSION, known)))
    digest = sha256_bytes(schema.canonical_json([[wheel.name, wheel.sha256] for wheel in known]))[:16]
    return WheelSet(digest, known, folder)


def _known(path: Path, folder: Path) -> tuple[Wheel, ...] | None:
    """What a lock file says, while all its wheels are still there."""
    if not path.exists():
        return None
    try:
        wheels = schema.versioned(_Lock, schema.load_json(path)).wheels
    except ConfigError:
        # Written by another version of edgekit: it can be made again.
        return None
    there = all((folder / w.sha256).is_file() and (folder / w.sha256).stat().st_size == w.bytes for w in wheels)
    return wheels if there else None


def _download(
    requirement: RuntimeRequirement, platform: Platform, folder: Path, dependencies: bool
) -> tuple[Wheel, ...]:
    excluded = {normalized(name) for name in requirement.exclude}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".part") as staging:
        done = _pip(requirement, platform, Path(staging), dependencies)
        if done.returncode != 0:
            raise _explained(requirement, platform, done.stdout + done.stderr)
        wheels = []
        for file in sorted(Path(staging).glob("*.whl")):
            match = _WHEEL.fullmatch(file.name)
            if match is None or normalized(match["name"]) in excluded:
                continue
            wheel = Wheel(file.name, sha256_file(file), file.stat().st_size, _unpacked(file))
            file.replace(folder / wheel.sha256)
            wheels.append(wheel)
    return tuple(wheels)


def _unpacked(wheel: Path) -> int:
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _pip(
    requirement: RuntimeRequirement, platform: Platform, out: Path, dependencies: bool
) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pip", "download", "-vv", "--no-input", "--disable-pip-version-check"]
    argv += ["--only-binary=:all:", "--implementation", "cp", "--python-version", f"3.{platform.python}"]
    for abi in (f"cp3{platform.python}", "abi3", "none"):
        argv += ["--abi", abi]
    for tag in platform.tags:
        argv += ["--platform", tag]
    argv += [] if dependencies else ["--no-deps"]
    argv += ["--dest", str(out), *requirement.packages]
    try:
        return subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise TransientDeviceError(
            f"pip took longer than {PIP_SECONDS // 60} min to fetch {', '.join(requirement.packages)}.",
            "Check the connection to the package index, then try again.",
        ) from error


def _explained(
    requirement: RuntimeRequirement, platform: Platform, said: str
) -> StableDeviceError | TransientDeviceError | ConfigError:
    packages = ", ".join(requirement.packages)
    if "No module named pip" in said:
        return ConfigError(
            "This Python has no pip, which fetches the runtime for a device.", f"{sys.executable} -m ensurepip"
        )
    failed = re.search(r"ERROR: No matching distribution found for ([^\s(]+)", said)
    if failed is None or _UNREACHABLE.search(said):
        lines = [line for line in said.splitlines() if line.startswith("ERROR:")]
        reason = lines[-1].removeprefix("ERROR:").strip()[:300] if lines else "pip did not say why"
        kind = TransientDeviceError if _UNREACHABLE.search(said) else StableDeviceError
        return kind(
            f"pip cannot fetch {packages} for {platform}: {reason}",
            f"See what it says: {sys.executable} -m pip download {' '.join(requirement.packages)}",
        )
    offers = _offers(failed[1], said)
    exist = f" There are wheels for {offers}." if offers else ""
    # The public index has few wheels for 32-bit Arm; piwheels builds them.
    index = (
        ", add an index that has such wheels to pip's settings (piwheels)" if platform.arch.startswith("armv") else ""
    )
    return no_wheel(
        failed[1],
        f"There is no wheel of {failed[1]} for {platform}.{exist}",
        "Install a Python that has one there and name it as `python:` of the device in devices.yaml, pin another version"
        f" under `runtimes:` of the target{index}, or compile with another --backend.",
    )


def no_wheel(requirement: str, message: str, hint: str) -> StableDeviceError:
    """The error that says that no wheel of a requirement fits a device; `details` names it."""
    error = StableDeviceError(message, hint)
    error.details = {"no_wheel": requirement}
    return error


def _offers(requirement: str, said: str) -> str:
    """Platforms that pip saw wheels of a pinned requirement for, in its verbose words."""
    name, _, version = requirement.partition("==")
    found: dict[str, set[str]] = {}
    for match in _WHEEL.finditer(said):
        if normalized(match["name"]) == normalized(name) and (not version or match["version"] == version):
            for tag in match["platform"].split("."):
                arch = re.search(r"linux.*?_(x86_64|aarch64|armv7l|armv6l|i686|riscv64|ppc64le|s390x)$", tag)
                if arch:
                    python = re.fullmatch(r"cp3(\d+)", match["python"])
                    found.setdefault(arch[1], set()).add(f"3.{python[1]}" if python else match["python"])
    return "; ".join(
        f"{arch} (Python {', '.join(sorted(pythons, key=lambda v: [int(n) for n in re.findall(r'[0-9]+', v)]))})"
        for arch, pythons in sorted(found.items())
    )
