"""From a whole ModelProto to a module: opsets, inputs, the walk, the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.program import first_line
from edgekit.frontends._onnx_import import Imported
from edgekit.frontends._onnx_import.dtypes import dtype_name, tensor_from_array, torch_dtype
from edgekit.frontends._onnx_import.errors import Refused, unsupported
from edgekit.frontends._onnx_import.graph import Builder
from edgekit.frontends._onnx_import.libs import onnx
from edgekit.frontends._onnx_import.ops import load_all
from edgekit.frontends._onnx_import.translate import Frame, Translator, opsets_of

OLDEST_OPSET = 13


def translate_model(model: Any, shapes: Mapping[str, tuple[int, ...]], constants: Mapping[str, Any]) -> Imported:
    """See `import_onnx`."""
    model = _modern(model)
    builder, translator, results, inputs = _walk(model, shapes, constants)
    if translator.refusals:
        raise unsupported(translator.refusals)
    names = tuple(output.name for output in model.graph.output)
    for name, value in zip(names, results, strict=True):
        if isinstance(value, tuple):
            raise UnsupportedModelError(f"The output '{name}' of this ONNX model is a sequence, not a tensor.")
    return Imported(
        module=builder.finish(list(results)),
        input_names=tuple(inputs),
        output_names=names,
        input_shapes={name: value.shape for name, value in inputs.items()},
        input_dtypes={name: dtype_name(value.dtype) for name, value in inputs.items()},
    )


def needed_constants(model: Any, shapes: Mapping[str, tuple[int, ...]], constants: Mapping[str, Any]) -> frozenset[str]:
    """See `inputs_needed_constant`."""
    _, translator, _, _ = _walk(_modern(model), shapes, constants)
    return frozenset(translator.needed)


def _walk(model: Any, shapes: Mapping[str, tuple[int, ...]], constants: Mapping[str, Any]) -> Any:
    load_all()
    graph = model.graph
    builder = Builder()
    values: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [info for info in graph.input if info.name not in values]
    _check_names([info.name for info in inputs], shapes, constants)
    if graph.sparse_initializer:
        names = ", ".join(tensor.values.name for tensor in graph.sparse_initializer)
        raise UnsupportedModelError(
            f"This ONNX model keeps weights as sparse tensors, which edgekit cannot read: {names}."
        )
    placeholders = {}
    for info in inputs:
        if info.name in constants:
            values[info.name] = builder.named(tensor_from_array(constants[info.name]), info.name)
        else:
            shape = _shape_of(info, shapes)
            placeholders[info.name] = values[info.name] = builder.placeholder(info.name, shape, _dtype_of(info))
    translator = Translator(builder, {(f.domain, f.name): f for f in model.functions})
    try:
        results = translator.run(graph.node, [output.name for output in graph.output], Frame(opsets_of(model), values))
    except Refused as error:
        raise UnsupportedModelError(f"This ONNX model cannot be imported: {error}.") from error
    return builder, translator, results, placeholders


def _check_names(known: list[str], shapes: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
    for name in (*shapes, *constants):
        if name not in known:
            raise ConfigError(f"This ONNX model has no input '{name}'. It has: {', '.join(known)}.")


def _shape_of(info: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if not info.type.HasField("tensor_type"):
        kind = info.type.WhichOneof("value") or "value without a type"
        raise UnsupportedModelError(
            f"The input '{info.name}' of this ONNX model is a {kind.removesuffix('_type')}, not a tensor."
        )
    wanted = shapes.get(info.name)
    if not info.type.tensor_type.HasField("shape"):
        if wanted is None:
            raise _no_shape(info.name, "no shape")
        return tuple(wanted)
    dims = info.type.tensor_type.shape.dim
    stated = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    if wanted is None:
        if None in stated:
            said = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
            raise _no_shape(info.name, f"the shape [{', '.join(map(str, said))}]")
        return tuple(size for size in stated if size is not None)
    if len(wanted) != len(stated) or any(s not in (None, w) for s, w in zip(stated, wanted, strict=True)):
        raise ConfigError(
            f"The input '{info.name}' has the shape {[s if s is not None else '?' for s in stated]} in the ONNX model;"
            f" {list(wanted)} does not fit it."
        )
    return tuple(wanted)


def _no_shape(name: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The input '{name}' of this ONNX model has {what}; edgekit needs numbers.",
        f"In edgekit.yaml: inputs: [{{name: {name}, shape: [1, …]}}]",
    )


def _dtype_of(info: Any) -> Any:
    try:
        return torch_dtype(info.type.tensor_type.elem_type)
    except Refused as error:
        raise UnsupportedModelError(f"The input '{info.name}' of this ONNX model cannot be taken: {error}.") from error


def _modern(model: Any) -> Any:
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if version >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as error:  # the converter raises bare RuntimeError and whatever its bindings do
        raise UnsupportedModelError(
            f"This ONNX model uses opset {version}; edgekit reads {OLDEST_OPSET} and newer, and ONNX's version"
            f" converter cannot bring it there: {first_line(error)}",
            "Export it again with opset 13 or newer.",
        ) from error
