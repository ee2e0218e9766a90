"""Compressed weights, decompressed by our own code: the `constexpr_*` operators in numpy.

Each gives what Core ML's own definition of the operator says, to the bit: multiplication in float32, then one
rounding to the type of the scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgekit.backends._mil.blobs import unpack_bits
from edgekit.core.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from edgekit.core.task import Array

Parameters = Mapping[str, Any]


def decompress(kind: str, label: str, parameters: Parameters) -> tuple[Array, ...]:
    """The outputs of a `constexpr_*` operation.

    Args:
        kind: The operator.
        label: The operation, for messages.
        parameters: Its parameters as arrays.

    Raises:
        UnsupportedModelError: The operator is not known.
        ConfigError: A parameter is missing, or the pieces do not fit each other.
    """
    if kind not in _TABLE:
        raise UnsupportedModelError(
            f"The compressed weight {label} uses an operator that the reference evaluator does not know.",
            f"It knows: {', '.join(sorted(_TABLE))}.",
        )
    try:
        found = _TABLE[kind](parameters)
    except (ValueError, IndexError) as error:
        raise ConfigError(f"The compressed weight {label} is damaged: {error}.", "Compile the model anew.") from error
    except KeyError as error:
        raise ConfigError(f"The compressed weight {label} lacks its {error}.", "Compile the model anew.") from error
    return found if isinstance(found, tuple) else (found,)


def affine_dequantize(parameters: Parameters) -> Array:
    """`scale · (quantized_data - zero_point)`, both along `axis` or for all."""
    import numpy as np

    data, scale = parameters["quantized_data"], np.asarray(parameters["scale"])
    zero_point, axis = np.asarray(parameters["zero_point"]), int(parameters["axis"])
    along = [1] * data.ndim
    along[axis] = -1
    values = data.astype(np.float32)
    values -= _aligned(zero_point, along).astype(np.float32)
    scaled: Array = (values * _aligned(scale, along)).astype(scale.dtype)
    return scaled


def blockwise_shift_scale(parameters: Parameters) -> Array:
    """`scale · (data - offset)`, scale and offset each for one block of `data`."""
    import numpy as np

    data, scale, offset = parameters["data"], np.asarray(parameters["scale"]), parameters.get("offset")
    values = data.astype(np.float32)
    if offset is not None:
        values -= _spread(np.asarray(offset), data.shape).astype(np.float32)
    scaled: Array = (values * _spread(scale, data.shape)).astype(scale.dtype)
    return scaled


def lut_to_dense(parameters: Parameters) -> Array:
    """Entries of a palette: flat with packed indices (iOS 16), or by block and by vector (iOS 18)."""
    import numpy as np

    lut, indices = np.asarray(parameters["lut"]), np.asarray(parameters["indices"])
    if "shape" in parameters:
        shape = _sizes(parameters["shape"])
        flat: Array = lut[unpack_bits(indices, int(math.log2(lut.size)), math.prod(shape))]
        return flat.reshape(shape)
    entries, vector = lut.shape[-2:]
    table = _spread(lut, indices.shape).reshape(-1, entries, vector)
    dense = table[np.arange(indices.size), indices.reshape(-1).astype(np.int64)].reshape(*indices.shape, vector)
    return _vectors_along(dense, parameters.get("vector_axis"))


def sparse_to_dense(parameters: Parameters) -> Array:
    """The values where the mask is set, and zero elsewhere."""
    import numpy as np

    values, mask = np.asarray(parameters["nonzero_data"]), np.asarray(parameters["mask"])
    if "shape" in parameters:
        shape = _sizes(parameters["shape"])
        mask = np.unpackbits(mask, bitorder="little", count=math.prod(shape)).reshape(shape)
    dense = np.zeros(mask.shape, values.dtype)
    dense[mask != 0] = values
    return dense


def cast(parameters: Parameters) -> Array:
    """float16 values in float32."""
    import numpy as np

    if parameters["output_dtype"] != "fp32":
        raise ValueError(f"output type {parameters['output_dtype']}")
    return np.asarray(parameters["source_val"]).astype(np.float32)


def lut_to_sparse(parameters: Parameters) -> tuple[Array, Array]:
    """Entries of a palette for the values that are not zero: the mask, and the values."""
    import numpy as np

    mask = np.asarray(parameters["indices_mask"])
    indices = sparse_to_dense({"nonzero_data": parameters["indices_nonzero_data"], "mask": mask})
    shared = {"lut": parameters["lut"], "vector_axis": parameters.get("vector_axis")}
    dense = lut_to_dense({"indices": indices, **shared})
    vector = np.asarray(parameters["lut"]).shape[-1]
    wide = _vectors_along(np.repeat(mask[..., None], vector, axis=-1), parameters.get("vector_axis"))
    return wide, dense[wide != 0].reshape(-1)


def sparse_blockwise_shift_scale(parameters: Parameters) -> tuple[Array, Array]:
    """Shift and scale of the values that are not zero: the mask, and the values."""
    import numpy as np

    mask = np.asarray(parameters["data_mask"])
    data = sparse_to_dense({"nonzero_data": parameters["nonzero_data"], "mask": mask})
    shared = {name: parameters[name] for name in ("scale", "offset") if name in parameters}
    dense = blockwise_shift_scale({"data": data, **shared})
    return mask, dense[mask != 0].reshape(-1)


def _aligned(parameter: Array, along: list[int]) -> Array:
    return parameter.reshape(along) if parameter.ndim == 1 else parameter


def _spread(blocks: Array, shape: tuple[int, ...]) -> Array:
    import numpy as np

    spread = blocks
    for axis, size in enumerate(shape):
        if size % blocks.shape[axis]:
            raise ValueError(f"{blocks.shape[axis]} blocks do not divide {size} along axis {axis}")
        if size != blocks.shape[axis]:
            spread = np.repeat(spread, size // blocks.shape[axis], axis=axis)
    return spread


def _vectors_along(values: Array, axis: Any) -> Array:
    """Merge the last axis, which holds vectors, into `axis`."""
    import numpy as np

    if values.shape[-1] == 1:
        return values[..., 0]
    place = int(axis) % (values.ndim - 1)
    moved = np.moveaxis(values, -1, place + 1)
    return moved.reshape(*values.shape[:place], -1, *values.shape[place + 1 : -1])


def _sizes(shape: Array) -> tuple[int, ...]:
    return tuple(int(size) for size in shape)


_TABLE: Mapping[str, Callable[[Parameters], Any]] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_cast": cast,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": sparse_to_dense,
}
KINDS: frozenset[str] = frozenset(_TABLE)
"""The operators that are known here."""
