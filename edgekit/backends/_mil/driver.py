"""Driver of the reference evaluation: the agent's driver for packages that only a Mac or an iPhone can run.

It has the interface of `docs/agent-protocol.md` but runs on the host alone, as it needs this package and torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends._mil.evaluator import ReferenceEvaluator
from edgekit.backends._mil.package import Feature
from edgekit.core.errors import ConfigError, VerificationError
from edgekit.core.extras import require

if TYPE_CHECKING:
    from edgekit.core.task import Array

RUNTIME = "coreml reference evaluation (not device-verified)"
"""What it is called wherever a result of it is shown."""


class Driver:
    """Loads and computes one package.

    Args:
        path: The `.mlpackage`.
        threads: Threads that torch may use.
        bindings: The package's own names where they are not ours: `inputs.image` → `args_0`.
        options: None are known.
    """

    def __init__(self, path: str | Path, threads: int, bindings: Mapping[str, str], options: Mapping[str, Any]) -> None:
        self._torch = require("torch", "torch", "the reference evaluation of Core ML packages")
        self._path = Path(path)
        self._threads = threads
        self._bindings = dict(bindings)
        self._options = dict(options)
        self._evaluator: ReferenceEvaluator | None = None
        self._prepared: dict[str, Array] = {}
        self._results: dict[str, Array] = {}
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []

    def load(self) -> None:
        """Read the package and decompress its weights.

        Raises:
            ConfigError: A piece is missing or damaged.
            UnsupportedModelError: It uses an operator that is not known here.
        """
        evaluator = ReferenceEvaluator(self._path)
        self._evaluator = evaluator
        self.inputs = [entry for feature in evaluator.inputs for entry in self._described("inputs", feature)]
        self.outputs = [entry for feature in evaluator.outputs for entry in self._described("outputs", feature)]

    def prepare(self, arrays: Mapping[str, Array]) -> None:
        """Take the inputs, by our names, of exactly the shapes.

        Raises:
            ConfigError: One is missing.
        """
        missing = [entry["name"] for entry in self.inputs if entry["name"] not in arrays]
        if missing:
            raise ConfigError(f"The input '{missing[0]}' is missing.")
        self._prepared = {self._native("inputs", name): array for name, array in arrays.items()}

    def invoke(self) -> None:
        """Compute once."""
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(max(1, self._threads))
        try:
            self._results = self._loaded().run(self._prepared)
        finally:
            self._torch.set_num_threads(before)

    def intermediates(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """What each operation of the package gives, by its name there, for inputs of exactly the model's shapes."""
        self.prepare(arrays)
        evaluator = self._loaded()
        evaluator.run(self._prepared, keep=evaluator.intermediate_names())
        return evaluator.kept_floats()

    def operators(self) -> dict[str, int]:
        """How often each operator occurs in the package."""
        return self._loaded().operators()

    def results(self) -> dict[str, Array]:
        """Copies of the outputs, by our names."""
        return {entry["name"]: self._results[self._native("outputs", entry["name"])].copy() for entry in self.outputs}

    def facts(self) -> dict[str, Any]:
        """What computed: never a device."""
        return {
            "runtime": RUNTIME,
            "runtime_version": str(self._torch.__version__),
            "threads": self._threads,
            "delegate": None,
            "xnnpack_applied": False,
        }

    def _loaded(self) -> ReferenceEvaluator:
        if self._evaluator is None:
            raise VerificationError("The Core ML package was not loaded.", "Call load() first.")
        return self._evaluator

    def _native(self, side: str, name: str) -> str:
        return self._bindings.get(f"{side}.{name}", name)

    def _described(self, side: str, feature: Feature) -> list[dict[str, Any]]:
        """The feature under each of our names: two of our outputs may be one in the package."""
        bound = [key.partition(".")[2] for key, native in self._bindings.items() if native == feature.name]
        ours = [name for name in bound if self._bindings.get(f"{side}.{name}") == feature.name]
        dtype = feature.dtype or ("str" if feature.kind == "string" else "float32")
        return [{"name": name, "shape": list(feature.shape), "dtype": dtype} for name in ours or [feature.name]]
