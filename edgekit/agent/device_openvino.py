"""Runs a model with OpenVINO on a device: numpy and the runtime only, Python 3.9 or newer."""

from __future__ import annotations

import sys
from typing import Any

_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "boolean": "bool",
}


class Driver:
    """One model in OpenVINO.

    Args:
        path: The `.xml` file (its `.bin` beside it), or an `.onnx`.
        threads: Inference threads.
        bindings: The model's own name of an input or output, where it is not ours: `inputs.image` → `args_0`. A number
            as own name is a position, for tensors without a name.
        options: `precision` (default `f32`; `auto` leaves it to the device), `device` (default `CPU`), and
            `properties`: any other property of the runtime.
    """

    OPTIONS = ("device", "precision", "properties")

    def __init__(self, path: str, threads: int, bindings: dict[str, str], options: dict[str, Any]) -> None:
        # An import that fails makes OpenVINO take its own silent stub: nothing is sent and no file is written at home.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how an import is blocked
        import openvino

        self._runtime = openvino
        self._path, self._threads, self._bindings, self._options = path, threads, bindings, options
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []

    def load(self) -> None:
        """Read the file and compile it for the device."""
        core = self._runtime.Core()
        device = str(self._options.get("device", "CPU"))
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        if device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = str(self._threads)
        # The default precision follows the processor (bf16 where it has it), and with it the outputs.
        precision = str(self._options.get("precision", "f32"))
        if precision != "auto":
            settings["INFERENCE_PRECISION_HINT"] = precision
        settings.update({key: str(value) for key, value in dict(self._options.get("properties", {})).items()})
        self._compiled = core.compile_model(core.read_model(self._path), device, settings)
        self._request = self._compiled.create_infer_request()
        self.inputs = [self._described("inputs", i, port) for i, port in enumerate(self._compiled.inputs)]
        self.outputs = [self._described("outputs", i, port) for i, port in enumerate(self._compiled.outputs)]

    def _described(self, side: str, position: int, port: Any) -> dict[str, Any]:
        ours = {native: key[len(side) + 1 :] for key, native in self._bindings.items() if key.startswith(side + ".")}
        own = sorted(port.get_names())
        bound = [ours[name] for name in [*own, str(position)] if name in ours]
        name = bound[0] if bound else own[0] if own else str(position)
        shape = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
        kind = port.get_element_type().get_type_name()
        return {"name": name, "shape": shape, "dtype": _DTYPES.get(kind, kind)}

    def prepare(self, arrays: dict[str, Any]) -> None:
        """Set the inputs; `arrays` has exactly the shapes and types of `inputs`."""
        for position, spec in enumerate(self.inputs):
            self._request.set_input_tensor(position, self._runtime.Tensor(arrays[spec["name"]]))

    def invoke(self) -> None:
        """One inference."""
        self._request.infer()

    def results(self) -> dict[str, Any]:
        """Copies of the outputs of the last inference."""
        return {spec["name"]: self._request.get_output_tensor(i).data.copy() for i, spec in enumerate(self.outputs)}

    def intermediates(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """What each operation of the file gives, computed in float32, for inputs of exactly the model's shapes."""
        core = self._runtime.Core()
        model = core.read_model(self._path)
        ports = _computed_floats(model)
        results = [self._runtime.opset1.result(port) for port in ports.values()]
        whole = self._runtime.Model(results, model.get_parameters(), "intermediates")
        settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(self._threads)}
        request = core.compile_model(whole, "CPU", settings).create_infer_request()
        for position, spec in enumerate(self.inputs):
            request.set_input_tensor(position, self._runtime.Tensor(arrays[spec["name"]]))
        request.infer()
        return {name: request.get_output_tensor(i).data.copy() for i, name in enumerate(ports)}

    def facts(self) -> dict[str, Any]:
        """What ran, as far as the runtime tells."""
        found: dict[str, Any] = {
            "runtime": "openvino",
            "runtime_version": self._runtime.__version__.partition("-")[0],
            "delegate": ",".join(self._compiled.get_property("EXECUTION_DEVICES")),
            "threads": self._threads,
        }
        supported = self._compiled.get_property("SUPPORTED_PROPERTIES")
        if "INFERENCE_NUM_THREADS" in supported:
            found["threads"] = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        if "INFERENCE_PRECISION_HINT" in supported:
            precision = self._compiled.get_property("INFERENCE_PRECISION_HINT")
            found["precision"] = getattr(precision, "get_type_name", lambda: str(precision))()
        return found


def _computed_floats(model: Any) -> dict[str, Any]:
    """Ports of floating-point values that follow from an input, by name, in an order in which they can be computed."""
    found: dict[str, Any] = {}
    computed: set[str] = set()
    for operation in model.get_ordered_ops():
        kind, name = operation.get_type_name(), operation.get_name()
        if kind == "Result":
            continue
        sources = [port.get_source_output().get_node().get_name() for port in operation.inputs()]
        if kind != "Parameter" and not computed.intersection(sources):
            continue
        computed.add(name)
        if kind == "Parameter":
            continue
        ports = operation.outputs()
        for index, port in enumerate(ports):
            if port.get_element_type().get_type_name() in ("f32", "f16", "bf16"):
                label = operation.get_friendly_name()
                label = label if len(ports) == 1 else f"{label}.{index}"
                found[label if label not in found else f"{label} ({name})"] = port
    return found
