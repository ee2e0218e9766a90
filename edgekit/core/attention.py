"""torch's attention, kept from its fast path: one fused operator that reads its layers' weights past them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Attention as separate operators: hooks and adapters of its layers are called, and each product can be counted."""
    mha = require("torch.backends.mha", TORCH_EXTRA, "a torch model")
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(before)
