"""Small networks and the requests that convert them, for the tests of backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.backends.base import CompileRequest
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import TensorSpec
from edgekit.core.program import TorchProgram
from edgekit.core.target import Cpu, Os, Target


class ConvNet(nn.Module):
    """Convolutions, a depthwise one, and two linear layers of equal weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.wide = nn.Linear(16, 128)
        self.twin = nn.Linear(16, 128)
        self.twin.load_state_dict(self.wide.state_dict())
        self.head = nn.Linear(128, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.relu(self.depthwise(x)).mean((2, 3))
        return self.head(self.wide(x) + self.twin(x * 2))


class Recurrent(nn.Module):
    """A recurrent layer whose outputs and last state are used."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(8, 16, **options)

    def forward(self, steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sequence, state = self.layer(steps)
        return sequence, state[1] if isinstance(state, tuple) else state


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.block(self.embedding(tokens)).mean(1)


class NoWeights(nn.Module):
    """Nothing that could be quantized."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flip(x, [1])


def target(backend: str, arch: str = "x86_64", runtimes: dict[str, str] | None = None, **options: Any) -> Target:
    return Target(
        schema_version=1,
        name="board",
        summary="a board",
        cpu=Cpu(arch),
        os=Os("linux"),
        backends=(backend,),
        transports=("local",),
        runtimes=runtimes or {},
        options={backend: options} if options else {},
    )


def request_for(
    folder: Path, module: nn.Module, tensor: torch.Tensor, to: Target, scheme: str | None = None, name: str = "x"
) -> tuple[CompileRequest, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The request of a conversion with 16 calibration examples, the inputs, and the outputs that torch computes."""
    module.eval()
    with torch.no_grad():
        results = module(tensor)
    results = results if isinstance(results, tuple) else (results,)
    outputs = {f"out_{place}": value.numpy() for place, value in enumerate(results)}
    inputs = {name: tensor.numpy()}
    folder.mkdir(parents=True, exist_ok=True)
    TorchProgram(module, (name,), tuple(outputs), by_keyword=False, example_inputs=inputs).save(folder / "program.pt2")
    (folder / "calibration").mkdir(exist_ok=True)
    examples = torch.cat([tensor, tensor.flip(1) if tensor.dim() == 3 else tensor] * 8)
    np.save(folder / "calibration" / f"{name}.npy", examples.numpy())
    request = CompileRequest(
        program=folder / "program.pt2",
        name="net",
        inputs=described(inputs),
        outputs=described(outputs),
        lowering=Lowering(Quantize(scheme) if scheme else None),
        target=to,
        source="nets.py",
        source_digest="0" * 64,
        calibration=folder / "calibration",
    )
    return request, inputs, outputs


def described(arrays: dict[str, np.ndarray]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items())
