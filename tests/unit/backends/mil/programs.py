"""Tiny ML Programs, built with coremltools' own builder and written as packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.backends._mil.evaluator import ReferenceEvaluator

Arrays = Mapping[str, np.ndarray]
Build = Callable[..., Any]


def write_program(
    path: Path, inputs: Arrays, build: Build, release: str = "iOS17", passes: bool = False, **options: Any
) -> Path:
    """A package whose program is what `build(mb, **inputs)` makes, with no optimization unless `passes`."""
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder, Function, Program, types

    kinds = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32}
    placeholders = {
        name: Builder.placeholder(shape=array.shape, dtype=kinds[str(array.dtype)]) for name, array in inputs.items()
    }
    program = Program()
    with Function(placeholders, opset_version=ct.target[release]) as function:
        built = build(Builder, **function.inputs)
        found = list(built) if isinstance(built, tuple | list) else [built]
        public = (types.fp32, types.fp16, types.int32)
        function.set_outputs([var if var.dtype in public else Builder.cast(x=var, dtype="int32") for var in found])
        program.add_function("main", function)
    more = {} if passes else {"pass_pipeline": ct.PassPipeline.EMPTY}
    model = ct.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        minimum_deployment_target=ct.target[release],
        compute_precision=options.pop("precision", ct.precision.FLOAT32),
        skip_model_load=True,
        **more,
        **options,
    )
    model.save(str(path))
    return path


def evaluate(path: Path, inputs: Arrays) -> list[np.ndarray]:
    """The outputs of a package, in order."""
    evaluator = ReferenceEvaluator(path)
    found = evaluator.run(inputs)
    return [found[feature.name] for feature in evaluator.outputs]


def snr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """Signal-to-noise ratio in dB; 999 where equal."""
    noise = float(np.sum((found.astype(np.float64) - reference) ** 2))
    signal = float(np.sum(reference.astype(np.float64) ** 2))
    return 999.0 if noise == 0 else 10 * float(np.log10(signal / noise))
