"""Runs a model with LiteRT (older name: tflite-runtime) on a device: numpy and the runtime only, Python ≥ 3.9."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import numpy as np

_DELEGATES = ("DELEGATE", "TfLiteXNNPackDelegate")


class Driver:
    """One signature of a model in the LiteRT interpreter.

    Args:
        path: The `.tflite` file.
        threads: Threads of the interpreter.
        bindings: The signature's (or tensor's) name of an input or output, where it is not ours:
            `inputs.image` → `args_0`.
        options: `signature`: which one, where the file has several; `xnnpack`: false for the built-in kernels;
            `permute`: by input, the axes by which the data's layout becomes the file's; `float_io`: true to give and
            take float32 where the file has integers with a scale.
    """

    OPTIONS = ("signature", "xnnpack", "permute", "float_io")

    def __init__(self, path: str, threads: int, bindings: dict[str, str], options: dict[str, Any]) -> None:
        self._module, self._distribution = _interpreter_module()
        self._path, self._threads, self._bindings, self._options = path, threads, bindings, options
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []

    def load(self) -> None:
        """Read the file, apply the delegate, allocate the tensors."""
        self.open()
        self.allocate()

    def open(self) -> None:
        """The first step of `load`: read the file."""
        more = {}
        if not self._options.get("xnnpack", True):
            more["experimental_op_resolver_type"] = self._module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._interpreter = self._module.Interpreter(model_path=self._path, num_threads=self._threads, **more)

    def allocate(self) -> None:
        """The second step of `load`: apply the delegate, allocate the tensors."""
        self._interpreter.allocate_tensors()
        given, gives = self._details()
        self.inputs = [self._described("inputs", name, detail) for name, detail in given.items()]
        self.outputs = [self._described("outputs", name, detail) for name, detail in gives.items()]
        self._in = {spec["name"]: detail["index"] for spec, detail in zip(self.inputs, given.values())}
        self._out = {spec["name"]: detail["index"] for spec, detail in zip(self.outputs, gives.values())}
        named = [*zip(self.inputs, given.values()), *zip(self.outputs, gives.values())]
        self._detail = {detail["index"]: detail for _, detail in named}

    def _details(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensor details of inputs and outputs by signature name, or by tensor name where there is no signature.

        A signature names the tensors; the values are set and read through the interpreter itself, because a
        signature's runner copies inputs and outputs on each call, which would be timed with the inference.
        """
        given = self._interpreter.get_input_details()
        gives = self._interpreter.get_output_details()
        signatures = self._interpreter.get_signature_list()
        if not signatures:
            return {d["name"]: d for d in given}, {d["name"]: d for d in gives}
        wanted = self._options.get("signature")
        if wanted is None and len(signatures) > 1:
            raise ValueError(f"the model has several signatures: {', '.join(sorted(signatures))}; set `signature`")
        if wanted is not None and wanted not in signatures:
            raise ValueError(f"the model has no signature '{wanted}'; it has {', '.join(sorted(signatures))}")
        runner = self._interpreter.get_signature_runner(wanted)
        ins, outs = runner.get_input_details(), runner.get_output_details()
        main = {d["index"] for d in given}
        if {d["index"] for d in ins.values()} - main:
            raise ValueError("the signature's inputs are not those of the model's first subgraph")
        order = {d["index"]: place for place, d in enumerate(given)}
        return dict(sorted(ins.items(), key=lambda item: order[item[1]["index"]])), dict(outs)

    def _described(self, side: str, native: str, detail: Any) -> dict[str, Any]:
        ours = {own: key[len(side) + 1 :] for key, own in self._bindings.items() if key.startswith(side + ".")}
        name = ours.get(native, ours.get(str(detail["name"]), native))
        shape = [int(size) for size in detail["shape"]]
        axes = self._axes(name) if side == "inputs" else None
        if axes is not None:
            if sorted(axes) != list(range(len(shape))):
                raise ValueError(f"`permute` of the input '{name}' is {axes}, which are not its {len(shape)} axes")
            shape = [size for _, size in sorted(zip(axes, shape))]
        dtype = "float32" if self._scale(name, detail) else np.dtype(detail["dtype"]).name
        return {"name": name, "shape": shape, "dtype": dtype}

    def _axes(self, name: str) -> list[int] | None:
        axes: list[int] | None = self._options.get("permute", {}).get(name)
        return axes

    def _scale(self, name: str, detail: Any) -> tuple[float, int] | None:
        """Scale and zero point by which a tensor's integers stand for floats; None where they are taken as they are."""
        if not self._options.get("float_io") or np.dtype(detail["dtype"]).kind not in "iu":
            return None
        scales = detail["quantization_parameters"]["scales"]
        if len(scales) > 1:
            raise ValueError(f"the tensor '{name}' has a scale for each channel, which an input or output cannot have")
        if not len(scales):
            return None
        return float(scales[0]), int(detail["quantization_parameters"]["zero_points"][0])

    def prepare(self, arrays: dict[str, Any]) -> None:
        """Set the inputs; `arrays` has exactly the shapes and types of `inputs`."""
        for name, array in arrays.items():
            self._interpreter.set_tensor(self._in[name], self._native(name, array))

    def _native(self, name: str, array: Any) -> Any:
        """An input as the file takes it: in its layout, and as integers where it has them."""
        detail, axes = self._detail[self._in[name]], self._axes(name)
        value = array if axes is None else np.ascontiguousarray(np.transpose(array, axes))
        scale = self._scale(name, detail)
        if scale is None:
            return value
        limits = np.iinfo(detail["dtype"])
        return np.clip(np.rint(value / scale[0]) + scale[1], limits.min, limits.max).astype(detail["dtype"])

    def invoke(self) -> None:
        """One inference."""
        self._interpreter.invoke()

    def results(self) -> dict[str, Any]:
        """Copies of the outputs of the last inference."""
        return {name: self._result(name, self._detail[index]) for name, index in self._out.items()}

    def _result(self, name: str, detail: Any) -> Any:
        value = self._interpreter.get_tensor(detail["index"])
        scale = self._scale(name, detail)
        return value if scale is None else (value.astype(np.float32) - np.float32(scale[1])) * np.float32(scale[0])

    def intermediates(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """What each operator of the file gives, for inputs of exactly the model's shapes; integers are dequantized.

        Computed by the built-in kernels: a delegate's inner values cannot be read.
        """
        interpreter = self._module.Interpreter(
            model_path=self._path,
            num_threads=self._threads,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=self._module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
        for name, array in arrays.items():
            interpreter.set_tensor(self._in[name], self._native(name, array))
        interpreter.invoke()
        details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
        found: dict[str, Any] = {}
        for operator in interpreter._get_ops_details():
            for index in operator["outputs"]:
                value = _as_float(interpreter, details.get(index))
                if value is not None:
                    name = str(details[index]["name"]) or f"tensor {index}"
                    found[name if name not in found else f"{name} ({index})"] = value
        return found

    def facts(self) -> dict[str, Any]:
        """What ran; `xnnpack_applied` is None where the interpreter does not show its plan."""
        try:
            operators = self._interpreter._get_ops_details()
        except (AttributeError, KeyError):
            operators = None
        # No other delegate is ever asked for here: a delegate node in the plan is XNNPACK's.
        applied = None if operators is None else any(operator["op_name"] in _DELEGATES for operator in operators)
        found = {
            "runtime": self._distribution,
            "runtime_version": importlib.metadata.version(self._distribution),
            "threads": self._threads,
            "delegate": "XNNPACK" if applied else None if applied is None else "none",
            "xnnpack_applied": applied,
        }
        return found if operators is None else dict(found, not_delegated=self._not_delegated(operators))

    def _not_delegated(self, operators: list[dict[str, Any]]) -> dict[str, int]:
        """How many operators of each kind the interpreter runs itself, in the file's main graph.

        The interpreter lists the operators that a delegate took over like all others. They are known by their results:
        either the delegate's own, or never allocated. The body of a loop is not looked into.
        """
        taken = {index for operator in operators if operator["op_name"] in _DELEGATES for index in operator["outputs"]}
        left: dict[str, int] = {}
        for operator in operators:
            name, results = operator["op_name"], [index for index in operator["outputs"] if index >= 0]
            if name in _DELEGATES:
                continue
            if not taken or any(index not in taken and self._is_allocated(index) for index in results):
                left[name] = left.get(name, 0) + 1
        return left

    def _is_allocated(self, index: int) -> bool:
        try:
            self._interpreter.get_tensor(index)
        except ValueError:
            return False
        return True


def _as_float(interpreter: Any, detail: Any) -> Any:
    """A tensor's values as floats; None for what is no floating-point quantity, or not kept at run time."""
    if detail is None:
        return None
    kind = np.dtype(detail["dtype"]).kind
    scales = detail["quantization_parameters"]["scales"]
    if kind != "f" and (kind not in "iu" or not len(scales)):
        return None
    try:
        value = interpreter.get_tensor(detail["index"])
    except ValueError:
        return None  # an operator's optional output, or one inside a composite
    if kind == "f":
        return value
    zeros = detail["quantization_parameters"]["zero_points"]
    axis = detail["quantization_parameters"]["quantized_dimension"]
    shape = [1] * value.ndim
    if len(scales) > 1:
        shape[axis] = len(scales)
    return (value.astype(np.float32) - zeros.reshape(shape)) * scales.reshape(shape)


def _interpreter_module() -> tuple[Any, str]:
    try:
        return importlib.import_module("ai_edge_litert.interpreter"), "ai-edge-litert"
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ai_edge_litert":
            raise
    try:
        return importlib.import_module("tflite_runtime.interpreter"), "tflite-runtime"
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "tflite_runtime":
            raise
    raise ImportError("neither ai-edge-litert nor tflite-runtime is installed here")
