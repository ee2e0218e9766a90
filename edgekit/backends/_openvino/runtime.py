"""OpenVINO's runtime on the host, for what is measured while a model is quantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.core.task import Array

EXTRA = "openvino"
WHY = "the backend openvino"

Example = Mapping[str, "Array"]
"""One call's inputs by name."""


def openvino() -> Any:
    """The package."""
    return require("openvino", EXTRA, WHY)


def opset() -> Any:
    """The functions that make operators."""
    return require("openvino.opset13", EXTRA, WHY)


@cache
def _core() -> Any:
    return openvino().Core()


def compiled(model: Any) -> Any:
    """The model for this host's CPU, in float32 and with one thread: equal input has to give equal numbers."""
    # Without this it would round the data of matrix products whose weights are integers, as they come.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    return _core().compile_model(model, "CPU", options)


def results(model: Any, examples: Sequence[Mapping[Any, Array]]) -> Iterator[list[Array]]:
    """The outputs in order, for each example: its inputs by name or place."""
    runner = compiled(model).create_infer_request()
    for example in examples:
        found = runner.infer(dict(example))
        yield [found[place] for place in range(len(model.outputs))]


def run_once(node: Any, value: Array) -> Array:
    """The first result of an operator whose first input is taken from outside; the operator is left with a parameter."""
    ov = openvino()
    parameter = opset().parameter(list(value.shape), value.dtype.type)
    node.input(0).replace_source_output(parameter.output(0))
    model = ov.Model([opset().result(node.output(0))], [parameter], "part")
    return compiled(model).create_infer_request().infer([value])[0]  # type: ignore[no-any-return]
