"""A `.tflite` file as objects: read, extended by tensors and operators, written back with its constants shared.

The vendor's generated classes do the parsing. Two things they do not: a constant's bytes must lie on a multiple of 16
in the file, for runtimes map it and compute in place; and equal constants are stored once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.core.errors import BackendError
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.core.task import Array

IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
_EXTRA = "litert"
_WHY = "reading and writing .tflite files"
_ABSENT = -1
_LARGEST = 2**31 - 1
ADDED = "edgekit_"
"""How the names of tensors begin that were added here: a quantization recipe can tell them from the converter's."""
_TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "int64": "INT64",
    "int32": "INT32",
    "int16": "INT16",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}


def schema() -> Any:
    """The vendor's generated module of the TFLite schema."""
    return require("ai_edge_litert.schema_py_generated", _EXTRA, _WHY)


def read(content: bytes) -> Any:
    """The model in a file's bytes, as the schema's `ModelT`; constants that lie behind the flatbuffer are taken into it.

    Raises:
        BackendError: The bytes are not a `.tflite` file, or its constants are more than a flatbuffer holds (2 GB).
    """
    import numpy as np

    if content[4:8] != IDENTIFIER:
        raise BackendError("The converter's result is not a .tflite file: its identifier is missing.")
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    outside = [buffer for buffer in model.buffers if buffer.offset > 1]
    if sum(buffer.size for buffer in outside) >= _LARGEST:
        raise BackendError("The .tflite file has more than 2 GB of constants: edgekit cannot edit it.")
    for buffer in outside:
        if buffer.offset + buffer.size > len(content):
            raise BackendError("The .tflite file is cut off: a constant lies behind its end.")
        # ai-edge-quantizer puts constants behind the flatbuffer long before they need to be there.
        buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    return model


def write(model: Any) -> bytes:
    """The file's bytes; equal models give equal bytes."""
    flatbuffers = require("flatbuffers", _EXTRA, _WHY)
    total = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    builder = flatbuffers.Builder(total + (1 << 16))
    plain = model.buffers
    model.buffers = [_Aligned(buffer.data) for buffer in plain]
    once: dict[str, int] = {}
    tensors = [tensor for subgraph in model.subgraphs for tensor in subgraph.tensors]
    # Tensors that are shared as a whole have none.
    sparse = [tensor for tensor in tensors if getattr(tensor, "sparsity", None) is not None]
    tables = [tensor.sparsity for tensor in sparse]
    for tensor in sparse:
        tensor.sparsity = _Once(tensor.sparsity, once)
    try:
        builder.Finish(model.Pack(builder), IDENTIFIER)
    finally:
        model.buffers = plain
        for tensor, table in zip(sparse, tables, strict=True):
            tensor.sparsity = table
    return bytes(builder.Output())


class _Once:
    """Where a sparse tensor's weights stand: in the file once, for the tensors of several signatures point at it."""

    def __init__(self, table: Any, known: dict[str, int]) -> None:
        self._table, self._known = table, known

    def Pack(self, builder: Any) -> int:  # noqa: N802  # the name that the schema's classes have
        """Write the table, or find it where it was written."""
        key = _digest(self._table)
        if key not in self._known:
            self._known[key] = int(self._table.Pack(builder))
        return self._known[key]


def _digest(table: Any) -> str:
    """A digest of what a sparsity table says."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if hasattr(value, "tobytes"):
            found.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        elif hasattr(value, "__dict__"):
            for name, one in vars(value).items():
                found.update(name.encode())
                add(one)
        elif isinstance(value, list):
            found.update(f"[{len(value)}".encode())
            for one in value:
                add(one)
        else:
            found.update(repr(value).encode())

    add(table)
    return found.hexdigest()


class _Aligned:
    """A buffer that packs its bytes on a multiple of 16; the schema's own class does not care."""

    def __init__(self, data: Any) -> None:
        self._data = None if data is None else data.tobytes()

    def Pack(self, builder: Any) -> int:  # noqa: N802  # the name that the schema's classes call
        """Write the buffer's table; called by `ModelT.Pack`."""
        tflite = schema()
        data = 0
        if self._data:
            size = len(self._data)
            builder.StartVector(1, size, _ALIGNMENT)
            builder.head -= size
            builder.Bytes[builder.head : builder.head + size] = self._data
            data = builder.EndVector()
        tflite.BufferStart(builder)
        if data:
            tflite.BufferAddData(builder, data)
        return int(tflite.BufferEnd(builder))


