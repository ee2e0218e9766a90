"""ONNX element types as torch's, and ONNX tensors as torch tensors."""

from __future__ import annotations

from typing import Any

from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.libs import np, onnx, torch

_T = onnx.TensorProto
TORCH_OF: dict[int, Any] = {
    _T.FLOAT: torch.float32,
    _T.DOUBLE: torch.float64,
    _T.FLOAT16: torch.float16,
    _T.BFLOAT16: torch.bfloat16,
    _T.INT8: torch.int8,
    _T.INT16: torch.int16,
    _T.INT32: torch.int32,
    _T.INT64: torch.int64,
    _T.UINT8: torch.uint8,
    _T.UINT16: torch.uint16,
    _T.UINT32: torch.uint32,
    _T.UINT64: torch.uint64,
    _T.BOOL: torch.bool,
}
ONNX_OF: dict[Any, int] = {dtype: code for code, dtype in TORCH_OF.items()}
WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)

# torch has no 4-bit and 2-bit integers: constants of these types keep their values in 8 bits.
_NARROW = {_T.INT4: np.int8, _T.UINT4: np.uint8}
if hasattr(_T, "INT2"):
    _NARROW |= {_T.INT2: np.int8, _T.UINT2: np.uint8}
_BIT_PATTERN = {
    _T.BFLOAT16: (np.uint16, torch.bfloat16),
    _T.FLOAT8E4M3FN: (np.uint8, torch.float8_e4m3fn),
    _T.FLOAT8E4M3FNUZ: (np.uint8, torch.float8_e4m3fnuz),
    _T.FLOAT8E5M2: (np.uint8, torch.float8_e5m2),
    _T.FLOAT8E5M2FNUZ: (np.uint8, torch.float8_e5m2fnuz),
}


def type_name(code: int) -> str:
    """The name of an ONNX element type, in lower case."""
    return str(_T.DataType.Name(code)).lower() if code in _T.DataType.values() else f"type {code}"


def torch_dtype(code: int) -> Any:
    """The torch dtype of an ONNX element type.

    Raises:
        Refused: There is none that can be computed with.
    """
    if code not in TORCH_OF:
        raise Refused(f"torch cannot compute with values of type {type_name(code)}")
    return TORCH_OF[code]


def dtype_name(dtype: Any) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def tensor_from_proto(proto: Any) -> Any:
    """The values of an ONNX tensor, in memory of their own.

    Raises:
        Refused: Its type has no counterpart.
    """
    code = proto.data_type
    if code not in TORCH_OF and code not in _NARROW and code not in _BIT_PATTERN:
        raise Refused(f"the constant '{proto.name}' is of type {type_name(code)}, which torch does not have")
    array = onnx.numpy_helper.to_array(proto)
    if code in _NARROW:
        return torch.from_numpy(array.astype(_NARROW[code]))
    if code in _BIT_PATTERN:
        bits, dtype = _BIT_PATTERN[code]
        return tensor_from_array(np.ascontiguousarray(array).view(bits)).view(dtype)
    return tensor_from_array(array)


def tensor_from_array(array: Any) -> Any:
    """A numpy array as a tensor, copied: arrays from protobuf are read-only views."""
    array = np.asarray(array)
    if str(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C", copy=True))


def array_from_tensor(tensor: Any) -> Any:
    """A known tensor as the numpy array that `onnx.reference` expects."""
    if tensor.dtype == torch.bfloat16:
        ml_dtypes = __import__("ml_dtypes")
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
