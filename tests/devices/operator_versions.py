"""Which versions of which operators a TFLite runtime has. Runs on a device: standard library and that runtime only.

    python3 operator_versions.py          prints {"runtime": "tflite-runtime 2.14.0", "versions": {"3": 6, …}}

A runtime looks up all operator codes of a file when it is opened. So a file that names one operator in one version, and
uses none, is opened where the runtime has it, and refused where it has not: nothing is taken from documentation.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import struct
import sys
from typing import Any

CODES = range(256)
VERSIONS = range(1, 33)
_REFUSALS = ("Didn't find op for builtin opcode", "Op builtin_code out of range")
_NOT_BUILT_IN = (32, 51, 127)
"""CUSTOM, DELEGATE, and the place that stands for codes above it."""


def model_naming(code: int, version: int) -> bytes:
    """A whole `.tflite` file with one operator code, an empty graph and no operator."""
    data = bytearray(b"\0\0\0\0TFL3")

    def table(slots: list[int], body: bytes) -> int:
        """A table behind its list of fields; each slot is where in the table a field is, 0 for absent."""
        data.extend(b"\0" * (-len(data) % 4))
        start = len(data)
        data.extend(struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), 4 + len(body), *slots))
        data.extend(b"\0" * (-len(data) % 4))
        place = len(data)
        data.extend(struct.pack("<i", place - start) + body)
        return place

    def vector(count: int) -> int:
        place = len(data)
        data.extend(struct.pack("<I", count) + bytes(4 * count))
        return place

    def point(place: int, to: int) -> None:
        struct.pack_into("<I", data, place, to - place)

    # Model: version, operator_codes, subgraphs, (description), buffers.
    model = table([4, 8, 12, 0, 16], struct.pack("<IIII", 3, 0, 0, 0))
    struct.pack_into("<I", data, 0, model)
    # OperatorCode: the old code in one byte, (custom code), version, code.
    codes = vector(1)
    operator = table([12, 0, 4, 8], struct.pack("<iib3x", version, code, min(code, 127)))
    # SubGraph: tensors, inputs, outputs, operators.
    graphs = vector(1)
    graph = table([4, 8, 12, 16], bytes(16))
    buffers = vector(1)
    buffer = table([], b"")
    nothing = vector(0)
    for place, to in ((model + 8, codes), (model + 12, graphs), (model + 16, buffers)):
        point(place, to)
    for place, to in ((codes + 4, operator), (graphs + 4, graph), (buffers + 4, buffer)):
        point(place, to)
    for place in range(graph + 4, graph + 20, 4):
        point(place, nothing)
    return bytes(data)


def interpreter() -> tuple[Any, str]:
    """The interpreter class that is installed here, and the name of its distribution."""
    for module, distribution in (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime")):
        if importlib.util.find_spec(module) is not None:
            return importlib.import_module(f"{module}.interpreter").Interpreter, distribution
    raise ImportError("no TFLite runtime is installed here")


def has(runtime: Any, code: int, version: int) -> bool:
    """Whether a runtime has an operator in a version."""
    try:
        runtime(model_content=model_naming(code, version))
    except ValueError as error:
        if any(words in str(error) for words in _REFUSALS):
            return False
        raise
    return True


def main() -> int:
    """The newest version of every operator that the runtime has."""
    runtime, distribution = interpreter()
    found = {}
    for code in CODES:
        versions = [v for v in VERSIONS if code not in _NOT_BUILT_IN and has(runtime, code, v)]
        if versions:
            found[str(code)] = versions[-1]
    version = importlib.metadata.version(distribution)
    json.dump({"runtime": f"{distribution} {version}", "versions": found}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
