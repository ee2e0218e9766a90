"""Files in which equal things stand once.

The graph of a network with packed weights can weigh as much as they do: names, shapes and options repeat in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgekit.backends._litert import flatbuffer

if TYPE_CHECKING:
    from edgekit.core.task import Array


def write(model: Any) -> bytes:
    """The file's bytes, with equal shapes, names, lists of tensors, tensors without a name, and options in it once.

    A flatbuffer's tables point at them, and several may point at one. The model is not to be used any more.
    """
    import numpy as np

    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            tensor.shape = np.asarray(tensor.shape, np.int32)
        subgraph.tensors = [_Shared(tensor) if _is_plain(tensor) else tensor for tensor in subgraph.tensors]
        for operator in subgraph.operators:
            operator.inputs, operator.outputs = (
                np.asarray(places, np.int32) for places in (operator.inputs, operator.outputs)
            )
            if operator.builtinOptions is not None:
                operator.builtinOptions = _Shared(operator.builtinOptions)
    return flatbuffer.write(_Packed(model))


class _Packed:
    """A model as `flatbuffer.write` takes it."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def buffers(self) -> Any:
        """The model's own."""
        return self._model.buffers

    @buffers.setter
    def buffers(self, buffers: Any) -> None:
        self._model.buffers = buffers

    @property
    def subgraphs(self) -> Any:
        """The model's own."""
        return self._model.subgraphs

    def Pack(self, builder: Any) -> int:  # noqa: N802  # the name that the schema's classes have
        """Write the model with a builder that shares."""
        return int(self._model.Pack(_Sharing(builder)))


class _Sharing:
    """A flatbuffer's builder that writes equal vectors and strings once."""

    def __init__(self, builder: Any) -> None:
        object.__setattr__(self, "_builder", builder)
        object.__setattr__(self, "_known", {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._builder, name, value)

    def once(self, key: Any, make: Callable[[], Any]) -> int:
        """Where the thing of that key stands; made where there is none yet."""
        if key not in self._known:
            self._known[key] = make()
        return int(self._known[key])

    def CreateNumpyVector(self, values: Array) -> int:  # noqa: N802  # the builder's own name
        """See the builder."""
        key = (values.dtype.str, values.tobytes())
        return self.once(key, lambda: self._builder.CreateNumpyVector(values))

    def CreateString(self, text: Any) -> int:  # noqa: N802  # the builder's own name
        """See the builder."""
        return self.once(flatbuffer.text(text), lambda: self._builder.CreateString(text))


def _plain(value: Any) -> Any:
    """A field of a table as something to compare by."""
    return tuple(map(int, value)) if hasattr(value, "__len__") and not isinstance(value, str | bytes) else value


def _is_plain(tensor: Any) -> bool:
    """Whether nothing but its shape, type, name and bytes makes the tensor what it is."""
    return all(field is None for field in (tensor.quantization, tensor.sparsity, tensor.variantTensors))


class _Shared:
    """A tensor or an operator's options, in the file once where another is the same."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def Pack(self, builder: Any) -> int:  # noqa: N802  # the name that the schema's classes have
        """Write the table, or find it where it was written."""
        fields = tuple((name, _plain(value)) for name, value in vars(self._table).items())
        return int(builder.once((type(self._table).__name__, fields), lambda: self._table.Pack(builder)))
