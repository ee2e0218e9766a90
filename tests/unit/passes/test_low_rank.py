"""Layers taken apart into chains of smaller ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.core.errors import ConfigError
from edgekit.core.model import Model, TensorSpec
from edgekit.core.program import TorchProgram
from edgekit.passes.base import PassContext, PassResult
from edgekit.passes.low_rank import LowRank, LowRankOptions


def model_of(module: nn.Module, *shape: int) -> Model:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)).numpy()
    program = TorchProgram(module.eval(), ("x",), ("output",), False, {"x": x})
    out = program.run({"x": x})["output"]
    specs = (TensorSpec("x", shape),), (TensorSpec("output", out.shape),)
    return Model("net", program, *specs, {"x": x}, program.digest(), "model.py:build")


def of_rank(layer: nn.Module, rank: int) -> nn.Module:
    """The layer with a weight that is a sum of `rank` products of one vector an axis: every method finds it whole."""
    with torch.no_grad():
        factors = [torch.randn(size, rank, generator=torch.Generator().manual_seed(7)) for size in layer.weight.shape]
        letters = "abcd"[: len(factors)]
        layer.weight.copy_(torch.einsum(",".join(f"{one}r" for one in letters) + f"->{letters}", *factors))
    return layer


def apply(model: Model, folder: Path, **options: Any) -> PassResult:
    step = LowRank(LowRankOptions(**options))
    result = step.apply(model, None, PassContext(folder))
    step.ensures(model, result.model)
    return result


def outputs(model: Model) -> np.ndarray:
    return model.program.run(model.example_inputs)["output"]


@pytest.mark.parametrize("method", ["tucker2", "spatial", "cp"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2, "bias": False}])
def test_a_convolution_of_low_rank_is_kept_exactly(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(nn.Sequential(of_rank(nn.Conv2d(16, 24, 3, **options), 2)), 1, 16, 12, 11)
    result = apply(model, tmp_path, energy=0.999999, convolutions=method)
    assert result.modified
    assert result.structure["layers"]["0"]["method"] == method
    np.testing.assert_allclose(
        outputs(result.model), outputs(model), rtol=1e-3, atol=1e-3 * np.abs(outputs(model)).max()
    )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(40, 30), (1, 40)),
        (nn.Conv2d(40, 30, 1, stride=2), (1, 40, 5, 5)),
        (nn.Linear(40, 30, bias=False), (1, 7, 40)),
    ],
)
def test_a_product_of_low_rank_is_kept_exactly(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    model = model_of(nn.Sequential(of_rank(layer, 3)), *shape)
    result = apply(model, tmp_path, energy=0.999999)
    assert result.structure["layers"]["0"] == {"method": "svd", "ranks": [3]}
    np.testing.assert_allclose(outputs(result.model), outputs(model), rtol=1e-4, atol=1e-4)


def test_a_factorization_that_saves_nothing_is_not_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = apply(model_of(nn.Sequential(nn.Linear(8, 8)), 1, 8), tmp_path, energy=0.99)
    assert not result.modified
    assert "fewer weights and fewer multiplications" in result.notes[0]


def test_the_source_stays_and_the_factors_are_contiguous(tmp_path: Path) -> None:
    model = model_of(nn.Sequential(of_rank(nn.Linear(40, 30), 3)), 1, 40)
    result = apply(model, tmp_path, ratio=0.2)
    assert isinstance(model.program.module[0], nn.Linear)
    assert all(p.is_contiguous() for p in result.model.program.module.parameters())


def test_the_structure_is_replayed_on_a_fresh_module(tmp_path: Path) -> None:
    model = model_of(nn.Sequential(nn.Conv2d(16, 24, 3), nn.Flatten(), nn.Linear(24 * 16, 20)), 1, 16, 6, 6)
    fresh = copy.deepcopy(model.program.module)
    result = apply(model, tmp_path, ratio=0.25)
    rebuilt = LowRank(LowRankOptions(ratio=0.25)).replay(fresh, result.structure)
    rebuilt.load_state_dict(result.model.program.module.state_dict(), strict=True)
    assert model.program.with_module(rebuilt.eval()).digest() == result.model.digest


def test_a_budget_is_kept_over_all_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = model_of(nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 80)), 1, 200)
    result = apply(model, tmp_path, budget=0.4)
    left = sum(p.numel() for n, p in result.model.program.module.named_parameters() if n.endswith("weight"))
    assert left <= 0.4 * (200 * 100 + 100 * 80)


def test_variational_bayes_finds_the_rank_below_the_noise(tmp_path: Path) -> None:
    layer = of_rank(nn.Linear(120, 80), 5)
    with torch.no_grad():
        layer.weight.add_(0.05 * torch.randn(80, 120, generator=torch.Generator().manual_seed(3)))
    result = apply(model_of(nn.Sequential(layer), 1, 120), tmp_path, evbmf=True)
    assert result.structure["layers"]["0"]["ranks"] == [5]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(30, 30), nn.Linear(30, 30)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    assert not apply(model_of(Tied(), 1, 30), tmp_path, ratio=0.1).modified


def test_attention_stays_whole(tmp_path: Path) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    assert not apply(model_of(Attends(), 1, 5, 32), tmp_path, ratio=0.1).modified


class PadsItself(nn.Conv2d):
    """As ports of TensorFlow's networks have it."""

    def forward(self, x: Tensor) -> Tensor:
        over = (self.kernel_size[0] - 1) // 2
        return nn.functional.conv2d(nn.functional.pad(x, (over,) * 4), self.weight, self.bias, self.stride)


class Standardizes(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight / self.weight.std(), self.bias)


def test_a_convolution_of_a_class_of_its_own_is_taken_apart_only_where_it_does_no_more(tmp_path: Path) -> None:
    layers = [PadsItself(16, 32, 1), PadsItself(32, 16, 3), Standardizes(16, 32, 1)]
    model = model_of(nn.Sequential(*(of_rank(layer, 2) for layer in layers)), 1, 16, 8, 8)
    result = apply(model, tmp_path, ratio=0.2)
    assert set(result.structure["layers"]) == {"0"}


def test_layers_are_chosen_by_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = model_of(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), 1, 64)
    assert list(apply(model, tmp_path, ratio=0.2, skip=("0",)).structure["layers"]) == ["1"]
    assert list(apply(model, tmp_path, ratio=0.2, layers=("0",)).structure["layers"]) == ["0"]


def test_a_path_that_fits_no_layer_is_named_with_the_nearest(tmp_path: Path) -> None:
    model = model_of(nn.Sequential(nn.Linear(64, 64)), 1, 64)
    with pytest.raises(ConfigError, match="'head' fits no layer"):
        apply(model, tmp_path, ratio=0.2, layers=("head",))


@pytest.mark.parametrize("options", [{}, {"energy": 0.5, "ratio": 0.5}, {"energy": 1.5}, {"budget": 0.0}])
def test_options_that_choose_no_rank_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="low_rank"):
        LowRankOptions(**options)
