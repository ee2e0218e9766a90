"""Outputs by way of `benchmark_model`: inputs as raw files, one process a call, outputs as one raw file."""

from __future__ import annotations

from collections.abc import Collection

from edgekit.runners._raw_outputs import RawOutputs
from edgekit.runners.base import Job

MAX_CALLS = 2000
"""More calls than this are not made: each starts a process and loads the model."""
_NEEDED = ("input_layer", "input_layer_shape", "input_layer_value_files", "output_filepath")


def unavailable(job: Job, flags: Collection[str], inputs: str | None = None) -> str:
    """Why outputs cannot be had of this artifact by this program; empty where they can.

    Args:
        job: The job.
        flags: What the program's help says it takes.
        inputs: The set of inputs, where its number of examples matters.
    """
    manifest, options = job.artifact.manifest, job.plan.options
    missing = [flag for flag in _NEEDED if flag not in flags]
    if missing:
        return f"this build of benchmark_model has no --{missing[0]}"
    if len(manifest.inputs) != 1 or len(manifest.outputs) != 1:
        return "benchmark_model tells neither inputs nor outputs apart by name, and the model has several"
    if options.get("float_io"):
        return "the file takes and gives integers, which benchmark_model does not convert"
    if not manifest.inputs[0].shape:
        return "the input is a scalar"
    if len(manifest.lowering.batch_sizes) > 1:
        return "the file has several batch sizes"
    if inputs is not None and Outputs(job, inputs, "").calls > MAX_CALLS:
        return f"it would take more than {MAX_CALLS} processes, one a call"
    return ""


class Outputs(RawOutputs):
    """One set of inputs, as the tool takes them, and the outputs that come back: one of each."""

    @property
    def shape(self) -> str:
        """The input's shape as the tool takes it: `1,224,224,3`."""
        ((_, _, shape),) = self.shapes
        return ",".join(map(str, shape))
