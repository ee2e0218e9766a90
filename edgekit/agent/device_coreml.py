"""Runs an `.mlpackage` with Core ML on a Mac: numpy and coremltools only, Python 3.9 or newer.

Unverified on hardware: no Mac has run it yet.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_UNITS = {"all": "ALL", "cpu_only": "CPU_ONLY", "cpu_and_gpu": "CPU_AND_GPU", "cpu_and_ne": "CPU_AND_NE"}
_SHOWN_OPERATIONS = 10


class Driver:
    """One model in Core ML.

    Args:
        path: The `.mlpackage`.
        threads: Not used: Core ML chooses its own.
        bindings: The package's own name of an input or output, where it is not ours: `inputs.image` → `args_0`.
        options: `compute_units`: `all` (default), `cpu_only`, `cpu_and_gpu` or `cpu_and_ne`. The others are for the
            converter, which is done.
    """

    OPTIONS: tuple[str, ...] = ("compute_units", "precision", "image_input", "classifier")

    def __init__(self, path: str, threads: int, bindings: dict[str, str], options: dict[str, Any]) -> None:
        import coremltools

        self._tools = coremltools
        self._path, self._bindings, self._options = path, bindings, options
        self._asked = str(options.get("compute_units", "all"))
        if self._asked not in _UNITS:
            raise ValueError(f"there are no compute units '{self._asked}'; there are: {', '.join(_UNITS)}")
        self._units = getattr(coremltools.ComputeUnit, _UNITS[self._asked])
        self._feeds: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        self._model: Any = None
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []

    def load(self) -> None:
        """Compile the package and load it."""
        self._model = self._tools.models.MLModel(self._path, compute_units=self._units)
        if self._model.__proxy__ is None:
            # coremltools keeps what Core ML says until a prediction is asked for.
            raise RuntimeError(f"Core ML does not load it: {self._model._framework_error or 'it does not say why'}")
        self._describe()

    def _describe(self) -> None:
        description = self._model.get_spec().description
        features = [feature for feature in description.input if feature.type.WhichOneof("Type") != "stateType"]
        self.inputs = [spec for feature in features for spec in self._named("inputs", feature)]
        # A classifier's best label is text beside the probabilities that are compared.
        values = [feature for feature in description.output if feature.type.WhichOneof("Type") != "stringType"]
        self.outputs = [spec for feature in values for spec in self._named("outputs", feature)]

    def _named(self, side: str, feature: Any) -> list[dict[str, Any]]:
        """The feature under each of our names: two of our outputs may be one in the package."""
        bound = [key[len(side) + 1 :] for key, own in self._bindings.items() if own == feature.name]
        ours = [name for name in bound if self._bindings.get(f"{side}.{name}") == feature.name]
        return [dict(self._described(feature), name=name, native=feature.name) for name in ours or [feature.name]]

    def _described(self, feature: Any) -> dict[str, Any]:
        kind = feature.type.WhichOneof("Type")
        if kind == "imageType":
            image = feature.type.imageType
            gray = "GRAYSCALE" in type(image).ColorSpace.Name(image.colorSpace)
            return {"shape": [1, 1 if gray else 3, image.height, image.width], "dtype": "uint8", "kind": "image"}
        if kind == "multiArrayType":
            array = feature.type.multiArrayType
            dtype = type(array).ArrayDataType.Name(array.dataType).lower()
            return {"shape": list(array.shape), "dtype": {"double": "float64"}.get(dtype, dtype), "kind": "array"}
        return {"shape": [], "dtype": "float32", "kind": kind}

    def prepare(self, arrays: dict[str, Any]) -> None:
        """Set the inputs; `arrays` has exactly the shapes and types of `inputs`."""
        self._feeds = {spec["native"]: self._fed(spec, arrays[spec["name"]]) for spec in self.inputs}

    def _fed(self, spec: dict[str, Any], array: Any) -> Any:
        if spec["kind"] != "image":
            return array
        from PIL import Image

        # [1, channels, height, width] with 1 or 3 channels, as a picture has them.
        return Image.fromarray(array[0, 0] if spec["shape"][1] == 1 else np.moveaxis(array[0], 0, 2))

    def invoke(self) -> None:
        """One inference, with the copying of inputs and outputs that Core ML does for any program."""
        self._values = self._model.predict(self._feeds)

    def results(self) -> dict[str, Any]:
        """The outputs of the last inference."""
        return {spec["name"]: self._given(spec) for spec in self.outputs}

    def _given(self, spec: dict[str, Any]) -> Any:
        value = self._values[spec["native"]]
        if isinstance(value, dict):
            return np.array([list(value.values())], np.float32)
        # Core ML hands float16 out as float32.
        found = np.array(value, dtype=spec["dtype"])
        fits = spec["shape"] and found.size == int(np.prod(spec["shape"]))
        return found.reshape(spec["shape"]) if fits else found

    def facts(self) -> dict[str, Any]:
        """What ran, as far as the runtime tells."""
        return {
            "runtime": "Core ML",
            "runtime_version": f"coremltools {self._tools.__version__}",
            "threads": None,
            "delegate": self._asked,
            "operations": self._operations(),
        }

    def _operations(self) -> Any:
        """Where each operation runs, and the slowest ones; the reason, where Core ML does not tell."""
        import asyncio

        from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

        try:
            found = asyncio.run(
                MLModelBenchmarker(self._model).benchmark_operation_execution(self._feeds, iterations=1)
            )
        except Exception as error:  # noqa: BLE001  # the measurement itself is done; this only says where it ran
            return {"unavailable": f"{type(error).__name__}: {error}"}
        return summary(found)


def summary(operations: list[Any]) -> dict[str, Any]:
    """Operations by the unit that Core ML prefers for them, and the slowest with their estimated milliseconds.

    Args:
        operations: What `MLModelBenchmarker.benchmark_operation_execution` gives, the slowest first. Its times are
            shares of one prediction's, by the cost that Core ML's plan estimates.
    """
    units: dict[str, int] = {}
    slowest: list[dict[str, Any]] = []
    for one in operations:
        usage = one.compute_device_usage
        if usage is None:
            continue  # a constant, which nothing computes
        unit = type(usage.preferred_compute_device).__name__.replace("ComputeDevice", "").removeprefix("ML")
        units[unit] = units.get(unit, 0) + 1
        statistics = one.measurement.statistics
        if statistics is not None and len(slowest) < _SHOWN_OPERATIONS:
            name = one.spec.outputs[0].name if one.spec.outputs else ""
            slowest.append({"operator": one.spec.type, "name": name, "unit": unit, "estimated_ms": statistics.median})
    return {"units": units, "slowest": slowest}
