"""Small networks through the LiteRT backend and its driver, in this process."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from edgekit.backends._litert import flatbuffer
from edgekit.backends.base import CompileRequest
from edgekit.backends.litert import LiteRt
from edgekit.core.artifact import Artifact
from edgekit.core.lowering import Lowering
from edgekit.core.model import TensorSpec
from edgekit.core.target import Cpu, Os, Target
from edgekit.core.workload import Workload

HERE = Target(1, "here", "this machine", Cpu("x86_64"), Os("linux"), ("litert",), ("local",))


def specs(arrays: dict[str, np.ndarray]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, array.shape, array.dtype.name) for name, array in arrays.items())


def reference(module: torch.nn.Module, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        results = module(*(torch.from_numpy(array) for array in inputs.values()))
    return [result.numpy() for result in (results if isinstance(results, tuple | list) else (results,))]


def request_for(
    folder: Path,
    module: torch.nn.Module,
    inputs: dict[str, np.ndarray],
    *,
    lowering: Lowering = Lowering(),
    input_specs: tuple[TensorSpec, ...] | None = None,
    output_specs: tuple[TensorSpec, ...] | None = None,
    calibration: dict[str, np.ndarray] | None = None,
) -> CompileRequest:
    module = module.eval()
    program = folder / "program.pt2"
    exported = torch.export.export(module, tuple(torch.from_numpy(array) for array in inputs.values()))
    torch.export.save(exported, program)
    if calibration is not None:
        (folder / "calibration").mkdir()
        for name, array in calibration.items():
            np.save(folder / "calibration" / f"{name}.npy", array)
    results = reference(module, inputs)
    return CompileRequest(
        program=program,
        name="net",
        inputs=input_specs or specs(inputs),
        outputs=output_specs or specs({f"y{place}": result for place, result in enumerate(results)}),
        lowering=lowering,
        target=HERE,
        source="net.py:build",
        source_digest="0" * 64,
        calibration=folder / "calibration" if calibration is not None else None,
    )


def compiled(folder: Path, module: torch.nn.Module, inputs: dict[str, np.ndarray], **more) -> Artifact:
    return LiteRt().compile(request_for(folder, module, inputs, **more), folder / "artifact")


def driver(artifact: Artifact, **options):
    """The device's driver, set up as a run plan says."""
    backend = LiteRt()
    plan = backend.run_plan(artifact.manifest, HERE, [Workload("outputs", "golden")], options)
    path = Path(flatbuffer.__file__).parents[2] / "agent" / plan.driver
    spec = importlib.util.spec_from_file_location("device_litert_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.Driver(str(artifact.main), 1, dict(plan.bindings), dict(plan.options))
    made.load()
    return made


def run(made, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    made.prepare(inputs)
    made.invoke()
    return made.results()


def model_of(artifact: Artifact):
    return flatbuffer.read(artifact.main.read_bytes())


def operators(artifact: Artifact) -> Counter:
    """How many operators of each kind the file has, in all its subgraphs."""
    model, names = model_of(artifact), flatbuffer.builtin_names()
    return Counter(
        flatbuffer.operator_name(model, operator, names)
        for subgraph in model.subgraphs
        for operator in subgraph.operators
    )


def weight_bytes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
