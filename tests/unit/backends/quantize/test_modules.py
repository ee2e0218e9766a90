"""Modules told by their weights, and overrides by module."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.backends._quantize.modules import Finder, ModuleWeights, modules_of, schemes_by_module
from edgekit.core.errors import ConfigError

PATHS = ("stem.conv", "blocks.0.conv", "blocks.1.conv", "head")


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_weight_is_found_after_a_transposition_and_a_scaling_of_its_channels() -> None:
    finder = Finder([ModuleWeights("a", weights(8, 3, 3, 3)), ModuleWeights("b", weights(8, 3, 3, 3, seed=1))])
    scaled = weights(8, 3, 3, 3, seed=1).transpose(0, 2, 3, 1) * np.linspace(-2, 3, 8).reshape(8, 1, 1, 1)
    assert finder.path_of(scaled, 0) == "b"


def test_a_weight_of_no_module_is_not_found() -> None:
    assert Finder([ModuleWeights("a", weights(8, 3))]).path_of(weights(8, 3, seed=2), 0) is None


def test_output_channels_of_a_transposed_convolution_stand_second() -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.ConvTranspose2d(8, 4, 3), torch.nn.Conv2d(4, 2, 1)).eval()
    found = modules_of(torch.export.export(module, (torch.zeros(1, 8, 5, 5),)))
    assert [(entry.path, entry.axis) for entry in found] == [("0", 1), ("1", 0)]


def test_the_last_override_that_fits_decides() -> None:
    found = schemes_by_module(PATHS, {"blocks.*": "float32", "blocks.1": "float16"}, "static_wi8_ai8")
    assert found == {
        "stem.conv": "static_wi8_ai8",
        "blocks.0.conv": "float32",
        "blocks.1.conv": "float16",
        "head": "static_wi8_ai8",
    }


def test_an_override_that_fits_nothing_is_named_with_the_nearest_layer() -> None:
    with pytest.raises(ConfigError, match=r"'haed' fits no layer.*Did you mean 'head'"):
        schemes_by_module(PATHS, {"haed": "float32"}, "float16")
