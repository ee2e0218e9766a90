from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.backends._mil.driver import Driver
from edgekit.core.artifact import Artifact
from tests.unit.backends.mil import nets
from tests.unit.backends.mil.compiled import compile_into, request_for, target
from tests.unit.backends.mil.programs import snr_db

# float32 rounds at 2^-24 and float16 at 2^-11 of each value: 144 and 66 dB before anything adds up.
FLOAT32_DB, FLOAT16_DB = 120, 55
INT8_DB = 25


def computed(artifact: Artifact, inputs: dict[str, np.ndarray]) -> tuple[Driver, dict[str, np.ndarray]]:
    driver = Driver(artifact.main, 1, artifact.manifest.bindings, {})
    driver.load()
    driver.prepare({spec.name: inputs[spec.name].astype(spec.dtype) for spec in artifact.manifest.inputs})
    driver.invoke()
    return driver, driver.results()


def worst_snr(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    assert expected.keys() == found.keys()
    return min(snr_db(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("name", nets.NETS)
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
    request, inputs, expected = request_for(tmp_path, module, tensors, target("17.0", precision="float32"))

    artifact = compile_into(tmp_path, request)
    driver, found = computed(artifact, inputs)

    assert "gru" not in driver.operators()
    assert any("GRU is unrolled" in sentence for sentence in artifact.manifest.changed)
    assert worst_snr(expected, found) > FLOAT32_DB


def test_an_approximate_gelu_stays_approximate(tmp_path: Path):
    # coremltools 9 writes the exact one in its place, which is off by 74 dB.
    module = torch.nn.GELU(approximate="tanh").eval()
    request, inputs, expected = request_for(
        tmp_path, module, (torch.randn(1, 500),), target("17.0", precision="float32")
    )

    _driver, found = computed(compile_into(tmp_path, request), inputs)

    assert worst_snr(expected, found) > FLOAT32_DB


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
