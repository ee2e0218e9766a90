"""The stand-in of coremltools' binding to Core ML, for every Python on the stand-in Mac: imported by its sitecustomize."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any


class Proxy:
    """`_MLModelProxy`: a package, computed by edgekit's reference evaluator."""

    def __init__(self, path: str, units: str, *others: Any) -> None:
        from edgekit.backends._mil.evaluator import ReferenceEvaluator
        from edgekit.core.errors import EdgekitError

        start = time.perf_counter_ns()
        try:
            self._evaluator = ReferenceEvaluator(Path(path))
        except EdgekitError as error:
            raise RuntimeError(error.message) from error
        self._load = time.perf_counter_ns() - start
        self._predict = 0

    @staticmethod
    def maximum_supported_specification_version() -> int:
        return 9

    @staticmethod
    def compileModel(path: str) -> str:  # noqa: N802
        made = Path(tempfile.mkdtemp(suffix="compiled")) / "model.mlmodelc"
        shutil.copytree(path, made)
        return str(made)

    def predict(self, inputs: dict[str, Any], state: Any) -> dict[str, Any]:
        start = time.perf_counter_ns()
        outputs = self._evaluator.run(inputs)
        self._predict = time.perf_counter_ns() - start
        return outputs

    def get_load_duration_in_nano_seconds(self) -> int:
        return self._load

    def get_last_predict_duration_in_nano_seconds(self) -> int:
        return self._predict


class Binding(ModuleType):
    """`coremltools.libcoremlpython`."""

    def __getattr__(self, name: str) -> Any:
        if name != "_MLModelProxy":
            raise AttributeError(name)
        # First asked for when coremltools' own modules beside it are there: those that want to be on a Mac.
        utils = sys.modules["coremltools.models.utils"]
        utils._macos_version = lambda: (15, 1)  # type: ignore[attr-defined]
        remote = sys.modules.get("coremltools.models.ml_program.experimental.remote_device")
        if remote is not None:
            folder = Path(os.environ["STAND_IN_MAC"]) / "modelrunner"
            remote._ModelRunnerAppBuilder._get_project_path = staticmethod(lambda: folder)  # type: ignore[attr-defined]
        return Proxy


sys.modules.setdefault("coremltools.libcoremlpython", Binding("coremltools.libcoremlpython"))
