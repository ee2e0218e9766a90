"""Pooling over one axis, which torch takes apart into pooling over two of which one is added and taken away again.

    Unsqueeze → MaxPool[1, 2] → Squeeze   →   MaxPool[2]

OpenVINO's reader of exported programs keeps the three as they are, and its reorders around them cost a small audio
network a quarter of its time.
"""

from __future__ import annotations

from typing import Any

from edgekit.core.extras import require

_EXTRA = "openvino"
_WHY = "the backend openvino"
_BY_AXIS = ("kernel", "strides", "pads_begin", "pads_end")


def drop_added_axes(model: Any) -> int:
    """Put a pooling over one axis less in the place of each whose added axis does nothing, in place; how many there were."""
    replaced = [op for op in model.get_ordered_ops() if op.get_type_name() in ("MaxPool", "AvgPool") and _drop(op)]
    if replaced:
        model.validate_nodes_and_infer_types()
    return len(replaced)


def _drop(pool: Any) -> bool:
    added = pool.input_value(0).get_node()
    readers = [reader.get_node() for output in pool.outputs() for reader in output.get_target_inputs()]
    # The second output of a MaxPool, where it is used, counts places in the padded shape.
    if added.get_type_name() != "Unsqueeze" or [reader.get_type_name() for reader in readers] != ["Squeeze"]:
        return False
    rank = pool.get_output_partial_shape(0).rank.get_length()
    axes = {_axis(op, rank) for op in (added, readers[0])}
    attributes = pool.get_attributes()
    place = axes.pop() - 2
    if axes or place < 0 or not _is_idle(attributes, place):
        return False
    smaller = _smaller(pool.get_type_name(), added.input_value(0), attributes, place)
    smaller.set_friendly_name(pool.get_friendly_name())
    readers[0].output(0).replace(smaller.output(0))
    return True


def _axis(op: Any, rank: int) -> int:
    """The one axis that an Unsqueeze adds or a Squeeze removes, counted from the first; -1 where there are several."""
    node = op.input_value(1).get_node()
    if node.get_type_name() != "Constant" or node.get_data().size != 1:
        return -1
    return int(node.get_data().ravel()[0]) % rank


def _is_idle(attributes: dict[str, Any], place: int) -> bool:
    return all(
        int(attributes[name][place]) == idle
        for name, idle in (("kernel", 1), ("strides", 1), ("pads_begin", 0), ("pads_end", 0))
    )


def _smaller(kind: str, data: Any, attributes: dict[str, Any], place: int) -> Any:
    ops = require("openvino.opset14", _EXTRA, _WHY)
    kernel, strides, begin, end = (
        [size for index, size in enumerate(attributes[name]) if index != place] for name in _BY_AXIS
    )
    rounding = attributes["rounding_type"]
    if kind == "AvgPool":
        return ops.avg_pool(data, strides, begin, end, kernel, attributes["exclude-pad"], rounding)
    dilations = [size for index, size in enumerate(attributes["dilations"]) if index != place]
    return ops.max_pool(
        data, strides, dilations, begin, end, kernel, rounding, index_element_type=attributes["index_element_type"]
    )
