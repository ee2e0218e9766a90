"""An artifact that no runtime on this host can execute, evaluated operator by operator instead.

The evaluator reads nothing but the artifact. It shows that graph and weights compute what the model computes; it says
nothing of the maker's runtime. Whatever comes from here is called *reference-evaluated*, never device-verified.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from edgekit.core.artifact import Artifact
from edgekit.core.progress import Progress
from edgekit.core.run_output import ProcessRun, RunOutput
from edgekit.core.workload import WorkloadKind
from edgekit.flow import child
from edgekit.flow.evaluate import InputFiles

_TIMEOUT_SECONDS = 3600.0


def evaluate(
    artifact: Artifact,
    driver: str,
    sets: Sequence[InputFiles],
    outputs: Path,
    progress: Progress,
    kind: WorkloadKind = "outputs",
) -> RunOutput:
    """The outputs of an artifact for sets of inputs, in a child process.

    Args:
        artifact: What is evaluated.
        driver: Dotted name of a module with a `Driver` of the agent's interface.
        sets: The sets of inputs.
        outputs: Folder that gets them: a folder a set, one `.npy` an output.
        progress: Told what is done.
        kind: `outputs`, or `intermediates` for the value of every operator.
    """
    manifest = artifact.manifest
    work = child.Work(
        module="edgekit.flow.reference",
        what=f"the reference evaluation of {manifest.backend}",
        title=f"evaluating the {manifest.backend} artifact operator by operator",
        request={
            "driver": driver,
            "path": artifact.main,
            "bindings": dict(manifest.bindings),
            "sets": {s.name: {name: str(path) for name, path in s.files.items()} for s in sets},
            "outputs": outputs,
            "kind": kind,
        },
    )
    runs = child.run(work, progress, _TIMEOUT_SECONDS).answer
    suffix = "*.npy" if kind == "outputs" else "*.npz"
    files = {
        s.name: {
            unquote(path.stem) if kind == "outputs" else path.name: path
            for path in sorted((outputs / s.name).glob(suffix))
        }
        for s in sets
    }
    return RunOutput({}, {}, tuple(child.decoded(run, ProcessRun) for run in runs), files)


def _do(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    # The agent's own loop over examples: what it does on a device and what is done here cannot come apart.
    worker = importlib.import_module("edgekit.agent.worker")
    started = time.perf_counter()
    driver = importlib.import_module(request["driver"]).Driver(request["path"], 2, request["bindings"], {})
    initialised = time.perf_counter()
    driver.load()
    loaded = time.perf_counter()
    runs = []
    for name, files in request["sets"].items():
        task = {"inputs": files, "out": str(Path(request["outputs"]) / name)}
        done = worker.KINDS[request["kind"]](driver, task)
        runs.append(
            {
                "workload": name,
                "kind": request["kind"],
                "process": 0,
                "init_ms": (initialised - started) * 1000,
                "load_ms": (loaded - initialised) * 1000,
                "first_inference_ms": done.get("first_inference_ms"),
                "examples": done["examples"],
                "runtime": driver.facts(),
            }
        )
    return runs


if __name__ == "__main__":
    child.serve(sys.argv[1:], "the reference evaluation", _do)
