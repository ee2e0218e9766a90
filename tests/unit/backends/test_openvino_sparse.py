"""Sparse weights for OpenVINO: bytes fall, outputs and executed operators stay."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from edgekit.agent.device_openvino import Driver
from edgekit.backends.base import CompileRequest
from edgekit.backends.openvino import OpenVino
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.lowering import Lowering, Quantize
from tests.unit.backends.conversions import target
from tests.unit.backends.sparse_kit import pruned, request_of, with_sparse

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]
TO = target("openvino")
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def built(request: CompileRequest, folder: Path) -> tuple[Path, str]:
    artifact = OpenVino().compile(request, folder)
    return folder / artifact.manifest.main, " ".join(artifact.manifest.changed)


def compiled(path: Path) -> Any:
    core = openvino.Core()
    return core.compile_model(core.read_model(path), "CPU", EXACT)


def size(path: Path) -> int:
    return path.stat().st_size + path.with_suffix(".bin").stat().st_size


def executed(path: Path) -> Counter[str]:
    ops = compiled(path).get_runtime_model().get_ops()
    return Counter(str(op.get_rt_info()["layerType"].astype(str)) for op in ops)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return request_of(tmp_path_factory.mktemp("net"), pruned(0.9), TO, None, "auto")


@pytest.mark.parametrize(
    ("scheme", "smaller"),
    [(None, 4), ("float16", 2.5), ("static_wi8_ai8", 1.6), ("weight_only_wi8_afp32", 2), ("palette_4", 1.1)],
)
def test_a_pruned_networks_files_shrink_and_compute_the_same(net, tmp_path, scheme, smaller):
    request, inputs, _ = net
    sparse, said = built(with_sparse(request, "auto", scheme), tmp_path / "sparse")
    dense, nothing = built(with_sparse(request, "off", scheme), tmp_path / "dense")
    assert size(dense) > smaller * size(sparse)
    results = [compiled(path)(list(inputs.values()))[0] for path in (sparse, dense)]
    # Of dense 8-bit weights NNCF's are tried as well, which are others.
    apart = 0.05 if scheme == "weight_only_wi8_afp32" else 0.0
    assert np.abs(results[0] - results[1]).max() <= apart * np.abs(results[1]).max()
    assert executed(sparse) == executed(dense)
    assert "stored sparse and unpacked as the file is loaded" in said
    assert "sparse" not in nothing


def test_a_network_without_enough_zeros_stays_as_it_is_and_is_told_so_where_asked(tmp_path):
    request, _, _ = request_of(tmp_path / "net", pruned(0.3), TO, None, "auto")
    auto, said = built(request, tmp_path / "auto")
    asked, words = built(with_sparse(request, "size"), tmp_path / "asked")
    assert auto.read_bytes() == asked.read_bytes()
    assert "sparse" not in said
    assert "no weight has enough zeros" in words


def test_a_device_that_is_not_here_gets_sparse_weights_only_where_asked(net, tmp_path):
    request = replace(net[0], target=target("openvino", device="GPU"))
    auto, said = built(request, tmp_path / "auto")
    asked, words = built(with_sparse(request, "size"), tmp_path / "asked")
    assert size(auto) > 4 * size(asked)
    assert "sparse" not in said
    assert "stored sparse" in words


@pytest.mark.parametrize(
    ("to", "quantize", "words"),
    [
        (target("openvino", "aarch64"), Quantize("static_wi8_ai8"), "x86_64 CPUs alone"),
        (target("openvino", device="GPU"), Quantize("static_wi8_ai8"), "x86_64 CPUs alone"),
        (TO, None, "static_wi8_ai8 alone, not of float32"),
    ],
)
def test_speed_is_refused_where_the_runtime_has_none(net, to, quantize, words):
    with pytest.raises(UnsupportedModelError, match=words) as refused:
        OpenVino().refuse_unsupported("pt2", net[0].outputs, Lowering(quantize, sparse="speed"), to)
    assert "sparse: size" in refused.value.hint


def test_speed_reaches_the_runtime_as_its_property_and_what_it_does_is_said(net, tmp_path):
    request, inputs, _ = net
    artifact = OpenVino().compile(with_sparse(request, "speed", "static_wi8_ai8"), tmp_path / "a")
    plan = OpenVino().run_plan(artifact.manifest, TO, [])
    assert plan.options["properties"] == {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.8}
    assert "processors with AMX" in " ".join(artifact.manifest.changed)
    driver = Driver(str(tmp_path / "a" / artifact.manifest.main), 1, {}, dict(plan.options))
    driver.load()
    assert driver._compiled.get_property("CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE") == pytest.approx(0.8)
    driver.prepare(inputs)
    driver.invoke()
    assert np.isfinite(driver.results()["out_0"]).all()
    off = OpenVino().run_plan(replace(artifact.manifest, lowering=Lowering(sparse="size")), TO, [])
    assert "properties" not in off.options


def test_the_driver_shows_inner_values_of_a_sparse_file_and_no_others(net, tmp_path):
    request, inputs, _ = net
    shown = []
    for wanted in ("auto", "off"):
        path, _ = built(with_sparse(request, wanted), tmp_path / wanted)
        driver = Driver(str(path), 1, {}, {})
        driver.load()
        shown.append(driver.intermediates(inputs))
    assert shown[0].keys() == shown[1].keys()
    assert all(np.allclose(shown[0][name], value, atol=1e-6) for name, value in shown[1].items())


def test_the_graphs_file_has_no_indentation_and_says_shapes_once(net, tmp_path):
    path, _ = built(net[0], tmp_path / "a")
    text = path.read_text(encoding="utf-8")
    assert "\n\t" not in text
    assert "<dim>" not in "".join(part.partition("</input>")[0] for part in text.split("<input>")[1:])
    again = tmp_path / "again.xml"
    openvino.save_model(openvino.Core().read_model(path), str(again), compress_to_fp16=False)
    assert path.stat().st_size < 0.75 * again.stat().st_size


def test_two_conversions_give_the_same_bytes(net, tmp_path):
    first, _ = built(net[0], tmp_path / "a")
    second, _ = built(net[0], tmp_path / "b")
    for suffix in (".xml", ".bin"):
        assert first.with_suffix(suffix).read_bytes() == second.with_suffix(suffix).read_bytes()
