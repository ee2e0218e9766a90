"""torch's `topk` and `sort` as LiteRT's TOPK_V2: litert-torch makes an operator of them that the runtime does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.backends._litert.rewriting import replace_calls
from edgekit.core.extras import require

_WHY = "the backend litert"


def use_top_k(module: Any) -> int:
    """Rewrite the module's `topk` and `sort`, in place; how many there were."""
    torch = require("torch", "litert-convert", _WHY)
    # Its import registers the operator tfl.topk_v2 with torch and with the converter.
    require("litert_torch.backend.experimental.torch_tfl", "litert-convert", _WHY)
    aten = torch.ops.aten
    replacements: dict[Any, Callable[..., Any]] = {
        aten.topk.default: _topk,
        aten.sort.default: _sort,
        aten.sort.stable: _stable_sort,
    }
    return replace_calls(module, replacements)


def _topk(x: Any, k: int, dim: int = -1, largest: bool = True, *_: Any, **__: Any) -> tuple[Any, Any]:
    """In order always, which `sorted` only allows."""
    torch = require("torch", "litert-convert", _WHY)
    moved = x.movedim(dim, -1)
    values, places = torch.ops.tfl.topk_v2(moved if largest else -moved, k)
    values = values if largest else -values
    return values.movedim(-1, dim), places.to(torch.int64).movedim(-1, dim)


def _sort(x: Any, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    return _topk(x, x.shape[dim], dim, descending)


def _stable_sort(x: Any, *, dim: int = -1, descending: bool = False, **_: Any) -> tuple[Any, Any]:
    # TOPK_V2 gives equal values in the order of their places.
    return _topk(x, x.shape[dim], dim, descending)
