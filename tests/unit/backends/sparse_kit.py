"""Pruned networks and their conversions, for the tests of how backends store sparse weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.backends.base import CompileRequest
from edgekit.core.lowering import Quantize
from edgekit.core.target import Target
from tests.unit.backends.conversions import request_for


class Mlp(nn.Module):
    """Two linear layers with a convolution before them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.hidden = nn.Linear(16 * 36, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image)).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def pruned(share: float, seed: int = 0) -> Mlp:
    """A network whose linear layers have this share of zeros, the smallest weights."""
    torch.manual_seed(seed)
    module = Mlp().eval()
    for layer in (module.hidden, module.head):
        weight = layer.weight.data
        limit = weight.abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
        # Negative zeros too, as a product with a mask leaves them.
        weight.mul_((weight.abs() > limit).float() if share else 1.0).mul_(2.0)
    return module


def request_of(
    folder: Path, module: nn.Module, to: Target, scheme: str | None, sparse: str
) -> tuple[CompileRequest, dict[str, np.ndarray], dict[str, np.ndarray]]:
    image = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    request, inputs, outputs = request_for(folder, module, image, to, scheme, "image")
    examples = torch.randn(16, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    np.save(folder / "calibration" / "image.npy", examples.numpy())
    return with_sparse(request, sparse), inputs, outputs


def with_sparse(request: CompileRequest, sparse: Any, scheme: Any = "same") -> CompileRequest:
    lowering = replace(request.lowering, sparse=sparse)
    if scheme != "same":
        lowering = replace(lowering, quantize=Quantize(scheme) if scheme else None)
    return replace(request, lowering=lowering)
