"""Every float value of an ONNX graph made one of its outputs, without the onnx package: protobuf's wire format only.

Two serialized messages that follow each other are read as one whose repeated fields are joined, at every level: further
outputs are appended to the file's bytes, and nothing in it is rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_OUTPUT, _NODE_OUTPUT, _VALUE_NAME = 7, 1, 12, 2, 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def with_all_outputs(model: bytes) -> tuple[bytes, list[str]]:
    """The model with each node's output as an output of the graph.

    Args:
        model: A serialized `ModelProto`.

    Returns:
        The same model with further outputs, and the names of all nodes' outputs in the graph's order.

    Raises:
        ValueError: It is no `ModelProto`.
    """
    nodes: list[str] = []
    known: set[str] = set()
    view = memoryview(model)
    for graph in _fields(view, _MODEL_GRAPH):
        for node in _fields(graph, _GRAPH_NODE):
            nodes += [str(name, "utf-8") for name in _fields(node, _NODE_OUTPUT) if len(name)]
        for output in _fields(graph, _GRAPH_OUTPUT):
            known |= {str(name, "utf-8") for name in _fields(output, _VALUE_NAME)}
    if not nodes:
        raise ValueError("the file has no ONNX graph with nodes in it")
    added = b"".join(
        _field(_GRAPH_OUTPUT, _field(_VALUE_NAME, name.encode())) for name in dict.fromkeys(nodes) if name not in known
    )
    return model + _field(_MODEL_GRAPH, added), nodes


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The contents of a message's length-delimited fields of one number."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            _, place = _varint(message, place)
            continue
        if kind == _BYTES:
            size, place = _varint(message, place)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("the file is not an ONNX model")
        if place + size > len(message):
            raise ValueError("the file is cut off")
        if kind == _BYTES and key >> 3 == wanted:
            yield message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message):
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
    raise ValueError("the file is cut off")


def _field(number: int, content: bytes) -> bytes:
    return _as_varint(number << 3 | _BYTES) + _as_varint(len(content)) + content


def _as_varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
