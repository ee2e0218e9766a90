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
    """One model in ONNX Runtime.

    Args:
        path: The `.onnx` or `.ort` file.
        threads: Threads within an operator.
        bindings: The model's own name of an input or output, where it is not ours: `inputs.image` → `args_0`.
        options: `optimization`: `all` (default), `extended`, `basic` or `none`; `providers`: execution providers, the
            preferred first (default: the CPU's).
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
            "extended": levels.ORT_ENABLE_EXTENDED,
            "basic": levels.ORT_ENABLE_BASIC,
            "none": levels.ORT_DISABLE_ALL,
        }[self._options.get("optimization", "all")]
        self._session = runtime.InferenceSession(self._path, settings, providers=self._providers())
        self.inputs = [self._described("inputs", node) for node in self._session.get_inputs()]
        self.outputs = [self._described("outputs", node) for node in self._session.get_outputs()]
        self._native = {spec["name"]: node.name for spec, node in zip(self.inputs, self._session.get_inputs())}
        self._fetch = [node.name for node in self._session.get_outputs()]

    def _providers(self) -> list[str]:
        """The providers asked for; the runtime itself would only warn of one that it does not have."""
        wanted = [str(name) for name in self._options.get("providers", ["CPUExecutionProvider"])]
        has = self._runtime.get_available_providers()
        for name in wanted:
            if name not in has:
                raise ValueError(f"onnxruntime has no provider {name} here; it has: {', '.join(has)}")
        return wanted

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

    def intermediates(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """What each node of the file gives, for inputs of exactly the model's shapes; nothing is fused while loading."""
        import onnx_outputs  # type: ignore[import-not-found]  # beside this file, as in agent.py

        if self._path.endswith(".ort"):
            raise ValueError("a file in ORT format does not show its inner values; compile it with `format: onnx`")
        with open(self._path, "rb") as stream:
            model, names = onnx_outputs.with_all_outputs(stream.read())
        settings = self._runtime.SessionOptions()
        settings.intra_op_num_threads = self._threads
        settings.log_severity_level = 3
        settings.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = self._runtime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        floats = {node.name for node in session.get_outputs() if node.type in ("tensor(float)", "tensor(float16)")}
        wanted = [name for name in dict.fromkeys(names) if name in floats]
        values = session.run(wanted, {self._native[name]: array for name, array in arrays.items()})
        return dict(zip(wanted, values))

    def facts(self) -> dict[str, Any]:
        """What ran, as far as the runtime tells."""
        return {
            "runtime": "onnxruntime",
            "runtime_version": self._runtime.__version__,
            "threads": self._session.get_session_options().intra_op_num_threads,
            "delegate": self._session.get_providers()[0],
        }
