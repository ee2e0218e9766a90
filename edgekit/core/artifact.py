"""Artifact: a folder with the converted files and a `manifest.json` that says everything about them.

`manifest.json` depends on nothing but what went in: the same source, recipe, target and toolchain give the same
bytes. What differs from run to run (durations, peak memory) stands in `build.json` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.core import schema
from edgekit.core.errors import ConfigError
from edgekit.core.files import safe_relative, sha256_file
from edgekit.core.lowering import Lowering
from edgekit.core.model import PassRecord, TensorSpec

MANIFEST = "manifest.json"
BUILD = "build.json"


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact.

    Attributes:
        path: Relative to the artifact's folder, with `/`.
        sha256: Of its bytes.
        bytes: Its size.
    """

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Parity:
    """How close an artifact's output is to the source model's.

    Attributes:
        output: Name of the output.
        examples: How many examples were compared.
        max_abs: Largest absolute difference.
        max_rel: Largest absolute difference over the reference's largest magnitude.
        cosine: Cosine similarity of all values together.
        snr_db: Signal-to-noise ratio; infinite (as 999) where equal.
        agreement: Share of examples with the same largest entry, for outputs that are scores over classes.
    """

    output: str
    examples: int
    max_abs: float
    max_rel: float
    cosine: float
    snr_db: float
    agreement: float | None = None


@dataclass(frozen=True)
class Manifest:
    """What an artifact is.

    Attributes:
        name: The model's name on devices and in results.
        backend: The backend that made it.
        target: The target it was compiled for.
        main: The file that a runtime loads.
        files: Every file but the manifest and `build.json`.
        inputs: Specs of the inputs, as the converted file takes them.
        outputs: Specs of the outputs, as the converted file gives them.
        bindings: The runtime's own name of an input or output, where it is not ours: `inputs.image` → `args_0`.
        lowering: The options of the compilation.
        history: The passes that the model went through before.
        source: Where the model came from, as the person wrote it.
        source_digest: Digest of the model that was converted.
        toolchain: Versions of the libraries that made it.
        runtime: Distribution and version that runs it on the target.
        changed: What the conversion changed in the interface, each in a sentence.
    """

    schema_version: int
    name: str
    backend: str
    target: str
    main: str
    files: tuple[FileEntry, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lowering: Lowering
    history: tuple[PassRecord, ...]
    source: str
    source_digest: str
    bindings: Mapping[str, str] = field(default_factory=dict)
    toolchain: Mapping[str, str] = field(default_factory=dict)
    runtime: Mapping[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildInfo:
    """What making an artifact took, and what was found of it; not part of its identity.

    Attributes:
        seconds: Wall time of the conversion's child process.
        peak_rss_mib: Its peak resident memory.
        download_bytes: The files compressed one by one (DEFLATE, level 9), as a download would be.
        cpu_seconds: Processor time of it, all threads: what other work on the machine hardly changes.
    """

    schema_version: int
    seconds: float
    peak_rss_mib: float
    download_bytes: int = 0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Artifact:
    """A converted model on disk.

    Attributes:
        path: Its folder.
        manifest: What it is.
        digest: SHA-256 of `manifest.json`, which holds the hash of every other file.
    """

    path: Path
    manifest: Manifest
    digest: str

    @property
    def main(self) -> Path:
        """The file that a runtime loads."""
        return self.path / self.manifest.main

    @property
    def bytes(self) -> int:
        """Size of the converted files."""
        return sum(file.bytes for file in self.manifest.files)

    @property
    def build(self) -> BuildInfo | None:
        """What making it took, where that is still known."""
        path = self.path / BUILD
        return schema.versioned(BuildInfo, schema.load_json(path)) if path.exists() else None

    def verify_files(self) -> None:
        """Check every file against the manifest.

        Raises:
            ConfigError: A file is missing, or is not what the manifest says.
        """
        for entry in self.manifest.files:
            path = self.path / safe_relative(entry.path)
            if not path.is_file():
                raise ConfigError(
                    f"The artifact '{self.path}' lacks its file '{entry.path}'.", "edgekit compile makes it anew."
                )
            if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
                raise ConfigError(
                    f"The file '{entry.path}' of the artifact '{self.path}' is not what its manifest says.",
                    "edgekit compile makes it anew.",
                )


def describe_files(folder: Path) -> tuple[FileEntry, ...]:
    """Entries of all files below `folder`, sorted, but for the manifest and the build's record."""
    return tuple(
        FileEntry(path.relative_to(folder).as_posix(), sha256_file(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in (MANIFEST, BUILD)
    )


def load_artifact(path: Path) -> Artifact:
    """Read an artifact's folder; `path` may also be its `manifest.json`.

    Raises:
        ConfigError: It is not an artifact's folder, or its manifest is wrong.
    """
    folder = path.parent if path.name == MANIFEST else path
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file():
        raise ConfigError(f"'{path}' is not an artifact: it has no {MANIFEST}.", "edgekit compile SOURCE --target T")
    manifest = schema.versioned(Manifest, schema.load_json(manifest_path))
    for entry in manifest.files:
        safe_relative(entry.path)
    safe_relative(manifest.main)
    return Artifact(folder, manifest, sha256_file(manifest_path))
