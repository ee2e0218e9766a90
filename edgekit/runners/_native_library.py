"""libLiteRt for a device, out of the wheel that the target pins: of the whole runtime only that one file."""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.core.errors import ConfigError, StableDeviceError
from edgekit.core.extras import normalized
from edgekit.core.files import write_atomic
from edgekit.core.places import cache_dir
from edgekit.core.workload import RuntimeRequirement
from edgekit.runners import _native_build, _wheels

PACKAGE = "ai-edge-litert"
MEMBER = "ai_edge_litert/libLiteRt.so"


@dataclass(frozen=True)
class Library:
    """The shared library for one processor.

    Attributes:
        path: The file on this host.
        version: The release of ai-edge-litert that it is from.
    """

    path: Path
    version: str


def pinned_version(requirement: RuntimeRequirement) -> str:
    """The release of ai-edge-litert that a run plan pins.

    Raises:
        ConfigError: It pins none, or one whose C API the program does not speak.
    """
    for package in requirement.packages:
        name, _, version = package.partition("==")
        if normalized(name) == PACKAGE and version:
            break
    else:
        raise ConfigError(
            f"The target pins no version of {PACKAGE}, which the native runner takes its library from.",
            f"Add it under `runtimes:` of the target:\n  runtimes: {{{PACKAGE}: {_native_build.abi()}.0}}",
        )
    if re.match(rf"{re.escape(_native_build.abi())}(\.|$)", version) is None:
        raise ConfigError(
            f"The native runner speaks the C API of {PACKAGE} {_native_build.abi()}.*, and the target pins {version}: its"
            " functions take other arguments.",
            f"Pin {_native_build.abi()}.* under `runtimes:` of the target, or take `runner: agent` where the device has"
            " Python.",
        )
    return version


def find(requirement: RuntimeRequirement, facts: Mapping[str, Any]) -> Library:
    """The library for a device of those facts, from the cache or through pip.

    Raises:
        ConfigError: See `pinned_version`.
        StableDeviceError: No wheel fits the device, or the wheel has no such library.
        TransientDeviceError: The package index cannot be reached.
    """
    version = pinned_version(requirement)
    # The library is the same in the wheels of all Pythons; this one's is the likeliest to be there.
    seen = {**facts, "implementation": "CPython", "python": f"3.{sys.version_info.minor}.0"}
    only = replace(requirement, packages=(f"{PACKAGE}=={version}",))
    wheels = _wheels.resolve(only, seen, dependencies=False)
    (wheel,) = wheels.wheels
    target = cache_dir() / "native" / "libraries" / wheel.sha256 / "libLiteRt.so"
    if not target.is_file():
        try:
            with zipfile.ZipFile(wheels.path(wheel)) as archive:
                write_atomic(target, archive.read(MEMBER))
        except (KeyError, zipfile.BadZipFile) as error:
            raise StableDeviceError(
                f"The wheel {wheel.name} has no {MEMBER}: {error}.",
                f"Pin another version of {PACKAGE} under `runtimes:` of the target.",
            ) from error
    return Library(target, version)
