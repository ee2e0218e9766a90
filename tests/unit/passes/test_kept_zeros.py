"""Zeros of `prune_magnitude` through the passes that train after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.core.errors import ConfigError
from edgekit.core.model import PassRecord
from edgekit.core.schema import parse_yaml
from edgekit.flow.recipe import parse_recipe
from edgekit.passes._training.masks import zeros_of
from edgekit.passes._training.options import Training
from edgekit.passes.base import PassContext
from edgekit.passes.finetune import Finetune
from edgekit.passes.prune_magnitude import PruneMagnitude, PruneMagnitudeOptions
from edgekit.passes.quantize_aware import QuantizeAware, QuantizeAwareOptions
from tests.unit.passes.training_kit import Corners, model_of, state_of

TRAINING = Training(epochs=2, learning_rate=0.02)
PRUNED = {"0.weight", "3.weight", "7.weight"}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A model with four of five weights zero, and the record of it."""
    context = PassContext(tmp_path_factory.mktemp("pruned"))
    step = PruneMagnitude(PruneMagnitudeOptions(sparsity=0.8))
    result = step.apply(model_of(), Corners(), context)
    record = PassRecord("prune_magnitude", structure=result.structure, modified=True)
    return replace(result.model, history=(record,))


def gone(model) -> dict[str, np.ndarray]:
    return {name: value == 0 for name, value in state_of(model).items() if name in PRUNED}


def test_finetuning_moves_what_was_left_and_no_zero(pruned, tmp_path):
    result = Finetune(TRAINING).apply(pruned, Corners(), PassContext(tmp_path))
    assert result.modified
    for name, zero in gone(pruned).items():
        np.testing.assert_array_equal(state_of(result.model)[name][zero], 0)
        assert (state_of(result.model)[name][~zero] != state_of(pruned)[name][~zero]).all()


def test_without_the_record_zeros_are_weights_like_others(pruned, tmp_path):
    result = Finetune(TRAINING).apply(replace(pruned, history=()), Corners(), PassContext(tmp_path))
    assert (state_of(result.model)["3.weight"][gone(pruned)["3.weight"]] != 0).any()


def test_zeros_of_a_pruning_that_was_undone_are_not_kept(pruned):
    undone = replace(pruned.history[0], kept=False)
    assert zeros_of(replace(pruned, history=(undone,))).masks == {}


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_quantization_aware_training_keeps_zeros(pruned, tmp_path, bits):
    options = QuantizeAwareOptions(bits=bits, finetune=TRAINING, progressive=(8,) if bits == 4 else ())
    result = QuantizeAware(options).apply(pruned, Corners(), PassContext(tmp_path))
    for name, zero in gone(pruned).items():
        np.testing.assert_array_equal(state_of(result.model)[name][zero], 0)
    assert (state_of(result.model)["3.weight"] != 0).any()


@pytest.mark.parametrize("bits", [2, 1])
def test_bits_without_a_level_at_zero_are_refused(pruned, tmp_path, bits):
    step = QuantizeAware(QuantizeAwareOptions(bits=bits, finetune=TRAINING))
    with pytest.raises(ConfigError, match="80% zeros that prune_magnitude made in '3' would be lost") as caught:
        step.apply(pruned, Corners(), PassContext(tmp_path))
    assert "overrides: {3: 3}" in caught.value.hint


def test_a_pruned_layer_may_get_more_bits_than_the_others(pruned, tmp_path):
    record = replace(pruned.history[0], structure={"sparsity": {"3": 0.8}})
    options = QuantizeAwareOptions(bits=1, keep_first_last=False, overrides={"3": 4}, finetune=TRAINING)
    result = QuantizeAware(options).apply(replace(pruned, history=(record,)), Corners(), PassContext(tmp_path))
    np.testing.assert_array_equal(state_of(result.model)["3.weight"][gone(pruned)["3.weight"]], 0)


def test_a_loop_of_the_project_that_fills_zeros_loses_them_again(pruned, tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(
        "def fill(module, task, options):\n"
        "    import torch\n"
        "    with torch.no_grad():\n"
        "        for parameter in module.parameters():\n"
        "            parameter.add_(0.01)\n"
    )
    training = Training(epochs=1, loop=f"{tmp_path / 'train.py'}:fill")
    result = Finetune(training).apply(pruned, Corners(), PassContext(tmp_path / "work"))
    for name, zero in gone(pruned).items():
        np.testing.assert_array_equal(state_of(result.model)[name] == 0, zero)


def test_a_weight_that_is_the_module_s_own_is_found(tmp_path):
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))

        def forward(self, image):
            return nn.functional.linear(image[:, 0, 0, :2], self.weight)

    record = PassRecord("prune_magnitude", structure={"sparsity": {"weight": 0.5}}, modified=True)
    zeros = zeros_of(replace(model_of(Bare()), history=(record,)))
    assert zeros.share("weight") == 0.5


def test_a_recipe_may_train_after_pruning():
    text = "schema_version: 1\npasses:\n  - prune_magnitude: {sparsity: 0.8}\n  - finetune: {epochs: 1}\n"
    assert [step.name for step in parse_recipe(parse_yaml(text, "recipe.yaml")).passes] == [
        "prune_magnitude",
        "finetune",
    ]
