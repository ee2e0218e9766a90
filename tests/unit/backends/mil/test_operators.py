from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.backends._mil import constexpr
from edgekit.backends._mil.evaluator import ReferenceEvaluator, load_operators
from tests.unit.backends.mil import cases_elementwise, cases_layers, cases_shape
from tests.unit.backends.mil.cases_elementwise import Case
from tests.unit.backends.mil.programs import write_program

CASES = [*cases_elementwise.CASES, *cases_shape.CASES, *cases_layers.CASES]
NOT_IN_THE_TABLES = {"classify"}
"""Operators that coremltools only writes for a whole classifier: tested with the backend."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_operator_computes_what_torch_computes(case: Case, tmp_path: Path):
    path = write_program(tmp_path / "p.mlpackage", case.inputs, case.build, case.release)

    evaluator = ReferenceEvaluator(path)
    found = evaluator.run(case.inputs)
    expected = case.expected(*(torch.from_numpy(array.copy()) for array in case.inputs.values()))

    assert case.kind in evaluator.operators()
    tensors = expected if isinstance(expected, tuple) else (expected,)
    assert len(tensors) == len(evaluator.outputs)
    for feature, tensor in zip(evaluator.outputs, tensors, strict=True):
        np.testing.assert_allclose(found[feature.name], tensor.numpy(), rtol=case.tolerance, atol=case.tolerance)


def test_every_operator_of_the_table_has_a_case():
    operators = set(load_operators())
    built_alongside = {"make_list", "list_write", "list_read", "list_scatter", "list_length"}
    assert operators - {case.kind for case in CASES} - built_alongside == NOT_IN_THE_TABLES


def test_at_least_a_hundred_operators_are_known():
    assert len(load_operators()) + len(constexpr.KINDS) >= 100
