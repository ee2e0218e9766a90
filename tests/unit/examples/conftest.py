"""Examples have a `model.py` and a `task.py` each: what one test imports must not be what another one finds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = str(Path(__file__).resolve().parents[3] / "examples")


@pytest.fixture(autouse=True, scope="module")
def own_modules():
    """The path and the modules of examples are as before once the file's tests are done."""
    path, before = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(EXAMPLES):
            del sys.modules[name]
