"""A subgraph run part by part, so that what follows can be changed by what came before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import Example, as_taken, interpreter

if TYPE_CHECKING:
    from edgekit.backends._litert.layers import Floats
    from edgekit.core.task import Array

_ROWS = 1024
"""How many places of one example are enough for second moments."""
_CONTROL_FLOW = ("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE")


class Stepwise:
    """One signature's subgraph on some examples, as far as its operators were run.

    Only the tensors that later operators read are kept, for every example.

    Args:
        model: The model; its operators may be changed between two calls of `run_to`.
        signature: The signature, of the schema's class.
        samples: Its inputs, as the float file takes them.
    """

    def __init__(self, model: Any, signature: Any, samples: Sequence[Example]) -> None:
        self._model = model
        self._subgraph = model.subgraphs[signature.subgraphIndex]
        self._count = len(samples)
        self._done = 0
        self._names = flatbuffer.builtin_names()
        self._values: dict[int, list[Array]] = {}
        for mapped in signature.inputs:
            tensor, name = int(mapped.tensorIndex), flatbuffer.text(mapped.name)
            detail = _detail(self._subgraph.tensors[tensor])
            self._values[tensor] = [as_taken(sample[name], detail) for sample in samples]

    def run_to(self, end: int) -> None:
        """Run the operators before the place `end` that were not run yet."""
        import numpy as np

        operators = [op for op in self._subgraph.operators[self._done : end] if not self._is_constant(op)]
        taken, given = self._edges(operators, end)
        if given:
            operators = [*self._constants_for(operators), *operators]
            runtime = interpreter(self._part(operators, taken, given))
            runtime.allocate_tensors()
            made: dict[int, list[Array]] = {tensor: [] for tensor in given}
            for example in range(self._count):
                for tensor in taken:
                    runtime.set_tensor(tensor, self._values[tensor][example])
                runtime.invoke()
                for tensor in given:
                    made[tensor].append(np.array(runtime.get_tensor(tensor)))
            self._values |= made
        self._done = end
        needed = self._read_from(end)
        self._values = {tensor: value for tensor, value in self._values.items() if tensor in needed}

    def mean(self, tensor: int) -> Floats:
        """The mean over the examples of a tensor's real values, float64, in its shape."""
        import numpy as np

        detail = _detail(self._subgraph.tensors[tensor])
        scale, zero_point = detail["quantization"]
        total = np.zeros(())
        for value in self._values[tensor]:
            total = total + value.astype(np.float64)
        mean = total / self._count
        return np.asarray((mean - zero_point) * scale if scale else mean)

    def second_moment(self, tensor: int) -> Floats:
        """The mean over examples and places of the products of every two channels, shape (last axis, last axis)."""
        import numpy as np

        scale, zero_point = _detail(self._subgraph.tensors[tensor])["quantization"]
        total, count = np.zeros(()), 0
        for value in self._values[tensor]:
            rows = value.reshape(-1, value.shape[-1])
            taken = rows[:: max(1, len(rows) // _ROWS)].astype(np.float32) - np.float32(zero_point)
            total, count = total + (taken.T @ taken).astype(np.float64), count + len(taken)
        return np.asarray(total / count * (scale or 1.0) ** 2)

    def _is_constant(self, operator: Any) -> bool:
        """Whether an operator computes from constants alone, as what unpacks weights does."""
        return all(
            int(tensor) < 0 or self._model.buffers[self._subgraph.tensors[int(tensor)].buffer].data is not None
            for tensor in operator.inputs
        )

    def _constants_for(self, operators: Sequence[Any]) -> list[Any]:
        """Such operators whose results these read: runtimes take weights from them, not from an input."""
        read = {int(tensor) for operator in operators for tensor in operator.inputs}
        return [
            operator
            for operator in self._subgraph.operators
            if self._is_constant(operator) and read & {int(tensor) for tensor in operator.outputs}
        ]

    def _edges(self, operators: Sequence[Any], end: int) -> tuple[list[int], list[int]]:
        made = {int(t) for operator in operators for t in operator.outputs}
        read = {int(t) for operator in operators for t in operator.inputs}
        taken = sorted((read - made) & self._values.keys())
        return taken, sorted(made & self._read_from(end))

    def _read_from(self, place: int) -> set[int]:
        later = {int(t) for operator in self._subgraph.operators[place:] for t in operator.inputs}
        return later | {int(t) for t in self._subgraph.outputs}

    def _part(self, operators: Sequence[Any], taken: Sequence[int], given: Sequence[int]) -> bytes:
        """A file of these operators alone, with the same tensors by the same numbers."""
        tflite = flatbuffer.schema()
        part = tflite.SubGraphT()
        part.tensors, part.operators = self._subgraph.tensors, list(operators)
        part.inputs, part.outputs = list(taken), list(given)
        kinds = {flatbuffer.operator_name(self._model, operator, self._names) for operator in operators}
        model = tflite.ModelT()
        model.version, model.operatorCodes = self._model.version, self._model.operatorCodes
        # What an operator calls stands at its own place; nothing calls a signature's first subgraph.
        whole = bool(kinds & set(_CONTROL_FLOW))
        model.subgraphs = [part, *self._model.subgraphs[1:]] if whole else [part]
        used = {part.tensors[int(t)].buffer for operator in operators for t in operator.inputs if int(t) >= 0}
        model.buffers = [
            buffer if whole or place in used else tflite.BufferT() for place, buffer in enumerate(self._model.buffers)
        ]
        return flatbuffer.write(model)


def _detail(tensor: Any) -> dict[str, Any]:
    """What the runtime would say of a tensor: its type, and its one scale and zero point; a scale of 0 is none."""
    quantization = tensor.quantization
    scales = None if quantization is None else quantization.scale
    one = scales is not None and len(scales) == 1
    pair = (float(scales[0]), int(quantization.zeroPoint[0])) if one and scales is not None else (0.0, 0)
    return {"dtype": flatbuffer.type_name(tensor.type), "quantization": pair}
