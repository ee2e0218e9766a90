"""What a graph's file says that no reader needs: in small networks that is more than the weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgekit.core.files import write_atomic

_PORT = re.compile(r"<port (?P<says>[^>]*?)(?P<end>/>|>(?:<dim>-?\d+</dim>)*</port>)")
_INPUTS = re.compile(r"<input>.*?</input>", re.DOTALL)
_OUTPUTS = re.compile(
    r"(?P<start>type=\"(?!Parameter)\w+\" version=\"\w+\">(?:(?!</layer>).)*?)(?P<ports><output>.*?</output>)",
    re.DOTALL,
)
_TOLD = (
    re.compile(r"<input_model value=\"[^\"]*\"/>"),
    re.compile(r"<conversion_parameters>.*?</conversion_parameters>", re.DOTALL),
    re.compile(r"<nncf>.*?</nncf>", re.DOTALL),
)
"""What converters note of how they were called: paths of this machine, options, and what they did by default."""


def slim_model(model: Any) -> None:
    """Give constants, and what is computed of them alone, short names, and have equal ones once; in place.

    Names of operators that data go through stay: they are what an operator's values are shown under. So do the names of
    the model's inputs and outputs, but not those of tensors between.
    """
    computed: set[str] = set()
    known: dict[tuple[Any, ...], Any] = {}
    ends = {result.input_value(0) for result in model.get_results()}
    for place, op in enumerate(model.get_ordered_ops()):
        kind = op.get_type_name()
        sources = {value.get_node().get_name() for value in op.input_values()}
        if kind == "Parameter" or computed & sources:
            computed.add(op.get_name())
        elif kind != "Result" and not _has_state(op):
            op.set_friendly_name(f"c{place}")
        if kind == "Constant":
            _merge(op, known)
        if kind not in ("Parameter", "Result"):
            for port in op.outputs():
                if port not in ends:
                    port.get_tensor().set_names(set())


def _has_state(op: Any) -> bool:
    """Whether a name of it means something: variables, and operators with graphs of their own."""
    return op.get_type_name() in ("ReadValue", "Assign", "TensorIterator", "Loop", "If")


def _merge(constant: Any, known: dict[tuple[Any, ...], Any]) -> None:
    import numpy as np

    array = np.asarray(constant.data)
    kind = constant.get_element_type().get_type_name()
    key = (kind, tuple(constant.get_output_shape(0)), array.tobytes())
    first = known.setdefault(key, constant)
    if first is not constant:
        for reader in list(constant.output(0).get_target_inputs()):
            reader.replace_source_output(first.output(0))


def slim_file(xml: Path) -> None:
    """Write a file anew without indentation, notes of converters, and what a reader finds out for itself.

    It computes every shape anew from those of the model's inputs, which stay, and takes the type of an operator's input
    from the output that it comes from. Without the paths and options in the notes, equal input gives equal bytes.
    """
    text = re.sub(r">\s+<", "><", xml.read_text(encoding="utf-8")).replace(" />", "/>")
    for pattern in _TOLD:
        text = pattern.sub("", text)
    text = _OUTPUTS.sub(lambda found: found["start"] + _PORT.sub(r"<port \g<says>/>", found["ports"]), text)
    write_atomic(xml, _INPUTS.sub(lambda found: _PORT.sub(_only_id, found[0]), text))


def _only_id(port: re.Match[str]) -> str:
    return f"<port {port['says'].partition(' ')[0]}/>"
