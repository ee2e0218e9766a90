"""What a page computed, handed to the agent's own loop: it cuts off padding, writes `.npy` files and judges health."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Specs = Sequence[Mapping[str, Any]]


def worker() -> Any:
    """The agent's worker: what it does on a device and what is done here cannot come apart."""
    return importlib.import_module("edgekit.agent.worker")


def named(
    details: Specs, side: str, bindings: Mapping[str, str], axes: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    """The model's inputs or outputs by our names, in the layout of the data: what a driver of the agent shows.

    Args:
        details: The page's: name, dtype, shape, as the file has them.
        side: `inputs` or `outputs`.
        bindings: The file's name of an input or output, where it is not ours: `inputs.image` → `args_0`.
        axes: By our name of an input, the axes by which the data's layout becomes the file's.
    """
    ours = {native: key[len(side) + 1 :] for key, native in bindings.items() if key.startswith(side + ".")}
    found = []
    for detail in details:
        name, shape = str(ours.get(detail["name"], detail["name"])), list(detail["shape"])
        if side == "inputs" and name in axes:
            shape = [size for _, size in sorted(zip(axes[name], shape, strict=True))]
        found.append({"name": name, "native": detail["name"], "dtype": detail["dtype"], "shape": shape})
    return found


def write_inputs(
    files: Mapping[str, Path], specs: Specs, axes: Mapping[str, Sequence[int]], folder: Path
) -> tuple[int, int]:
    """Raw values of each input, one call after another, as `<place of the input>.bin`.

    Returns:
        The number of calls, and that of the examples.
    """
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    calls = 0
    inputs = worker().InputSet({name: str(path) for name, path in files.items()}, list(specs))
    streams = [(folder / f"{place}.bin").open("wb") for place in range(len(specs))]
    try:
        for arrays, _ in inputs.calls():
            for spec, stream in zip(specs, streams, strict=True):
                array = arrays[spec["name"]]
                if spec["name"] in axes:
                    array = np.ascontiguousarray(np.transpose(array, axes[spec["name"]]))
                stream.write(array.tobytes())
            calls += 1
    finally:
        for stream in streams:
            stream.close()
    return calls, inputs.examples


class Answers:
    """A driver of the agent's interface whose answers are there already, call by call.

    Args:
        inputs: From `named`.
        outputs: From `named`.
        files: Raw values of each output, in the order of `outputs`.
    """

    def __init__(self, inputs: Specs, outputs: Specs, files: Sequence[Path]) -> None:
        import numpy as np

        self.inputs, self.outputs = [dict(spec) for spec in inputs], [dict(spec) for spec in outputs]
        self._values = {
            spec["name"]: np.fromfile(file, spec["dtype"]).reshape(-1, *spec["shape"])
            for spec, file in zip(self.outputs, files, strict=True)
        }
        self._call = -1

    def prepare(self, arrays: Mapping[str, Any]) -> None:
        """The next call; what goes in was computed with already."""
        self._call += 1

    def invoke(self) -> None:
        """Nothing is left to compute."""

    def results(self) -> dict[str, Any]:
        """The outputs of the call."""
        return {name: values[self._call] for name, values in self._values.items()}
