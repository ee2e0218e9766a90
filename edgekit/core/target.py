"""Target: a class of device that a model is compiled for. Data, in `targets/<name>.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgekit.core import schema
from edgekit.core.errors import ConfigError, unknown_name

Arch = Literal["x86_64", "aarch64", "armv7l", "wasm32"]
OsFamily = Literal["linux", "android", "ios", "macos", "web"]


@dataclass(frozen=True)
class Cpu:
    """The processor of a target.

    Attributes:
        arch: Instruction set as the device's `uname -m` prints it.
        model: Core design, as its maker names it.
        cores: Number of cores.
        isa: Extensions that matter to a runtime: `neon`, `dotprod`, `avx2`, …
        max_mhz: Highest clock by the maker's sheet.
    """

    arch: Arch
    model: str = ""
    cores: int | None = None
    isa: tuple[str, ...] = ()
    max_mhz: int | None = None


@dataclass(frozen=True)
class Os:
    """The operating system that a target is expected to run.

    Attributes:
        family: Which kind of system.
        name: The release the facts were taken for.
        glibc: Its C library's version, where it has one: wheels that need a newer one will not load.
        python: The version of Python it ships, where it ships one.
        api_level: Android's API level.
        min_version: The oldest release that artifacts are built for (iOS deployment target).
    """

    family: OsFamily
    name: str = ""
    glibc: str | None = None
    python: str | None = None
    api_level: int | None = None
    min_version: str | None = None


@dataclass(frozen=True)
class Limits:
    """What a deployment to this target must stay within.

    Attributes:
        max_artifact_mib: Largest artifact that makes sense here.
        keep_releases: How many earlier releases stay on a device for rollback.
    """

    max_artifact_mib: float | None = None
    keep_releases: int = 2


@dataclass(frozen=True)
class Target:
    """A class of device: everything that compiling for it needs to know.

    Attributes:
        name: The file's stem.
        summary: One line for people.
        cpu: The processor.
        os: The operating system.
        backends: Backends whose artifacts it runs; the first is the default.
        transports: Transports that reach it; the first is the usual one.
        runners: Runners that execute on it; the first is the default.
        soc: System on chip, as its maker names it.
        ram_mib: Sizes of memory it is sold with.
        accelerators: Parts beside the CPU that a runtime can use.
        precisions: Precisions that run natively there, fastest first.
        runtimes: Pinned version of each runtime distribution, by name.
        threads: Threads a measurement uses unless told otherwise.
        options: Options for single backends, by backend name.
        limits: What a deployment must stay within.
        recipe: The recipe used where the user gives none, as data.
        notes: What a person should know.
    """

    schema_version: int
    name: str
    summary: str
    cpu: Cpu
    os: Os
    backends: tuple[str, ...]
    transports: tuple[str, ...]
    runners: tuple[str, ...] = ("agent",)
    soc: str = ""
    ram_mib: tuple[int, ...] = ()
    accelerators: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("float32",)
    runtimes: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limits: Limits = Limits()
    recipe: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def builtin_folder() -> Path:
    """The folder of the targets that edgekit ships: in the wheel beside the package, in a checkout above it."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_targets"
    return shipped if shipped.is_dir() else package.parent / "targets"


def find_targets(project: Path | None = None) -> dict[str, Path]:
    """Files of all targets by name; one in the project's `targets/` takes the place of a shipped one."""
    found = {path.stem: path for path in sorted(builtin_folder().glob("*.yaml"))}
    if project is not None and (project / "targets").is_dir():
        found |= {path.stem: path for path in sorted((project / "targets").glob("*.yaml"))}
    return found


def load_target(name: str, project: Path | None = None) -> Target:
    """The target `name`.

    Raises:
        ConfigError: There is none of that name, or its file is wrong.
    """
    files = find_targets(project)
    if name not in files:
        raise unknown_name("target", name, files, "edgekit targets")
    return read_target(files[name])


def read_target(path: Path) -> Target:
    """The target in one file.

    Raises:
        ConfigError: The file is wrong, or its `name` is not the file's stem.
    """
    document = schema.load_yaml(path)
    target = schema.versioned(Target, document)
    if target.name != path.stem:
        raise ConfigError(f"{document.where('name')}: the name '{target.name}' is not the file's stem '{path.stem}'.")
    if not target.backends:
        raise ConfigError(f"{document.where('backends')}: a target needs at least one backend.")
    return target
