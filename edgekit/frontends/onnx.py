"""An `.onnx` file: read directly by the backends that read ONNX."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.model import Model
from edgekit.core.program import ONNX_EXTRA, OnnxProgram, TorchProgram, first_line
from edgekit.frontends._onnx_import import import_onnx, load_checked
from edgekit.frontends.base import Frontend, SourceRequest, input_specs, output_specs

if TYPE_CHECKING:
    from edgekit.core.task import Array


class Onnx(Frontend):
    """Reads an ONNX file."""

    summary: ClassVar[str] = "an ONNX model"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    extra: ClassVar[str] = ONNX_EXTRA

    def load(self, request: SourceRequest) -> Model:
        """See `Frontend.load`."""
        onnx = require("onnx", ONNX_EXTRA, f"the source {request.source}")
        model, external = load_checked(request.path)
        initializers = {initializer.name for initializer in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in initializers]
        shapes = {value.name: _static_shape(request, value) for value in inputs}
        dtypes = {value.name: _dtype(onnx, value) for value in inputs}
        specs = input_specs(request, tuple(shapes), shapes, dtypes)
        examples = {spec.name: _example(spec.shape, spec.dtype, spec.value_range) for spec in specs}
        path = _pinned(onnx, request.path, model, shapes)
        names = tuple(value.name for value in model.graph.output)
        program = OnnxProgram(path, tuple(shapes), names, () if path != request.path else external)
        if path != request.path:
            weakref.finalize(program, shutil.rmtree, path.parent, ignore_errors=True)
        try:
            outputs = program.run(examples)
        except Exception as error:
            raise UnsupportedModelError(
                f"ONNX Runtime cannot run '{request.path.name}': {first_line(error)}"
            ) from error
        found = output_specs(
            request, list(names), [outputs[n].shape for n in names], [str(outputs[n].dtype) for n in names]
        )
        renamed = [spec.name for spec in found if spec.name not in names]
        if renamed:
            raise ConfigError(
                f"edgekit.yaml names an output '{renamed[0]}', but {request.source} has: {', '.join(names)}.",
                "Use the ONNX graph's own names, in its order.",
            )
        return Model(request.name, program, specs, found, examples, program.digest(), request.source)

    def to_torch(self, model: Model) -> Model:
        """See `Frontend.to_torch`.

        Raises:
            UnsupportedModelError: An operator cannot be imported; all such are named.
        """
        program = model.program
        if not isinstance(program, OnnxProgram):
            return super().to_torch(model)
        proto, _ = load_checked(program.path)
        imported = import_onnx(proto)
        by_name = {spec.name: spec for spec in model.inputs}
        inputs = tuple(by_name[name] for name in imported.input_names)
        examples = {spec.name: model.example_inputs[spec.name] for spec in inputs}
        torch_program = TorchProgram(imported.module, imported.input_names, imported.output_names, False, examples)
        return replace(
            model, program=torch_program, inputs=inputs, example_inputs=examples, digest=torch_program.digest()
        )


def _static_shape(request: SourceRequest, value: Any) -> tuple[int, ...]:
    """The input's sizes; dynamic ones take what the person declares.

    Raises:
        UnsupportedModelError: A size is dynamic and nothing is declared for it.
    """
    dims = value.type.tensor_type.shape.dim
    declared = next((d.shape for d in request.inputs if d.name == value.name and d.shape is not None), None)
    sizes: list[int] = []
    for index, dim in enumerate(dims):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            sizes.append(dim.dim_value)
        elif declared is not None and len(declared) == len(dims):
            sizes.append(declared[index])
        else:
            shape = [d.dim_param or d.dim_value or "?" for d in dims]
            raise UnsupportedModelError(
                f"The input '{value.name}' of {request.source} has the dynamic shape {shape}; artifacts have static ones.",
                f"Declare it in edgekit.yaml: inputs: [{{name: {value.name}, shape: [1, …]}}]",
            )
    return tuple(sizes)


def _dtype(onnx: Any, value: Any) -> str:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedModelError(f"The input '{value.name}' is not a tensor.")
    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _example(shape: tuple[int, ...], dtype: str, value_range: tuple[float, float] | None) -> Array:
    import numpy as np

    generator = np.random.default_rng(0)
    low, high = value_range or (0.0, 1.0)
    values = generator.uniform(low, high, shape)
    return np.asarray(values if dtype.startswith("float") else np.round(values)).astype(dtype)


def _pinned(onnx: Any, path: Path, model: Any, shapes: dict[str, tuple[int, ...]]) -> Path:
    """The file itself where its shapes are static already, else a copy with the declared ones."""
    changed = False
    for value in model.graph.input:
        for size, dim in zip(shapes.get(value.name, ()), value.type.tensor_type.shape.dim, strict=False):
            if dim.dim_value != size:
                dim.Clear()
                dim.dim_value = size
                changed = True
    if not changed:
        return path
    # Values inferred for the dynamic shapes would contradict the static ones.
    del model.graph.value_info[:]
    folder = Path(tempfile.mkdtemp(prefix="edgekit-onnx-"))
    pinned = folder / path.name
    onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    onnx.save_model(model, str(pinned))
    return pinned
