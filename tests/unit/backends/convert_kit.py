"""Conversions as the flow does them, in a child process, for the tests of backends."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit.backends.base import CompileRequest
from edgekit.core.artifact import Artifact
from edgekit.core.lowering import Lowering
from edgekit.core.model import Model
from edgekit.core.progress import Silent
from edgekit.core.target import load_target
from edgekit.flow.cache import Cache
from edgekit.flow.convert import convert
from edgekit.flow.evaluate import as_taken, golden_inputs, reference_outputs
from edgekit.flow.verify import HostRun, run_on_host
from edgekit.frontends.base import SourceRequest
from edgekit.frontends.torch_module import TorchModule

NETS = """\
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids, mask):
        words = self.embed(ids) * mask[..., None]
        return {"scores": self.head(words.mean(1)), "ids_out": ids + 1}

def words():
    return Words(), {"mask": torch.ones(2, 4), "ids": torch.arange(8).reshape(2, 4)}

def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), torch.rand(1, 1, 8, 8)

class Add(nn.Module):
    def forward(self, x):
        return x + x

def add():
    return Add(), torch.rand(1, 4)
"""


def model_of(folder: Path, factory: str) -> Model:
    """One of the nets above."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nets.py").write_text(NETS)
    return TorchModule().load(SourceRequest(f"nets.py:{factory}", folder, factory))


def request_for(model: Model, folder: Path, target: str, lowering: Lowering, examples: int = 0) -> CompileRequest:
    """A request whose program, and calibration examples if any, lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.program.save(folder / "program.pt2")
    calibration = None
    if lowering.quantize is not None:
        calibration = folder / "calibration"
        calibration.mkdir()
        for spec in model.inputs:
            values = np.random.default_rng(0).random((examples, *spec.shape[1:]))
            np.save(calibration / f"{spec.name}.npy", values.astype(spec.dtype))
    return CompileRequest(
        program=folder / "program.pt2",
        name=model.name,
        inputs=model.inputs,
        outputs=model.outputs,
        lowering=lowering,
        target=load_target(target),
        source=model.source,
        source_digest=model.digest,
        calibration=calibration,
    )


def converted(
    factory: str, folder: Path, backend: str, target: str, lowering: Lowering = Lowering(), examples: int = 16
) -> tuple[Model, Artifact]:
    """One of the nets, converted by a backend."""
    model = model_of(folder / "source", factory)
    request = request_for(model, folder / "work", target, lowering, examples)
    return model, convert(backend, request, folder / "out", Silent(), timeout_seconds=300)


def run(model: Model, artifact: Artifact, cache: Path) -> HostRun:
    """The artifact run on this host and compared with its model."""
    kept = Cache(cache)
    golden = golden_inputs(model.inputs, lambda: model.example_inputs, model.digest, None, kept)
    references = {"golden": reference_outputs(model.digest, lambda: model, golden, kept, Silent())}
    target = load_target(artifact.manifest.target)
    taken = as_taken(golden, artifact.manifest.inputs, kept)
    return run_on_host(artifact, target, [taken], references, kept, Silent())


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of an artifact's files, but for the record of what making it took."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "build.json"}
