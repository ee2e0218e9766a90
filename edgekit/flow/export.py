"""Export: an artifact's folder outside the cache, with what a later stage needs beside it.

- `<out>/manifest.json`, `build.json`, `model.tflite`, …: the artifact
- `<out>/verification.json`: how close its outputs are to the model's
- `<out>/golden/inputs/*.npy`, `golden/expected/*.npy`: a few inputs, and what the artifact gave for them on the host
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekit.core import schema
from edgekit.core.artifact import MANIFEST, Artifact, load_artifact
from edgekit.core.errors import ConfigError
from edgekit.core.files import sha256_text, staged_directory
from edgekit.core.target import load_target
from edgekit.flow.build import Built
from edgekit.flow.evaluate import InputFiles, array_file, arrays_in
from edgekit.flow.verify import HostRun, Verification

VERIFICATION = "verification.json"
GOLDEN = "golden"


def export_artifact(built: Built, out: Path) -> Path:
    """Copy an artifact to `out`, whole or not at all; replaces one that is there.

    Raises:
        ConfigError: There is something at `out` that is no artifact.
    """
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"'{out}' is not empty and is no artifact: it is not replaced.", "Name another folder.")
    with staged_directory(out) as staging:
        shutil.copytree(built.artifact.path, staging, dirs_exist_ok=True)
        if built.host is not None:
            (staging / VERIFICATION).write_text(schema.to_json(built.host.verification))
            golden = next(s for s in built.sets if s.name == GOLDEN)
            for kind, files in (("inputs", golden.files), ("expected", built.host.outputs[GOLDEN])):
                folder = staging / GOLDEN / kind
                folder.mkdir(parents=True)
                for name, path in files.items():
                    shutil.copyfile(path, folder / array_file(name))
    return out


def open_artifact(path: Path, project_root: Path | None = None) -> Built:
    """An exported artifact, ready to be deployed or measured.

    Raises:
        ConfigError: It is not an artifact.
        ConfigError: A file is not what the manifest says.
    """
    artifact = load_artifact(path)
    artifact.verify_files()
    target = load_target(artifact.manifest.target, project_root)
    golden, verification = golden_of(artifact), verification_of(artifact)
    host = None
    if golden is not None and verification is not None:
        host = HostRun(verification, {GOLDEN: arrays_in(artifact.path / GOLDEN / "expected")})
    return Built(artifact, target, True, () if golden is None else (golden,), host, {}, {}, {}, None)


def golden_of(artifact: Artifact) -> InputFiles | None:
    """The inputs that travel with an exported artifact; None where it was not verified."""
    folder = artifact.path / GOLDEN / "inputs"
    if not folder.is_dir():
        return None
    return InputFiles(GOLDEN, arrays_in(folder), sha256_text(f"golden of {artifact.digest}"))


def verification_of(artifact: Artifact) -> Verification | None:
    """How close an exported artifact was to its model when it was compiled; None where nobody looked."""
    path = artifact.path / VERIFICATION
    return schema.convert(Verification, schema.load_json(path)) if path.is_file() else None
