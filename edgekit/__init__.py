"""Compress, convert, verify, deploy and measure neural networks on phones, boards and PCs.

The names below are loaded when first used: importing edgekit imports no vendor library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgekit._version import __version__

if TYPE_CHECKING:
    from edgekit.api import compile, compress, deploy, load, measure, sensitivity
    from edgekit.core.artifact import Artifact, load_artifact
    from edgekit.core.errors import (
        BackendError,
        BudgetError,
        ConfigError,
        DeviceError,
        EdgekitError,
        MissingExtraError,
        PassError,
        StableDeviceError,
        TransientDeviceError,
        UnsupportedModelError,
        VerificationError,
    )
    from edgekit.core.model import Model, TensorSpec
    from edgekit.core.result import Result
    from edgekit.core.task import Task, joined
    from edgekit.transports.fake import FakeTransport

_HOME = {
    "compile": "edgekit.api",
    "compress": "edgekit.api",
    "deploy": "edgekit.api",
    "load": "edgekit.api",
    "measure": "edgekit.api",
    "sensitivity": "edgekit.api",
    "Artifact": "edgekit.core.artifact",
    "load_artifact": "edgekit.core.artifact",
    "BackendError": "edgekit.core.errors",
    "BudgetError": "edgekit.core.errors",
    "ConfigError": "edgekit.core.errors",
    "DeviceError": "edgekit.core.errors",
    "EdgekitError": "edgekit.core.errors",
    "MissingExtraError": "edgekit.core.errors",
    "PassError": "edgekit.core.errors",
    "StableDeviceError": "edgekit.core.errors",
    "TransientDeviceError": "edgekit.core.errors",
    "UnsupportedModelError": "edgekit.core.errors",
    "VerificationError": "edgekit.core.errors",
    "Model": "edgekit.core.model",
    "TensorSpec": "edgekit.core.model",
    "Result": "edgekit.core.result",
    "Task": "edgekit.core.task",
    "joined": "edgekit.core.task",
    "FakeTransport": "edgekit.transports.fake",
}

__all__ = [
    "Artifact",
    "BackendError",
    "BudgetError",
    "ConfigError",
    "DeviceError",
    "EdgekitError",
    "FakeTransport",
    "MissingExtraError",
    "Model",
    "PassError",
    "Result",
    "StableDeviceError",
    "Task",
    "TensorSpec",
    "TransientDeviceError",
    "UnsupportedModelError",
    "VerificationError",
    "__version__",
    "compile",
    "compress",
    "deploy",
    "joined",
    "load",
    "load_artifact",
    "measure",
    "sensitivity",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'edgekit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
