"""The `benchmark_model` program itself: no registry has it, so a person says which one is used."""

from __future__ import annotations

import os
import struct
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.core.errors import ConfigError, StableDeviceError
from edgekit.core.files import sha256_bytes, sha256_file, write_atomic
from edgekit.core.places import cache_dir

VARIABLE = "EDGEKIT_BENCHMARK_MODEL"
HOW = (
    "Build it from TensorFlow's sources (bazel build -c opt --config=android_arm64"
    " //tensorflow/lite/tools/benchmark:benchmark_model), or take the one that Google builds for your ABI:"
    " https://www.tensorflow.org/lite/performance/measurement#native_benchmark_binary"
)
_MACHINES = {"aarch64": 183, "armv7l": 40, "x86_64": 62, "i686": 3}
_MAX_BYTES = 256 << 20
_SECONDS = 120.0


@dataclass(frozen=True)
class BenchmarkOptions:
    """What `runner_options:` of a device may hold.

    Attributes:
        binary: Path of the program here, built for the device's ABI; by default what EDGEKIT_BENCHMARK_MODEL says.
        url: Where it is fetched from instead, over HTTPS, once. Only with `sha256`: a program that runs on your
            device is pinned.
        sha256: Its SHA-256; with `binary` it is checked too.
        delegate: What runs the model.
        gpu_backend: `cl` or `gl`; by default the tool's own choice.
        nnapi_accelerator: Name of one accelerator; by default NNAPI's own choice.
        taskset: Mask of the cores that it may run on, hexadecimal, as Android's `taskset` takes it (`f0`).
    """

    binary: str | None = None
    url: str | None = None
    sha256: str | None = None
    delegate: Literal["xnnpack", "cpu", "gpu", "nnapi"] = "xnnpack"
    gpu_backend: Literal["cl", "gl"] | None = None
    nnapi_accelerator: str | None = None
    taskset: str | None = None


def find(options: BenchmarkOptions, device: str) -> Path:
    """The program on this machine.

    Raises:
        ConfigError: It is not said which, or that one is not there, or has another hash.
        StableDeviceError: It cannot be fetched.
    """
    path = options.binary or (None if options.url else os.environ.get(VARIABLE))
    if path is not None:
        found = Path(path).expanduser()
        if not found.is_file():
            raise ConfigError(f"There is no benchmark_model at '{path}'.", HOW)
        if options.sha256 is not None and sha256_file(found) != options.sha256:
            raise ConfigError(
                f"'{path}' has the SHA-256 {sha256_file(found)}, not the one in devices.yaml.",
                "Correct `sha256:`, or take the program that it was taken from.",
            )
        return found
    if options.url is None:
        raise ConfigError(
            f"Running on '{device}' needs LiteRT's benchmark_model, and it is not said where that is.",
            f"{HOW}\nthen, in devices.yaml under '{device}':\n  runner_options: {{binary: PATH}}\nor: export {VARIABLE}=PATH",
        )
    return _fetched(options.url, options.sha256)


def _fetched(url: str, sha256: str | None) -> Path:
    if sha256 is None or len(sha256) != 64:
        raise ConfigError(
            "`url:` of benchmark_model needs `sha256:`, its 64 hexadecimal digits.",
            f"curl -L {url} | sha256sum   shows that of what is there now",
        )
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"'{url}' is not HTTPS.", "Give an https:// address, or `binary:`.")
    target = cache_dir() / "benchmark_model" / sha256
    if target.is_file() and sha256_file(target) == sha256:
        return target
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:  # noqa: S310 - the scheme was looked at
            data = answer.read(_MAX_BYTES + 1)
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise StableDeviceError(f"benchmark_model cannot be fetched from '{url}': {error}.", HOW) from error
    if len(data) > _MAX_BYTES or sha256_bytes(data) != sha256:
        raise StableDeviceError(
            f"What is at '{url}' has another SHA-256 than devices.yaml says: {sha256_bytes(data)}.",
            "Nothing was kept or run. Look at what changed there before you correct `sha256:`.",
        )
    write_atomic(target, data)
    target.chmod(0o755)
    return target


def require_fit(path: Path, arch: str | None, device: str) -> None:
    """Refuse a program for another processor before it is sent.

    Raises:
        ConfigError: It is one, or is no program.
    """
    with path.open("rb") as stream:
        head = stream.read(20)
    if head.startswith(b"#!"):
        return
    if len(head) < 20 or head[:4] != b"\x7fELF":
        raise ConfigError(f"'{path}' is not a program for Android: it is no ELF file.", HOW)
    machine = struct.unpack_from("<H", head, 18)[0]
    wanted = _MACHINES.get(arch or "")
    if wanted is not None and machine != wanted:
        names = {number: name for name, number in _MACHINES.items()}
        raise ConfigError(
            f"'{path}' is for {names.get(machine, f'the machine {machine}')}, and '{device}' is {arch}.", HOW
        )
