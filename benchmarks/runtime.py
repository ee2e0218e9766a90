"""What runs in child processes of the benchmark: artifacts, by the drivers that edgekit puts on devices.

    python -m benchmarks.runtime outputs REQUEST.json     # answers of one artifact, saved as .npy
    python -m benchmarks.runtime speed REQUEST.json       # process time of several, in interleaved rounds
    python -m benchmarks.runtime evaluated REQUEST.json   # compile for Core ML, evaluate by reference

Plain files of a library and edgekit's artifacts are run in the same way, single-threaded, one example at a time.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import interleaved, ratio

ROOT = Path(__file__).resolve().parents[1]


def driver_of(model: Mapping[str, Any]) -> Any:
    """A loaded driver for `{backend, main, bindings, options}`."""
    sys.path.insert(0, str(ROOT / "edgekit" / "agent"))
    driver = importlib.import_module(f"device_{model['backend']}").Driver(
        model["main"], 1, model.get("bindings", {}), model.get("options", {})
    )
    driver.load()
    return driver


def feeds_of(driver: Any, inputs: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """One example as the driver takes it: by name, or by place where a library has given inputs names of its own."""
    named = inputs if all(spec["name"] in inputs for spec in driver.inputs) else None
    found = {}
    for spec, array in zip(driver.inputs, inputs.values(), strict=True):
        values = (named[spec["name"]] if named else array)[row : row + 1]
        found[spec["name"]] = np.ascontiguousarray(values.astype(spec["dtype"]))
    return found


def inputs_of(request: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.load(path, mmap_mode="r") for name, path in request["inputs"].items()}


def outputs(request: Mapping[str, Any]) -> dict[str, Any]:
    """All answers of one artifact, into `request["out"]`."""
    driver, inputs = driver_of(request["model"]), inputs_of(request)
    found = []
    for row in range(len(next(iter(inputs.values())))):
        driver.prepare(feeds_of(driver, inputs, row))
        driver.invoke()
        found.append(next(iter(driver.results().values())))
    np.save(request["out"], np.concatenate(found))
    return {"examples": len(found)}


def speed(request: Mapping[str, Any]) -> dict[str, Any]:
    """Process seconds of an inference of several artifacts over the first's, which is run twice: A/A."""
    inputs = inputs_of(request)
    names = list(request["models"])
    runs: dict[str, Callable[[], float]] = {}
    for name in [*names, "A/A"]:
        driver = driver_of(request["models"][names[0] if name == "A/A" else name])
        driver.prepare(feeds_of(driver, inputs, 0))
        for _ in range(3):
            driver.invoke()
        runs[name] = _timed(driver)
    samples = interleaved(runs, request["rounds"])
    return {
        name: {"ms": 1000 * float(np.median(values)), "speed": ratio(samples[names[0]], values)}
        for name, values in samples.items()
    }


def _timed(driver: Any) -> Callable[[], float]:
    """Process seconds of one inference, from as many as take a good part of a hundredth of a second."""
    started = time.process_time()
    driver.invoke()
    count = max(1, int(0.02 / max(time.process_time() - started, 1e-6)))

    def run() -> float:
        began = time.process_time()
        for _ in range(count):
            driver.invoke()
        return (time.process_time() - began) / count

    return run


def evaluated(request: Mapping[str, Any]) -> dict[str, Any]:
    """Build for a backend without a runtime here, with its answers for the task's test split by reference evaluation."""
    from edgekit.core.progress import Silent
    from edgekit.core.target import load_target
    from edgekit.flow.build import Builder
    from edgekit.flow.project import Overrides, load_project

    overrides = Overrides(request["source"], request["name"], request["task"], request["recipe"])
    project = load_project(Path(request["folder"]), overrides)
    built = Builder(project, Silent()).build(load_target(request["target"], project.root), request["backend"])
    if built.host is None or built.artifact.build is None:
        sys.exit("The artifact was not evaluated.")
    (path,) = built.host.outputs["test"].values()
    np.save(request["out"], np.load(path))
    build = built.artifact.build
    return {
        "bytes": built.artifact.bytes,
        "seconds": build.seconds,
        "cpu_seconds": build.cpu_seconds,
        "path": str(built.artifact.path),
        "changed": list(built.artifact.manifest.changed),
        "by": built.host.verification.by,
    }


if __name__ == "__main__":
    _request = json.loads(Path(sys.argv[2]).read_text())
    print(json.dumps({"outputs": outputs, "speed": speed, "evaluated": evaluated}[sys.argv[1]](_request)))
