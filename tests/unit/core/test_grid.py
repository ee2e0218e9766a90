"""What passes fix for a backend survives being written down, and no later training."""

from __future__ import annotations

from edgekit.core import schema
from edgekit.core.grid import Grid, Trained, structure_of, trained_in
from edgekit.core.model import PassRecord

TRAINED = Trained({"fc": Grid(1, (-1.0, 1.0), (0.5, 0.25))}, {"fc": {"input": (0.0, 6.0)}})


def record(name: str, *, modified: bool = True, **structure: object) -> PassRecord:
    return PassRecord(name, modified=modified, structure=structure)


def test_grids_are_read_as_they_were_left_in_the_history() -> None:
    left = record("quantize_aware", **structure_of(TRAINED))
    document = schema.parse_json(schema.to_json(left), "history")
    assert trained_in([schema.convert(PassRecord, document)]) == TRAINED


def test_a_later_pass_that_changes_the_model_drops_them() -> None:
    left = record("quantize_aware", **structure_of(TRAINED))
    assert trained_in([left, record("prune")]) == Trained()
    assert trained_in([left, record("fold_batch_norm", modified=False)]) == TRAINED
