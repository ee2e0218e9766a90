"""One conversion in a child process: `python -m edgekit.flow.convert REQUEST RESULT`, and the parent's side of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.backends.base import CompileRequest, registry
from edgekit.core import schema
from edgekit.core.artifact import BUILD, Artifact, BuildInfo, load_artifact
from edgekit.core.files import write_atomic
from edgekit.core.progress import Progress
from edgekit.flow import child

DEFAULT_TIMEOUT_SECONDS = 1800.0


def convert(
    backend: str,
    request: CompileRequest,
    out: Path,
    progress: Progress,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> Artifact:
    """Convert in a child process and record what it took in the artifact's `build.json`.

    Raises:
        UnsupportedModelError: The backend cannot take the model.
        BackendError: The vendor's converter failed, crashed, or took too long.
    """
    work = child.Work(
        module="edgekit.flow.convert",
        what=f"the conversion with {backend}",
        title=f"converting with {backend}",
        request={"backend": backend, "request": request, "out": out},
    )
    outcome = child.run(work, progress, timeout_seconds)
    info = BuildInfo(schema.SCHEMA_VERSION, outcome.seconds, outcome.peak_rss_mib, cpu_seconds=outcome.cpu_seconds)
    write_atomic(out / BUILD, schema.to_json(info))
    return load_artifact(out)


def _do(request: Mapping[str, Any]) -> None:
    compile_request: CompileRequest = child.decoded(request["request"], CompileRequest)
    registry.create(request["backend"]).compile(compile_request, Path(request["out"]))


if __name__ == "__main__":
    child.serve(sys.argv[1:], "the conversion", _do)
