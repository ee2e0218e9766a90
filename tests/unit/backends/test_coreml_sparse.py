"""Sparse weights for Core ML: bytes fall, the evaluator decompresses as coremltools does, outputs stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.backends._mil.driver import Driver
from edgekit.backends._mil.evaluator import ReferenceEvaluator
from edgekit.backends.base import CompileRequest
from edgekit.backends.coreml import CoreMl
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.lowering import Lowering
from edgekit.core.target import Target
from tests.unit.backends.conversions import target
from tests.unit.backends.mil.test_compressed_weights import theirs
from tests.unit.backends.sparse_kit import pruned, request_of, with_sparse

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]


def phone(ios: int, **options: Any) -> Target:
    to = target("coreml", "aarch64", **options)
    return replace(to, os=replace(to.os, family="ios", min_version=str(ios)))


def built(request: CompileRequest, folder: Path) -> tuple[Path, str]:
    artifact = CoreMl().compile(request, folder)
    return folder / artifact.manifest.main, " ".join(artifact.manifest.changed)


def weight_bytes(package: Path) -> int:
    return sum(path.stat().st_size for path in package.rglob("weight.bin"))


def run(package: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    driver = Driver(package, 1, {}, {})
    driver.load()
    driver.prepare(inputs)
    driver.invoke()
    return driver.results()["out_0"]


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return request_of(tmp_path_factory.mktemp("net"), pruned(0.9), phone(18), None, "auto")


@pytest.mark.parametrize(
    ("ios", "scheme", "operators", "smaller"),
    [
        (16, None, {"constexpr_sparse_to_dense"}, 4),
        (18, None, {"constexpr_sparse_to_dense"}, 4),
        (18, "weight_only_wi8_afp32", {"constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"}, 3),
        (18, "palette_4", {"constexpr_lut_to_sparse", "constexpr_sparse_to_dense"}, 2),
        (17, "weight_only_wi8_afp32", {"constexpr_sparse_to_dense"}, 2),
    ],
)
def test_a_pruned_networks_weights_shrink_and_are_decompressed_as_coremltools_does(
    net, tmp_path, ios, scheme, operators, smaller
):
    import coremltools as ct

    request, inputs, _ = net
    request = replace(request, target=phone(ios))
    sparse, said = built(with_sparse(request, "auto", scheme), tmp_path / "sparse")
    dense, nothing = built(with_sparse(request, "off", scheme), tmp_path / "dense")
    assert weight_bytes(dense) > smaller * weight_bytes(sparse)
    assert "stored sparse, as a bit mask" in said
    assert "sparse" not in nothing
    evaluator = ReferenceEvaluator(sparse)
    assert operators <= evaluator.operators().keys()
    ours, model = evaluator.decompressed(), ct.models.MLModel(str(sparse), skip_model_load=True)
    known = theirs(model)
    assert known.keys() == ours.keys()
    assert all(np.array_equal(ours[name], value) for name, value in known.items())
    given, wanted = run(sparse, inputs), run(dense, inputs)
    # The older release stores floats in place of rounded weights: closer to torch, not equal.
    assert np.abs(given - wanted).max() <= (0.05 * np.abs(wanted).max() if ios == 17 else 0)


def test_before_ios_18_the_smaller_of_sparse_and_compressed_is_taken_and_said(net, tmp_path):
    request = replace(net[0], target=phone(17))
    path, said = built(with_sparse(request, "auto", "weight_only_wi8_afp32"), tmp_path / "eight")
    assert "stay floats: before iOS 18 a weight is sparse or compressed" in said
    fewer, words = built(with_sparse(request, "auto", "palette_2"), tmp_path / "two")
    assert "constexpr_lut_to_dense" in ReferenceEvaluator(fewer).operators()
    assert "stay floats" not in words
    assert weight_bytes(fewer) < weight_bytes(path)


def test_weights_that_integers_multiply_stay_dense_unless_size_is_asked_for(net, tmp_path):
    auto, said = built(with_sparse(net[0], "auto", "static_wi8_ai8"), tmp_path / "auto")
    asked, words = built(with_sparse(net[0], "size", "static_wi8_ai8"), tmp_path / "size")
    assert "stored dense, to be multiplied as integers" in said
    assert "stored sparse" in words
    assert weight_bytes(auto) > 2 * weight_bytes(asked)
    assert np.array_equal(run(auto, net[1]), run(asked, net[1]))


def test_float32_and_negative_zeros_come_back_exactly(net, tmp_path):
    request = replace(net[0], target=phone(18, precision="float32"))
    path, _ = built(request, tmp_path / "a")
    assert np.abs(run(path, net[1]) - net[2]["out_0"]).max() < 1e-4


def test_a_network_without_enough_zeros_stays_as_it_is_and_is_told_so_where_asked(tmp_path):
    request, _, _ = request_of(tmp_path / "net", pruned(0.3), phone(18), None, "auto")
    auto, said = built(request, tmp_path / "auto")
    asked, words = built(with_sparse(request, "size"), tmp_path / "asked")
    assert weight_bytes(auto) == weight_bytes(asked)
    assert "sparse" not in said
    assert "no weight has enough zeros" in words


def test_a_release_without_sparse_weights_refuses_them_and_auto_leaves_them_out(net, tmp_path):
    old = phone(15)
    for wanted in ("size", "speed"):
        with pytest.raises(UnsupportedModelError, match="sparse weights need iOS 16"):
            CoreMl().refuse_unsupported("pt2", net[0].outputs, Lowering(sparse=wanted), old)
    path, said = built(replace(net[0], target=old), tmp_path / "a")
    assert not any(kind.startswith("constexpr") for kind in ReferenceEvaluator(path).operators())
    assert "sparse" not in said


def test_speed_says_that_nothing_was_measured(net, tmp_path):
    _, said = built(with_sparse(net[0], "speed"), tmp_path / "a")
    assert "only a measurement on the device says" in said


def test_two_conversions_give_the_same_bytes_and_inner_values_are_shown(net, tmp_path):
    first, _ = built(with_sparse(net[0], "auto", "palette_4"), tmp_path / "a")
    second, _ = built(with_sparse(net[0], "auto", "palette_4"), tmp_path / "b")
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    driver = Driver(first, 1, {}, {})
    driver.load()
    assert len(driver.intermediates(net[1])) > 3
