"""Sparse weights for ONNX Runtime: bytes fall, outputs and operators stay."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekit.agent import device_onnxruntime
from edgekit.backends._onnxruntime.graph import optimized
from edgekit.backends.base import CompileRequest
from edgekit.backends.onnxruntime import OnnxRuntime
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.lowering import Lowering
from tests.unit.backends.conversions import target
from tests.unit.backends.sparse_kit import pruned, request_of, with_sparse

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]
TO = target("onnxruntime")


def built(request: CompileRequest, folder: Path) -> tuple[Path, str]:
    artifact = OnnxRuntime().compile(request, folder)
    return folder / artifact.manifest.main, " ".join(artifact.manifest.changed)


def run(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in optimized(onnx.load(str(path)), "all").graph.node)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return request_of(tmp_path_factory.mktemp("net"), pruned(0.9), TO, None, "auto")


@pytest.mark.parametrize(
    ("scheme", "smaller"),
    [(None, 4), ("float16", 3.5), ("static_wi8_ai8", 2.5), ("weight_only_wi8_afp32", 2.5), ("palette_4", 1.7)],
)
def test_a_pruned_networks_file_shrinks_and_computes_the_same(net, tmp_path, scheme, smaller):
    request, inputs, _ = net
    sparse, said = built(with_sparse(request, "auto", scheme), tmp_path / "sparse")
    dense, nothing = built(with_sparse(request, "off", scheme), tmp_path / "dense")
    assert dense.stat().st_size > smaller * sparse.stat().st_size
    assert np.array_equal(run(sparse, inputs), run(dense, inputs))
    assert kinds(sparse) == kinds(dense)
    assert "stored sparse and unpacked as the file is loaded" in said
    assert "sparse" not in nothing


@pytest.mark.parametrize("share", [0.6, 0.75, 0.98])
def test_a_mask_or_gaps_whichever_is_shorter_hold_every_weight(tmp_path, share):
    request, inputs, outputs = request_of(tmp_path / "net", pruned(share), TO, None, "auto")
    path, _ = built(request, tmp_path / "sparse")
    model = onnx.load(str(path))
    used = {node.op_type for node in model.graph.node}
    assert ("ScatterElements" in used) == (share > 0.9)
    assert np.abs(run(path, inputs) - outputs["out_0"]).max() < 1e-5


def test_a_network_without_enough_zeros_stays_as_it_is_and_is_told_so_where_asked(tmp_path):
    request, _, _ = request_of(tmp_path / "net", pruned(0.3), TO, None, "auto")
    auto, said = built(request, tmp_path / "auto")
    asked, words = built(with_sparse(request, "size"), tmp_path / "asked")
    assert auto.read_bytes() == asked.read_bytes()
    assert "sparse" not in said
    assert "no weight has enough zeros" in words


def test_rounding_for_data_leaves_pruned_weights_zero(net, tmp_path):
    path, _ = built(with_sparse(net[0], "off", "weight_only_wi8_afp32"), tmp_path / "dense")
    codes = [onnx.numpy_helper.to_array(one) for one in onnx.load(str(path)).graph.initializer]
    shares = [float((one == 0).mean()) for one in codes if one.dtype == np.int8 and one.size > 10_000]
    assert len(shares) == 1
    assert shares[0] > 0.89


def test_speed_is_refused_with_what_can_be_done_instead(net):
    with pytest.raises(UnsupportedModelError, match="no operators that compute with sparse weights") as refused:
        OnnxRuntime().refuse_unsupported("pt2", net[0].outputs, Lowering(sparse="speed"), TO)
    assert "sparse: size" in refused.value.hint


@pytest.mark.parametrize("options", [{"format": "ort"}, {"optimization": "none"}])
def test_what_folds_nothing_at_load_gets_dense_weights_and_refuses_size(net, tmp_path, options):
    to = target("onnxruntime", **options)
    with pytest.raises(UnsupportedModelError, match="folds nothing"):
        OnnxRuntime().refuse_unsupported("pt2", net[0].outputs, Lowering(sparse="size"), to)
    path, said = built(replace(net[0], target=to), tmp_path / "auto")
    assert path.stat().st_size > 4 * 16 * 36 * 64
    assert "sparse" not in said


def test_two_conversions_give_the_same_bytes(net, tmp_path):
    first, _ = built(net[0], tmp_path / "a")
    second, _ = built(net[0], tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_the_driver_shows_inner_values_of_a_sparse_file(net, tmp_path, monkeypatch):
    # On a device the driver lies beside what it imports.
    monkeypatch.syspath_prepend(str(Path(device_onnxruntime.__file__).parent))
    request, inputs, _ = net
    sparse, _ = built(request, tmp_path / "sparse")
    dense, _ = built(with_sparse(request, "off"), tmp_path / "dense")
    shown = []
    for path in (sparse, dense):
        driver = device_onnxruntime.Driver(str(path), 1, {}, {})
        driver.load()
        shown.append(driver.intermediates(inputs))
    assert shown[1].keys() <= shown[0].keys()
    assert all(np.allclose(shown[0][name], value, atol=1e-6) for name, value in shown[1].items())