def builtin(name: str) -> int:
    """The schema's number of a built-in operator."""
    return int(getattr(schema().BuiltinOperator, name))


def builtin_names() -> dict[int, str]:
    """Names of the built-in operators by number."""
    return {code: name for name, code in vars(schema().BuiltinOperator).items() if not name.startswith("_")}


def operator_name(model: Any, operator: Any, names: dict[int, str]) -> str:
    """What an operator of the model is: the built-in's name, or the custom operator's own."""
    code = model.operatorCodes[operator.opcodeIndex]
    if code.customCode:
        return text(code.customCode)
    # Files from before the field was widened keep small codes in the old one only.
    return names[max(code.builtinCode, code.deprecatedBuiltinCode)]


def text(value: Any) -> str:
    """A string of the schema, which reads as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value or "")


def signature_types(model: Any, signature: str) -> dict[str, dict[str, str]]:
    """Element types of a signature's tensors by name, of its `input` and `output` side.

    Raises:
        BackendError: The file has no such signature.
    """
    subgraph, sides = _signature(model, signature)
    tensors = subgraph.tensors
    return {
        side: {text(one.name): type_name(tensors[one.tensorIndex].type) for one in mapped}
        for side, mapped in sides.items()
    }


def signature_order(model: Any, signature: str) -> dict[str, list[str]]:
    """Names of a signature's tensors in the order of its subgraph, of its `input` and `output` side.

    Raises:
        BackendError: The file has no such signature, or its subgraph has other inputs or outputs.
    """
    subgraph, sides = _signature(model, signature)
    indices = {"input": subgraph.inputs, "output": subgraph.outputs}
    found = {}
    for side, mapped in sides.items():
        names = {int(one.tensorIndex): text(one.name) for one in mapped}
        if not names.keys() >= {int(index) for index in indices[side]}:
            raise BackendError(f"The signature '{signature}' of the .tflite file does not name every {side}.")
        found[side] = [names[int(index)] for index in indices[side]]
    return found


def _signature(model: Any, signature: str) -> tuple[Any, dict[str, Any]]:
    found = [one for one in model.signatureDefs or [] if text(one.signatureKey) == signature]
    if not found:
        raise BackendError(f"The .tflite file has no signature '{signature}'.")
    sides = {"input": found[0].inputs or [], "output": found[0].outputs or []}
    return model.subgraphs[found[0].subgraphIndex], sides


def set_metadata(model: Any, name: str, data: bytes) -> None:
    """Put a named block of bytes into the file, in the place of one of that name."""
    import numpy as np

    tflite = schema()
    buffer, entry = tflite.BufferT(), tflite.MetadataT()
    buffer.data = np.frombuffer(data, np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = name, len(model.buffers) - 1
    model.metadata = [*(one for one in model.metadata or [] if text(one.name) != name), entry]


def metadata_of(model: Any, name: str) -> bytes | None:
    """The block of bytes of that name; None where there is none."""
    for entry in model.metadata or []:
        if text(entry.name) == name:
            return bytes(model.buffers[entry.buffer].data.tobytes())
    return None


def type_name(number: int) -> str:
    """numpy's name of one of the schema's element types.

    Raises:
        BackendError: It is none that edgekit knows.
    """
    for name, constant in _TYPES.items():
        if getattr(schema().TensorType, constant) == number:
            return name
    raise BackendError(f"The .tflite file has a tensor of the element type {number}, which edgekit does not know.")


class Graph:
    """One subgraph of a model, to which tensors and operators are added.

    Args:
        model: The model.
        subgraph: One of its subgraphs.

    Attributes:
        index: The subgraph's place in the model.
        operators: The operators added so far; the caller puts them where they belong.
    """

    def __init__(self, model: Any, subgraph: Any) -> None:
        self.model = model
        self.subgraph = subgraph
        self.index = next(i for i, one in enumerate(model.subgraphs) if one is subgraph)
        self.operators: list[Any] = []

    @classmethod
    def new(cls, model: Any, name: str) -> Graph:
        """A new subgraph at the end of the model."""
        subgraph = schema().SubGraphT()
        subgraph.tensors, subgraph.operators, subgraph.inputs, subgraph.outputs = [], [], [], []
        subgraph.name = name
        model.subgraphs.append(subgraph)
        return cls(model, subgraph)

    def close(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Make the added operators the subgraph's own, in order."""
        self.subgraph.inputs, self.subgraph.outputs = list(inputs), list(outputs)
        self.subgraph.operators = self.operators

    def tensor(self, shape: Sequence[int], dtype: str = "float32", name: str = "") -> int:
        """A new tensor without a value; its index."""
        return self._add(shape, dtype, name, 0)

    def constant(self, value: Array, name: str = "") -> int:
        """A new constant tensor; its index."""
        import numpy as np

        buffer = schema().BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return self._add(value.shape, value.dtype.name, name, len(self.model.buffers) - 1)

    def share(self, tensor: Any) -> int:
        """A constant of another subgraph, with the same bytes behind it; its index here."""
        return self._add(tensor.shape, type_name(tensor.type), "", tensor.buffer)

    def _add(self, shape: Sequence[int], dtype: str, name: str, buffer: int) -> int:
        tflite = schema()
        tensor = tflite.TensorT()
        place = len(self.subgraph.tensors)
        # The quantizer tells tensors apart by name, in the whole model.
        tensor.name = name or f"{ADDED}{self.index}_{place}"
        tensor.shape = [int(size) for size in shape]
        tensor.type = getattr(tflite.TensorType, _TYPES[dtype])
        tensor.buffer = buffer
        self.subgraph.tensors.append(tensor)
        return place

    def shape(self, tensor: int) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(int(size) for size in self.subgraph.tensors[tensor].shape)

    def is_constant(self, tensor: int) -> bool:
        """Whether a tensor's value stands in the file."""
        data = self.model.buffers[self.subgraph.tensors[tensor].buffer].data
        return data is not None and len(data) > 0

    def value(self, tensor: int) -> Array:
        """A constant's value, float32."""
        import numpy as np

        data = self.model.buffers[self.subgraph.tensors[tensor].buffer].data
        return np.frombuffer(data.tobytes(), np.float32).reshape(self.shape(tensor))

    def op(
        self, name: str, inputs: Sequence[int | None], outputs: Sequence[int], options: Any = None, *, version: int = 1
    ) -> None:
        """Add an operator; an absent optional input is None."""
        tflite = schema()
        operator = tflite.OperatorT()
        operator.opcodeIndex = self._code(builtin(name), version)
        operator.inputs = [_ABSENT if tensor is None else tensor for tensor in inputs]
        operator.outputs = list(outputs)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(tflite.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(operator)

    def reshape(self, tensor: int, shape: Sequence[int], into: int | None = None) -> int:
        """A tensor in another shape; `into` is where it shall go."""
        import numpy as np

        target = self.tensor(shape) if into is None else into
        self.op("RESHAPE", [tensor, self.constant(np.array(shape, np.int32))], [target], schema().ReshapeOptionsT())
        return target

    def zeros(self, shape: Sequence[int]) -> int:
        """A float32 tensor of zeros that the runtime makes: as a constant it would stand in the file."""
        import numpy as np

        target = self.tensor(shape)
        dims, zero = self.constant(np.array(shape, np.int32)), self.constant(np.array(0, np.float32))
        self.op("FILL", [dims, zero], [target], schema().FillOptionsT())
        return target

    def _code(self, number: int, version: int) -> int:
        codes = self.model.operatorCodes
        for place, code in enumerate(codes):
            if code.builtinCode == number and not code.customCode and code.version == version:
                return place
        code = schema().OperatorCodeT()
        code.builtinCode, code.version = number, version
        code.deprecatedBuiltinCode = min(number, 127)
        codes.append(code)
        return len(codes) - 1


def compact(model: Any) -> None:
    """Drop tensors, buffers and operator codes that nothing uses, and store equal constants once; in place."""
    for place, subgraph in enumerate(model.subgraphs):
        _drop_tensors(model, place, subgraph)
    _drop_codes(model)
    _merge_buffers(model)


def name_apart(model: Any) -> None:
    """Give tensors of equal names in several signatures names of their own; in place."""
    seen: set[str] = set()
    for place, subgraph in enumerate(model.subgraphs):
        for index, tensor in enumerate(subgraph.tensors):
            name = text(tensor.name)
            if name in seen:
                name = f"{name}/{place}.{index}"
                tensor.name = name
            seen.add(name)


def _drop_tensors(model: Any, place: int, subgraph: Any) -> None:
    used = {int(t) for t in (*subgraph.inputs, *subgraph.outputs)}
    for operator in subgraph.operators:
        for field in _tensor_fields(operator):
            used |= {int(t) for t in field}
    kept = [index for index in range(len(subgraph.tensors)) if index in used]
    place_of = {old: new for new, old in enumerate(kept)} | {_ABSENT: _ABSENT}

    def renumbered(indices: Sequence[int]) -> list[int]:
        return [place_of[int(index)] for index in indices]

    subgraph.tensors = [subgraph.tensors[index] for index in kept]
    subgraph.inputs, subgraph.outputs = renumbered(subgraph.inputs), renumbered(subgraph.outputs)
    for operator in subgraph.operators:
        operator.inputs, operator.outputs = renumbered(operator.inputs), renumbered(operator.outputs)
        if operator.intermediates is not None:
            operator.intermediates = renumbered(operator.intermediates)
    for signature in model.signatureDefs or []:
        if signature.subgraphIndex == place:
            for mapped in (*signature.inputs, *signature.outputs):
                mapped.tensorIndex = place_of[int(mapped.tensorIndex)]


def _tensor_fields(operator: Any) -> Iterator[Sequence[int]]:
    yield operator.inputs if operator.inputs is not None else []
    yield operator.outputs if operator.outputs is not None else []
    yield operator.intermediates if operator.intermediates is not None else []


def _drop_codes(model: Any) -> None:
    used = sorted({operator.opcodeIndex for subgraph in model.subgraphs for operator in subgraph.operators})
    place_of = {old: new for new, old in enumerate(used)}
    model.operatorCodes = [model.operatorCodes[index] for index in used]
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            operator.opcodeIndex = place_of[operator.opcodeIndex]


def _merge_buffers(model: Any) -> None:
    # The first buffer is empty by the format's rule, and is that of every tensor without a value.
    kept, seen, place_of = [model.buffers[0]], {}, {0: 0}

    def moved(index: int) -> int:
        if index not in place_of:
            data = model.buffers[index].data
            if data is None or len(data) == 0:
                place_of[index] = 0
            else:
                key = (len(data), hashlib.sha256(data.tobytes()).digest())
                if key not in seen:
                    seen[key] = len(kept)
                    kept.append(model.buffers[index])
                place_of[index] = seen[key]
        return place_of[index]

    _each_buffer_use(model, moved)
    model.buffers = kept


def _each_buffer_use(model: Any, moved: Callable[[int], int]) -> None:
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            tensor.buffer = moved(tensor.buffer)
    for entry in model.metadata or []:
        entry.buffer = moved(entry.buffer)
    if model.metadataBuffer is not None:
        model.metadataBuffer = [moved(int(index)) for index in model.metadataBuffer]
