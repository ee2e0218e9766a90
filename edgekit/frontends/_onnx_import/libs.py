"""The libraries that the importer computes with. Only modules behind `import_onnx` may import this one."""

from __future__ import annotations

from typing import Any

from edgekit.core.extras import require

_WHY = "importing an ONNX model"

torch: Any = require("torch", "torch", _WHY)
fx: Any = require("torch.fx", "torch", _WHY)
nn: Any = torch.nn
F: Any = torch.nn.functional
np: Any = require("numpy", "torch", _WHY)
onnx: Any = require("onnx", "onnx", _WHY)

Value = Any
"""A `torch.Tensor` where the value is known, a `Traced` where it is not, None for an operand left out."""
