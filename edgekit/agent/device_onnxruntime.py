"""Runs a model with ONNX Runtime on a device: numpy and the runtime only, Python 3.9 or newer."""

from __future__ import annotations

import os
from typing import Any

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class Driver:
    """One model in ONNX Runtime on the CPU.

    Args:
        path: The `.onnx` file.
        threads: Threads within an operator.
        bindings: The model's own name of an input or output, where it is not ours: `inputs.image` → `args_0`.
        options: `optimization`: `all` (default), `basic` or `none`.
    """

    OPTIONS = ("optimization",)

    def __init__(self, path: str, threads: int, bindings: dict[str, str], options: dict[str, Any]) -> None:
        # From 1.30 on its Linux wheels send usage data and keep a device id in the home folder unless told not to.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        self._runtime = onnxruntime
        self._path, self._threads, self._bindings, self._options = path, threads, bindings, options
        self._feeds: dict[str, Any] = {}
        self._values: list[Any] = []
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []

    def load(self) -> None:
        """Read the file and prepare a session."""
        runtime = self._runtime
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = self._threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        settings.log_severity_level = 3
        levels = runtime.GraphOptimizationLevel
        settings.graph_optimization_level = {
            "all": levels.ORT_ENABLE_ALL,
            "basic": levels.ORT_ENABLE_BASIC,
            "none": levels.ORT_DISABLE_ALL,
        }[self._options.get("optimization", "all")]
        self._session = runtime.InferenceSession(self._path, settings, providers=["CPUExecutionProvider"])
        self.inputs = [self._described("inputs", node) for node in self._session.get_inputs()]
        self.outputs = [self._described("outputs", node) for node in self._session.get_outputs()]
        self._native = {spec["name"]: node.name for spec, node in zip(self.inputs, self._session.get_inputs())}
        self._fetch = [node.name for node in self._session.get_outputs()]

    def _described(self, side: str, node: Any) -> dict[str, Any]:
        ours = {native: key for key, native in self._bindings.items() if key.startswith(side + ".")}
        name = ours.get(node.name, f"{side}.{node.name}")[len(side) + 1 :]
        shape = [size if isinstance(size, int) else None for size in node.shape]
        return {"name": name, "shape": shape, "dtype": _DTYPES.get(node.type, node.type)}

    def prepare(self, arrays: dict[str, Any]) -> None:
        """Set the inputs; `arrays` has exactly the shapes and types of `inputs`."""
        self._feeds = {self._native[name]: array for name, array in arrays.items()}

    def invoke(self) -> None:
        """One inference."""
        self._values = self._session.run(self._fetch, self._feeds)

    def results(self) -> dict[str, Any]:
        """The outputs of the last inference."""
        return {spec["name"]: value for spec, value in zip(self.outputs, self._values)}

    def facts(self) -> dict[str, Any]:
        """What ran, as far as the runtime tells."""
        return {
            "runtime": "onnxruntime",
            "runtime_version": self._runtime.__version__,
            "threads": self._session.get_session_options().intra_op_num_threads,
            "delegate": self._session.get_providers()[0],
        }
