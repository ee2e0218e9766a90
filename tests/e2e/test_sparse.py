"""A model that is pruned in blocks, compiled to be fast, and run as a device runs it."""

from __future__ import annotations

import sys

import pytest

import edgekit
from edgekit.backends._litert.sparse import WITHOUT_XNNPACK
from edgekit.core.target import load_target
from edgekit.flow.build import Builder
from edgekit.flow.measure import Settings
from tests.unit.flow import kit

pytestmark = pytest.mark.slow

QUICK = Settings(processes=1, warmup_runs=1, min_runs=3, min_seconds=0.0, max_seconds=2.0)
MODEL = """
    import torch
    from torch import nn

    def build():
        torch.manual_seed(0)
        layers = (nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
        return nn.Sequential(*layers), (torch.rand(1, 784),)
    """
RECIPE = """
    schema_version: 1
    passes:
      - prune_magnitude: {{sparsity: 0.9, pattern: 1x4, skip: ["4"]}}
    lowering: {{sparse: "{}"}}
    """


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEKIT_RESULTS", raising=False)
    path = list(sys.path)
    yield lambda mode: load(tmp_path / mode, mode)
    sys.path[:] = path


def load(folder, mode):
    described = "schema_version: 1\nname: net\nsource: model.py:build\ntargets: [linux-x86]\n"
    kit.write(folder, {"edgekit.yaml": described, "model.py": MODEL, "recipe.yaml": RECIPE.format(mode)})
    return edgekit.load(folder, recipe="recipe.yaml")


def bytes_of(artifact) -> int:
    return artifact.main.stat().st_size


def test_blocks_are_verified_and_run_without_the_delegate_that_cannot_read_them(project, tmp_path):
    built = Builder(project("speed"), kit.Heard()).build(load_target("linux-x86"), "litert")
    assert WITHOUT_XNNPACK in built.artifact.manifest.changed
    assert built.host.verification.runtime["xnnpack_applied"] is False
    assert built.host.verification.by == "runtime"
    assert built.host.verification.failures() == []

    (result,) = edgekit.deploy(project("speed"), target="linux-x86", backend="litert", settings=QUICK)
    assert result.released
    assert [parity.output for parity in result.parity] == ["output"]

    dense = edgekit.compile(project("off"), target="linux-x86", backend="litert", out=tmp_path / "dense")
    assert bytes_of(dense) > 5 * bytes_of(built.artifact)
