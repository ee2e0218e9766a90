"""Operators that ONNX itself defines by simpler ones, and operators that ONNX's reference evaluator can compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.frontends._onnx_import.dtypes import ONNX_OF, array_from_tensor, tensor_from_array
from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.graph import Traced
from edgekit.frontends._onnx_import.libs import Value, onnx


def exists(domain: str, op_type: str, opset: int) -> bool:
    """Whether the ONNX standard defines the operator by a function body."""
    schema = _schema(domain, op_type, opset)
    return schema is not None and bool(schema.has_function or schema.has_context_dependent_function)


def body(node: Any, domain: str, opset: int, attributes: Mapping[str, Any], operands: tuple[Value, ...]) -> Any | None:
    """The function body that the ONNX standard gives for a node, or None."""
    schema = _schema(domain, node.op_type, opset)
    if schema is None:
        return None
    version = _newest(schema.function_opset_versions, opset, schema.since_version)
    if version is not None:
        return _parsed(schema.get_function_with_opset_version(version))
    version = _newest(schema.context_dependent_function_opset_versions, opset, schema.since_version)
    if version is None:
        return None
    resolved = onnx.NodeProto()
    resolved.CopyFrom(node)
    del resolved.attribute[:]
    resolved.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in attributes.items())
    types = [_type_of(value).SerializeToString() for value in operands]
    data = schema.get_context_dependent_function_with_opset_version(version, resolved.SerializeToString(), types)
    return _parsed(data) if data else None


def can_evaluate(node: Any, operands: tuple[Value, ...]) -> bool:
    """Whether the node's result is a constant that ONNX's reference evaluator can work out."""
    if any(isinstance(value, Traced) for value in operands):
        return False
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        return False
    schema = _schema(node.domain, node.op_type, onnx.defs.onnx_opset_version())
    return schema is not None and schema.node_determinism != schema.NodeDeterminism.NonDeterministic


def with_defaults(node: Any, domain: str, opset: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A node's attributes, and the standard's defaults of those that it leaves out: a function body refers to them."""
    schema = _schema(domain, node.op_type, opset)
    defaults = {
        name: onnx.helper.get_attribute_value(attribute.default_value)
        for name, attribute in (schema.attributes.items() if schema is not None else ())
        if attribute.default_value.type != onnx.AttributeProto.UNDEFINED
    }
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in defaults.items()}
    return {**plain, **attributes}


def evaluate(
    op_type: str, domain: str, attributes: Mapping[str, Any], operands: tuple[Value, ...], opset: int, outputs: int
) -> tuple[Value, ...]:
    """Compute a node of constants with ONNX's reference evaluator."""
    inputs = [f"x{i}" if value is not None else "" for i, value in enumerate(operands)]
    feeds = {name: array_from_tensor(value) for name, value in zip(inputs, operands, strict=True) if name}
    results = [f"y{i}" for i in range(outputs)]
    resolved = onnx.helper.make_node(op_type, inputs, results, domain=domain)
    resolved.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in attributes.items())
    graph = onnx.helper.make_graph(
        [resolved],
        "constant",
        [onnx.helper.make_value_info(n, _type_of(v)) for n, v in zip(inputs, operands, strict=True) if n],
        [onnx.helper.make_empty_tensor_value_info(name) for name in results],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(domain, opset)])
    try:
        arrays = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:  # the evaluator raises bare exceptions of many kinds
        raise Refused(f"ONNX's reference evaluator cannot compute it: {error}") from error
    return tuple(tensor_from_array(array) for array in arrays)


def _schema(domain: str, op_type: str, opset: int) -> Any | None:
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _newest(versions: list[int], opset: int, since: int) -> int | None:
    fitting = [version for version in versions if version <= max(opset, since)]
    return max(fitting, default=None)


def _parsed(data: bytes) -> Any:
    function = onnx.FunctionProto()
    function.ParseFromString(data)
    return function


def _type_of(value: Value) -> Any:
    if value is None:
        return onnx.TypeProto()
    if value.dtype not in ONNX_OF:
        raise Refused(f"ONNX has no type for torch's {value.dtype}")
    return onnx.helper.make_tensor_type_proto(ONNX_OF[value.dtype], list(value.shape))
