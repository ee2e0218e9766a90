"""A torch network through the whole backend: exported, compiled into an artifact, evaluated."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit.backends.base import CompileRequest
from edgekit.backends.coreml import CoreMl
from edgekit.core.artifact import Artifact
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import TensorSpec
from edgekit.core.program import TorchProgram
from edgekit.core.target import Cpu, Os, Target


def target(release: str | None = "17.0", family: str = "ios", **options: Any) -> Target:
    return Target(
        schema_version=1,
        name="phone",
        summary="a phone",
        cpu=Cpu("aarch64"),
        os=Os(family, min_version=release),
        backends=("coreml",),
        transports=("ssh",),
        options={"coreml": options} if options else {},
    )


def request_for(
    folder: Path,
    module: torch.nn.Module,
    tensors: tuple[torch.Tensor, ...],
    to: Target,
    scheme: str | None = None,
    names: tuple[str, ...] = (),
    specs: dict[str, dict[str, Any]] | None = None,
) -> tuple[CompileRequest, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The request of a compilation, the inputs, and the outputs that torch computes."""
    inputs = {
        name: tensor.numpy()
        for name, tensor in zip(names or [f"in_{i}" for i in range(len(tensors))], tensors, strict=True)
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = module(*tensors)
    results = tuple(results) if isinstance(results, tuple | list) else (results,)
    outputs = {f"out_{place}": tensor.numpy() for place, tensor in enumerate(results)}
    program = TorchProgram(module, tuple(inputs), tuple(outputs), by_keyword=False, example_inputs=inputs)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # torch warns while it exports its own recurrent layers.
        warnings.simplefilter("ignore")
        program.save(folder / "program.pt2")

    def described(arrays: dict[str, np.ndarray]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, array.shape, str(array.dtype), **(specs or {}).get(name, {}))
            for name, array in arrays.items()
        )

    request = CompileRequest(
        program=folder / "program.pt2",
        name="net",
        inputs=described(inputs),
        outputs=described(outputs),
        lowering=Lowering(Quantize(scheme) if scheme else None),
        target=to,
        source="nets.py",
        source_digest="0" * 64,
    )
    return request, inputs, outputs


def compile_into(folder: Path, request: CompileRequest) -> Artifact:
    return CoreMl().compile(request, folder / "artifact")
