"""Accuracy: the task's metrics and the agreement of an artifact on this host, before and after, with their error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekit.core.result import Accuracy
from edgekit.core.stats import share_error
from edgekit.core.task import SPLITS
from edgekit.flow.build import Built
from edgekit.flow.verify import agreement


def accuracies(built: Built) -> tuple[Accuracy, ...]:
    """What is known of each split that was not used to calibrate: `validation`, and `test`."""
    return tuple(found for split in SPLITS if (found := accuracy_of(built, split)) is not None)


def accuracy_of(built: Built, split: str) -> Accuracy | None:
    """The metrics of one split for the source model and the artifact on this host; None where they are not known."""
    data = built.data
    index = data.split(split) if data is not None else None
    if data is None or index is None or split not in built.source_metrics:
        return None
    host = built.host_metrics.get(split, {})
    files = built.host.outputs.get(split, {}) if built.host is not None else {}
    return Accuracy(
        metric=data.metric,
        direction=data.direction,
        split=split,
        examples=index.examples,
        source=built.source_metrics[split],
        host=host,
        host_agreement=agreements(built.source_outputs.get(split, {}), files),
        host_standard_error=share_error(host.get(data.metric), index.examples),
    )


def agreements(reference: Mapping[str, Path], files: Mapping[str, Path]) -> dict[str, float]:
    """Share of examples where the largest entry is the reference's, by output name; of outputs that are scores."""
    import numpy as np

    found = {}
    for name, path in reference.items():
        if name in files:
            share = agreement(np.load(path, mmap_mode="r"), np.load(files[name], mmap_mode="r"))
            if share is not None:
                found[name] = share
    return found
