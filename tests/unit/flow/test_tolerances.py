"""Tolerances that a recipe or a flag sets, and the random inputs beside the task's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgekit.core.artifact import Parity
from edgekit.core.errors import ConfigError, VerificationError
from edgekit.core.model import TensorSpec
from edgekit.core.schema import Document
from edgekit.flow.build import Builder
from edgekit.flow.cache import Cache
from edgekit.flow.evaluate import RANDOM, RANDOM_EXAMPLES, InputFiles, random_inputs
from edgekit.flow.project import load_project
from edgekit.flow.recipe import Verify, parse_recipe
from edgekit.flow.verify import TOLERANCES, Tolerance, Verification, tolerance_of
from tests.unit.flow import kit


def recipe_with(**verify):
    return parse_recipe(Document({"schema_version": 1, "verify": verify}, "recipe.yaml"))


def test_a_recipe_sets_what_it_says_and_leaves_the_rest():
    assert recipe_with(min_snr_db=70).verify == Verify(min_snr_db=70)
    assert tolerance_of("float32", Verify(min_snr_db=70)) == Tolerance(0.99999, 70)
    assert tolerance_of("float32") == TOLERANCES["float32"]


def test_the_last_word_counts():
    assert tolerance_of("float16", Verify(70, 0.5), Verify(min_snr_db=80)) == Tolerance(0.5, 80)


def test_a_cosine_beyond_one_is_refused():
    with pytest.raises(ConfigError, match="a cosine is between -1 and 1"):
        recipe_with(min_cosine=1.5)


def test_an_unknown_tolerance_is_named():
    with pytest.raises(ConfigError, match="min_snr_db"):
        recipe_with(min_snr=3)


def drawn(spec, seen, tmp_path):
    np.save(tmp_path / "seen.npy", seen)
    files = random_inputs((spec,), InputFiles("golden", {spec.name: tmp_path / "seen.npy"}, ""), Cache())
    assert files.name == RANDOM
    return np.load(files.files[spec.name])


def test_random_values_keep_to_the_declared_range(tmp_path):
    found = drawn(TensorSpec("x", (1, 50), value_range=(-2, 3)), np.zeros((8, 50), np.float32), tmp_path)
    assert found.shape == (RANDOM_EXAMPLES, 50)
    assert found.dtype == np.float32
    assert -2 <= found.min() < -1 < 2 < found.max() <= 3


def test_random_values_keep_to_the_range_seen_where_none_is_declared(tmp_path):
    seen = np.array([[0, 0.5, 1]], np.float32)
    found = drawn(TensorSpec("x", (1, 3)), seen, tmp_path)
    assert 0 <= found.min() <= found.max() <= 1
    assert np.array_equal(found, drawn(TensorSpec("x", (1, 3)), seen, tmp_path))


def test_random_integers_never_leave_the_range_seen(tmp_path):
    found = drawn(TensorSpec("ids", (1, 200), "int64"), np.array([[3, 9] * 100]), tmp_path)
    assert set(found.ravel()) == set(range(3, 10))


def parity(snr):
    return (Parity("y", 4, 0.1, 0.1, 1.0, snr),)


def test_random_inputs_are_judged_except_where_examples_set_the_ranges():
    bad = {"golden": parity(50.0), RANDOM: parity(-3.0)}
    weights_only = Verification("weight_only_wi8_afp32", Tolerance(0.9, 10), bad)
    assert len(weights_only.failures()) == 1
    assert "output 'y' on random" in weights_only.failures()[0]
    assert replace(weights_only, precision="static_wi8_ai8").failures() == []


def test_a_build_is_judged_by_its_recipe_and_by_the_flag_in_its_place(tasked):
    recipe = "recipe:\n  verify: {min_snr_db: 900}\n"
    kit.write(tasked, {"edgekit.yaml": kit.project_yaml(task=True, more=recipe)})
    with pytest.raises(VerificationError, match=r"SNR 1\d\d\.\d dB \(at least 900 dB\)"):
        kit.builder_in(tasked).build(kit.intel())
    builder = Builder(load_project(tasked), kit.Heard(), verify=Verify(min_snr_db=50))
    host = builder.build(kit.intel()).host
    assert host.verification.tolerance == Tolerance(0.99999, 50)
    assert list(host.verification.parity) == ["golden", RANDOM, "validation", "test"]
    assert host.verification.parity[RANDOM][0].examples == RANDOM_EXAMPLES
