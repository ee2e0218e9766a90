from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.backends._mil.driver import Driver
from edgekit.core.artifact import Artifact
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.program import flatten
from tests.unit.backends.mil import nets
from tests.unit.backends.mil.compiled import compile_into, request_for, target
from tests.unit.backends.mil.programs import snr_db

# float32 rounds at 2^-24 and float16 at 2^-11 of each value: 144 and 66 dB before anything adds up.
FLOAT32_DB, FLOAT16_DB = 120, 55
FLOAT32 = target("17.0", precision="float32")


def computed(artifact: Artifact, inputs: dict[str, np.ndarray]) -> tuple[Driver, dict[str, np.ndarray]]:
    driver = Driver(artifact.main, 1, artifact.manifest.bindings, {})
    driver.load()
    driver.prepare({spec.name: inputs[spec.name].astype(spec.dtype) for spec in artifact.manifest.inputs})
    driver.invoke()
    return driver, driver.results()


def worst_snr(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    assert expected.keys() == found.keys()
    return min(snr_db(expected[name], found[name]) for name in expected)


QUICK = ("conv_net", "transformer", "lstm_2_layers_both_ways", "gru", "detector")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in nets.NETS]
)
def test_a_package_computes_what_its_network_computes(name: str, tmp_path: Path):
    module, tensors = nets.make(name)
    request, inputs, expected = request_for(tmp_path, module, tensors, target("18.0", precision="float32"))

    _driver, found = computed(compile_into(tmp_path, request), inputs)

    assert worst_snr(expected, found) > FLOAT32_DB


@pytest.mark.slow
@pytest.mark.parametrize("name", nets.NETS)
def test_float16_stays_close_on_an_older_release(name: str, tmp_path: Path):
    module, tensors = nets.make(name)
    request, inputs, expected = request_for(tmp_path, module, tensors, target("17.0"))

    _driver, found = computed(compile_into(tmp_path, request), inputs)

    assert FLOAT16_DB < worst_snr(expected, found) < FLOAT32_DB


@pytest.mark.parametrize("name", ["lstm_2_layers_both_ways", "gru_2_layers_both_ways"])
def test_recurrent_layers_become_sequence_operators(name: str, tmp_path: Path):
    module, tensors = nets.make(name)
    request, inputs, _expected = request_for(tmp_path, module, tensors, target("18.0"))

    driver, _found = computed(compile_into(tmp_path, request), inputs)

    operators = driver.operators()
    assert operators.get("lstm", 0) + operators.get("gru", 0) in (2, 4)
    assert sum(operators.values()) < 30


def test_a_gru_is_unrolled_for_a_release_that_has_none_and_says_so(tmp_path: Path):
    module, tensors = nets.make("gru")
    request, inputs, expected = request_for(tmp_path, module, tensors, FLOAT32)

    artifact = compile_into(tmp_path, request)
    driver, found = computed(artifact, inputs)

    assert "gru" not in driver.operators()
    assert any("GRU is unrolled" in sentence for sentence in artifact.manifest.changed)
    assert worst_snr(expected, found) > FLOAT32_DB


class Function(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(*tensors)


F = torch.nn.functional
GRID = torch.linspace(-0.9, 0.8, 24).reshape(1, 3, 4, 2)
# coremltools 9 writes the exact GELU for the approximate one (74 dB), and an ELU without its scales (26 dB).
MISTRANSLATED = {
    "gelu": (torch.nn.GELU(approximate="tanh"), (1, 500)),
    "selu": (torch.nn.Sequential(torch.nn.CELU(0.5), torch.nn.SELU()), (2, 50)),
}
BY_ANOTHER_WAY = {
    "roll": (Function(lambda x: torch.roll(x, (1, -2), (1, 2))), (2, 4, 5), "it was converted through TorchScript"),
    "grid_sample": (
        Function(lambda x: F.grid_sample(x, GRID, align_corners=False)),
        (1, 2, 5, 6),
        "it was converted through TorchScript",
    ),
    "resize_by_a_fraction": (torch.nn.Upsample(scale_factor=1.5, mode="bilinear"), (1, 2, 5, 7), ""),
    "lstm_with_projection": (
        Function(torch.nn.LSTM(4, 6, proj_size=3)),
        (3, 2, 4),
        "lstm is taken apart into simpler operators",
    ),
}


@pytest.mark.parametrize("name", MISTRANSLATED)
def test_what_the_converter_gets_wrong_is_put_right(name: str, tmp_path: Path):
    module, shape = MISTRANSLATED[name]
    request, inputs, expected = request_for(tmp_path, module.eval(), (torch.randn(shape),), FLOAT32)

    _driver, found = computed(compile_into(tmp_path, request), inputs)

    assert worst_snr(expected, found) > FLOAT32_DB


@pytest.mark.parametrize("name", BY_ANOTHER_WAY)
def test_what_the_first_way_cannot_is_converted_by_another(name: str, tmp_path: Path):
    module, shape, sentence = BY_ANOTHER_WAY[name]
    flat = Function(lambda x: tuple(flatten(module(x))[1]))
    flat.inner = module
    request, inputs, expected = request_for(tmp_path, flat.eval(), (torch.randn(shape),), FLOAT32)

    artifact = compile_into(tmp_path, request)
    _driver, found = computed(artifact, inputs)

    assert worst_snr(expected, found) > FLOAT32_DB
    assert sentence in (*artifact.manifest.changed, "")


def test_an_output_that_repeats_another_is_bound_to_it(tmp_path: Path):
    def repeated(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(x)
        return y, x.exp(), y

    module = Function(repeated).eval()
    request, inputs, expected = request_for(tmp_path, module, (torch.randn(2, 3),), FLOAT32)
    # Not through TorchProgram, which may tell equal outputs apart: a .pt2 may come from anywhere.
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3),), strict=False), request.program)

    artifact = compile_into(tmp_path, request)
    driver, found = computed(artifact, inputs)

    assert artifact.manifest.bindings == {"outputs.out_0": "out_0", "outputs.out_2": "out_0"}
    assert sorted(entry["name"] for entry in driver.outputs) == ["out_0", "out_1", "out_2"]
    assert worst_snr(expected, found) > FLOAT32_DB


def test_an_output_that_is_an_input_is_refused_by_name(tmp_path: Path):
    module = Function(lambda x: (x * 2, x)).eval()
    request, _, _ = request_for(tmp_path, module, (torch.randn(2, 3),), FLOAT32)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3),), strict=False), request.program)

    with pytest.raises(UnsupportedModelError, match="The output 'out_1' is an input unchanged"):
        compile_into(tmp_path, request)


class Wide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


# Fewer bits lose more: what k-means leaves of weights that are spread evenly.
LEAST_DB = {"float16": 55, "weight_only_wi8_afp32": 30, "palette_4": 12, "palette_2": 4, "palette_1": 0}


@pytest.mark.parametrize("scheme", LEAST_DB)
def test_a_scheme_makes_the_package_smaller_and_keeps_it_close(scheme: str, tmp_path: Path):
    torch.manual_seed(0)
    module, tensors = Wide().eval(), (torch.randn(4, 64),)
    plain, inputs, expected = request_for(tmp_path / "plain", module, tensors, target(precision="float32"))
    squeezed, _, _ = request_for(tmp_path / "squeezed", module, tensors, target(precision="float32"), scheme)

    before, after = compile_into(tmp_path / "plain", plain), compile_into(tmp_path / "squeezed", squeezed)
    _driver, found = computed(after, inputs)

    assert after.bytes < 0.6 * before.bytes
    assert worst_snr(expected, found) > LEAST_DB[scheme]
