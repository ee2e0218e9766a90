"""Checkpoint: a Model on disk between passes: a replayable log of structure, and the weights in safetensors.

A module whose structure a pass changed cannot be loaded through its factory alone. So the factory builds the original,
each pass replays what it changed, and the weights are loaded last; nothing is unpickled.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.core import schema
from edgekit.core.errors import ConfigError, PassError, UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.files import staged_directory
from edgekit.core.model import Model, PassRecord
from edgekit.core.program import TORCH_EXTRA, TorchProgram, first_line
from edgekit.frontends.base import (
    InputDeclaration,
    OutputDeclaration,
    SourceRequest,
    frontend_for,
    split_source,
)
from edgekit.passes.base import registry

CHECKPOINT = "checkpoint.json"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What `checkpoint.json` holds.

    Attributes:
        name: The model's name.
        source: The factory that builds the original; its file is relative to the checkpoint's folder.
        inputs: What the person said about the inputs.
        outputs: What the person said about the outputs.
        digest: Digest of the model.
        history: The passes, with what each changed in the structure.
    """

    schema_version: int
    name: str
    source: str
    inputs: tuple[InputDeclaration, ...]
    outputs: tuple[OutputDeclaration, ...]
    digest: str
    history: tuple[PassRecord, ...]


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint's folder."""
    return (path / CHECKPOINT).is_file()


def save_checkpoint(model: Model, request: SourceRequest, folder: Path, *, with_program: bool = False) -> None:
    """Write a model that passes have changed.

    Args:
        model: The model; its program is a live torch module.
        request: How its original is made.
        folder: Where; appears whole or not at all.
        with_program: Whether a `.pt2` for other tools is written too.
    """
    if not isinstance(model.program, TorchProgram):
        raise UnsupportedModelError("Only a live torch module can be written as a checkpoint.")
    safetensors = require("safetensors.torch", TORCH_EXTRA, "a checkpoint")
    request = _original(request)
    file, name = split_source(str(request.folder / request.source))
    with staged_directory(folder) as staging:
        relative = os.path.relpath(Path(file).resolve(), folder.resolve())
        checkpoint = Checkpoint(
            schema.SCHEMA_VERSION,
            model.name,
            f"{relative}:{name}" if name else relative,
            request.inputs,
            request.outputs,
            model.digest,
            model.history,
        )
        (staging / CHECKPOINT).write_text(schema.to_json(checkpoint))
        safetensors.save_model(model.program.module, str(staging / WEIGHTS))
        if with_program:
            model.program.save(staging / "program.pt2")


def _original(request: SourceRequest) -> SourceRequest:
    """The request for the factory itself where the source is a checkpoint: histories go on, they do not nest."""
    folder = request.folder / request.source
    if not is_checkpoint(folder):
        return request
    checkpoint = read_checkpoint(folder)
    file, factory = split_source(checkpoint.source)
    path = (folder.resolve() / file).resolve()
    source = f"{path}:{factory}" if factory else str(path)
    return replace(request, source=source, inputs=checkpoint.inputs, outputs=checkpoint.outputs)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The description of a checkpoint.

    Raises:
        ConfigError: It is not one, or is not of this version.
    """
    return schema.versioned(Checkpoint, schema.load_json(folder / CHECKPOINT))


def load_checkpoint(folder: Path, name: str | None = None) -> Model:
    """The live model of a checkpoint.

    Raises:
        ConfigError: The source is gone, or the weights are not those of the structure.
        PassError: What was rebuilt is not what was saved.
    """
    checkpoint = read_checkpoint(folder)
    file, factory = split_source(checkpoint.source)
    path = Path(file) if Path(file).is_absolute() else (folder.resolve() / file).resolve()
    if not path.is_file():
        raise ConfigError(f"The checkpoint '{folder}' was made from '{path}', which is not there any more.")
    source = f"{path}:{factory}" if factory else str(path)
    request = SourceRequest(source, path.parent, name or checkpoint.name, checkpoint.inputs, checkpoint.outputs)
    original = frontend_for(source).load(request)
    model = replay(original, checkpoint.history, folder / WEIGHTS)
    if model.digest != checkpoint.digest:
        raise PassError(
            f"The checkpoint '{folder}' does not give the model that was saved: '{path.name}' or torch has changed since.",
            "edgekit compress makes it anew.",
        )
    return replace(model, source=str(folder))


def replay(original: Model, history: tuple[PassRecord, ...], weights: Path) -> Model:
    """Give the original of a model the structure that its history left, and load the weights."""
    program = original.program
    if not isinstance(program, TorchProgram):
        raise UnsupportedModelError(f"{original.source} is not a live torch module.")
    safetensors = require("safetensors.torch", TORCH_EXTRA, "a checkpoint")
    module = program.module
    for record in history:
        if record.modified and record.kept:
            kind = registry.get(record.name)
            options = schema.convert(kind.Options, schema.Document(dict(record.options), f"options of {record.name}"))
            module = kind(options).replay(module, record.structure)
    try:
        safetensors.load_model(module, str(weights), strict=True)
    except Exception as error:
        raise ConfigError(f"The weights in '{weights}' do not fit the structure: {first_line(error)}") from error
    rebuilt = program.with_module(module.eval())
    return replace(original, program=rebuilt, digest=rebuilt.digest(), history=history)
