"""Stages timed by turns."""

from __future__ import annotations

import pytest
import torch

from edgekit.core.errors import ConfigError
from edgekit.core.schema import parse_yaml
from edgekit.core.target import load_target
from edgekit.flow.cost import time_files, time_stages
from edgekit.flow.recipe import parse_recipe
from tests.unit.flow import kit

WIDE = """
    import torch
    from torch import nn

    class Slow(nn.Module):
        '''Computes a large product that a pass can take apart.'''

        def __init__(self):
            super().__init__()
            self.first = nn.Linear(64, 1024, bias=False)
            self.second = nn.Linear(1024, 1024, bias=False)
            with torch.no_grad():
                self.second.weight.copy_(torch.randn(1024, 4) @ torch.randn(4, 1024))

        def forward(self, x):
            return self.second(self.first(x))

    def build():
        torch.manual_seed(0)
        return Slow(), (torch.rand(16, 64),)
    """


@pytest.fixture
def wide(tmp_path):
    return kit.write(tmp_path / "wide", {"edgekit.yaml": kit.project_yaml(), "model.py": WIDE})


def test_fewer_multiplications_are_seen_in_the_ratio_to_the_source(wide, heard):
    text = "schema_version: 1\npasses: [{low_rank: {energy: 0.99}}, {fold_batch_norm: {}}]\n"
    made = kit.builder_in(wide, heard).compression(parse_recipe(parse_yaml(text, "recipe.yaml")))
    threads = torch.get_num_threads()
    timings = time_stages(made.stages, heard)
    source, factorized, unchanged = timings.stages
    assert source.ratio == 1
    assert factorized.ratio < 0.6
    # The second pass found nothing to do: the same weights are timed once.
    assert unchanged == factorized
    assert 0.3 < timings.again.ratio < 3
    assert timings.rounds >= 5
    assert torch.get_num_threads() == threads


def test_the_stages_are_files_of_a_target_timed_in_its_runtime(wide, heard):
    text = (
        "schema_version: 1\npasses: [{low_rank: {energy: 0.99}}, {fold_batch_norm: {}}]\n"
        "lowering: {quantize: {scheme: dynamic_wi8_afp32}}\n"
    )
    recipe = parse_recipe(parse_yaml(text, "recipe.yaml"))
    builder = kit.builder_in(wide, heard)
    where = (load_target("linux-x86", wide), "onnxruntime")
    timings = time_files(builder.compression(recipe), recipe, builder, where)
    source, factorized, unchanged = timings.stages
    assert source.ratio == 1
    assert factorized.ratio < 0.6
    assert factorized.file_bytes < 0.5 * source.file_bytes
    # Its manifest tells of one more pass: another artifact, with the same file.
    assert unchanged.file_bytes == factorized.file_bytes
    assert timings.lowered.file_bytes < 0.5 * factorized.file_bytes
    assert 0.2 < timings.again.ratio < 5
    assert timings.again.file_bytes == source.file_bytes
    assert timings.of.startswith("onnxruntime 1.")
    assert "threads: " in timings.of


def test_a_target_whose_runtime_is_not_on_this_host_is_refused(wide, heard):
    recipe = parse_recipe(parse_yaml("schema_version: 1\npasses: [{fold_batch_norm: {}}]\n", "recipe.yaml"))
    builder = kit.builder_in(wide, heard)
    with pytest.raises(ConfigError, match="The runtime of coreml does not exist on this host"):
        time_files(builder.compression(recipe), recipe, builder, (load_target("iphone15", wide), None))
