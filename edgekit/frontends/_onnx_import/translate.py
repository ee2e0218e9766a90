"""Walks the nodes of a graph and translates each one, or refuses it by name."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.core.program import first_line
from edgekit.frontends._onnx_import import functions
from edgekit.frontends._onnx_import.call import Call
from edgekit.frontends._onnx_import.dtypes import WIDE_UNSIGNED, tensor_from_proto
from edgekit.frontends._onnx_import.errors import Declined, Refusal, Refused, UnknownOperand
from edgekit.frontends._onnx_import.graph import Builder, identifier
from edgekit.frontends._onnx_import.libs import Value, onnx, torch
from edgekit.frontends._onnx_import.registry import Entry, find

_UNKNOWN = "edgekit has no translation for it"
_DATA_DEPENDENT = "the shape of its result depends on the data"


class Unavailable:
    """Stands for a value whose node was refused, so that the walk goes on and finds the other ones."""


UNAVAILABLE = Unavailable()


@dataclass
class Frame:
    """What holds for the nodes of one graph or function body.

    Attributes:
        opsets: Opset by domain.
        values: Values by ONNX name; an initializer that nothing has read yet is still an ONNX tensor.
        attributes: Values of attributes that a function body refers to.
        inside: Where the body belongs to: the name of the node that called the function; empty at the top.
    """

    opsets: Mapping[str, int]
    values: MutableMapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    inside: str = ""


class Translator:
    """Translates graphs into a builder and collects what it has to refuse.

    Args:
        builder: Where the graph is written.
        local_functions: The model's own functions by domain and name.

    Attributes:
        refusals: Nodes that cannot be imported.
        needed: Graph inputs whose values would have to be constants.
    """

    def __init__(self, builder: Builder, local_functions: Mapping[tuple[str, str], Any]) -> None:
        self.builder = builder
        self.local_functions = local_functions
        self.refusals: list[Refusal] = []
        self.needed: set[str] = set()
        self._count = 0

    def run(self, nodes: Iterable[Any], outputs: Iterable[str], frame: Frame) -> tuple[Value, ...]:
        """Translate `nodes` in order; the values of `outputs`."""
        for node in nodes:
            self._node(node, frame)
        return tuple(self._value(name, frame) for name in outputs)

    def _value(self, name: str, frame: Frame) -> Value:
        if not name:
            return None
        if name not in frame.values:
            raise Refused(f"the value '{name}' is never computed")
        value = frame.values[name]
        if isinstance(value, onnx.TensorProto):
            value = self.builder.named(tensor_from_proto(value), name)
            frame.values[name] = value
        return value

    def _node(self, node: Any, frame: Frame) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        opset = frame.opsets.get(domain, 1 if domain else onnx.defs.onnx_opset_version())
        self._count += 1
        name = node.name or f"{node.op_type}_{self._count}"
        label = f"{frame.inside}/{name}" if frame.inside else name
        outputs: tuple[Any, ...]
        try:
            outputs = self._translate(node, domain, opset, label, frame)
        except UnknownOperand as error:
            self.needed |= error.roots
            outputs = self._refuse(node, domain, opset, label, str(error))
        except Refused as error:
            outputs = self._refuse(node, domain, opset, label, str(error))
        except torch._subclasses.fake_tensor.UnsupportedOperatorException as error:
            outputs = self._refuse(node, domain, opset, label, f"torch cannot tell the shape of {first_line(error)}")
        except (
            torch._subclasses.fake_tensor.DynamicOutputShapeException,
            torch._subclasses.fake_tensor.DataDependentOutputException,
        ):
            outputs = self._refuse(node, domain, opset, label, _DATA_DEPENDENT)
        except (
            RuntimeError,
            ValueError,
            TypeError,
            IndexError,
            KeyError,
            AttributeError,
            AssertionError,
        ) as error:
            # torch refuses what its kernels cannot do; the node that asked for it is what the person needs to know.
            outputs = self._refuse(node, domain, opset, label, f"torch says: {first_line(error)}")
        for output, value in zip(node.output, outputs, strict=False):
            if output:
                frame.values[output] = value

    def _refuse(self, node: Any, domain: str, opset: int, label: str, reason: str) -> tuple[Unavailable, ...]:
        self.refusals.append(Refusal(node.op_type, domain, opset, label, reason))
        return tuple(UNAVAILABLE for _ in node.output)

    def _translate(self, node: Any, domain: str, opset: int, label: str, frame: Frame) -> tuple[Value, ...]:
        operands = tuple(self._value(name, frame) for name in node.input)
        entry = find(domain, node.op_type, opset)
        local = self.local_functions.get((domain, node.op_type))
        if any(value is UNAVAILABLE for value in operands):
            if (entry is None or entry.refusal) and local is None and not functions.exists(domain, node.op_type, opset):
                self._refuse(node, domain, opset, label, entry.refusal if entry else _UNKNOWN)
            return tuple(UNAVAILABLE for _ in node.output)
        attributes = self._attributes(node, frame)
        if local is not None:
            return self._function(local, attributes, operands, node.output, label)
        self.builder.scope = identifier(label)
        constant = functions.can_evaluate(node, operands)
        if entry is not None and not (entry.refusal and constant):
            call = Call(
                op_type=node.op_type,
                name=label,
                opset=opset,
                attributes=attributes,
                operands=operands,
                operand_names=tuple(node.input),
                outputs=tuple(node.output),
                builder=self.builder,
                subgraph=lambda graph: self._subgraph(graph, frame),
            )
            try:
                return run_entry(entry, call)
            except Declined:
                constant = False
        if constant:
            return functions.evaluate(node.op_type, domain, attributes, operands, opset, len(node.output))
        body = functions.body(node, domain, opset, attributes, operands)
        if body is None:
            raise Refused(_UNKNOWN)
        return self._function(
            body, functions.with_defaults(node, domain, opset, attributes), operands, node.output, label
        )

    def _attributes(self, node: Any, frame: Frame) -> dict[str, Any]:
        result = {}
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                if attribute.ref_attr_name in frame.attributes:
                    result[attribute.name] = frame.attributes[attribute.ref_attr_name]
                continue
            value = onnx.helper.get_attribute_value(attribute)
            result[attribute.name] = value.decode() if isinstance(value, bytes) else value
        return result

    def _subgraph(self, graph: Any, frame: Frame) -> tuple[Value, ...]:
        values: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        inner = Frame(frame.opsets, ChainMap(values, frame.values), frame.attributes, inside=frame.inside)
        return self.run(graph.node, [output.name for output in graph.output], inner)

    def _function(
        self, body: Any, attributes: Mapping[str, Any], operands: tuple[Value, ...], wanted: Any, label: str
    ) -> tuple[Value, ...]:
        values: dict[str, Any] = dict.fromkeys(body.input)
        values.update(zip(body.input, operands, strict=False))
        defaults = {a.name: onnx.helper.get_attribute_value(a) for a in body.attribute_proto}
        defaults = {key: value.decode() if isinstance(value, bytes) else value for key, value in defaults.items()}
        frame = Frame(opsets_of(body), values, {**defaults, **attributes}, inside=label)
        outputs = [inner if outer else "" for inner, outer in zip(body.output, wanted, strict=False)]
        return self.run(body.node, outputs, frame)


def opsets_of(holder: Any) -> dict[str, int]:
    """Opset by domain of a model or function."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in holder.opset_import}


def run_entry(entry: Entry, call: Call) -> tuple[Value, ...]:
    """Run one translation, computing wide unsigned integers as int64 where it says so; its outputs as a tuple."""
    operands = call.operands
    wide = next((v.dtype for v in operands if hasattr(v, "dtype") and v.dtype in WIDE_UNSIGNED), None)
    if not entry.widens or wide is None:
        return _as_tuple(entry.run(call, *operands))
    widened = tuple(
        value.to(torch.int64) if hasattr(value, "dtype") and value.dtype in WIDE_UNSIGNED else value
        for value in operands
    )
    results = _as_tuple(entry.run(call, *widened))
    return tuple(value.to(wide) if value.dtype == torch.int64 else value for value in results)


def _as_tuple(result: Any) -> tuple[Value, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)
