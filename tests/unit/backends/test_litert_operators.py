from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.backends.litert import LiteRt
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.lowering import Lowering
from tests.unit.backends import litert_kit as kit

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HERE = Path(__file__).name
X = np.random.default_rng(0).uniform(0.1, 0.9, (1, 6, 8)).astype(np.float32)


class Around(torch.nn.Module):
    """A function between layers, in a module with a path."""

    class Inner(torch.nn.Module):
        def __init__(self, function) -> None:
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    def __init__(self, function) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(torch.nn.ReLU(), self.Inner(function))

    def forward(self, x):
        return self.blocks(x)


def issues(function, tmp_path: Path):
    exported = torch.export.export(Around(function).eval(), (torch.from_numpy(X),))
    torch.export.save(exported, tmp_path / "net.pt2")
    return LiteRt().unsupported_operators(torch.export.load(tmp_path / "net.pt2"), Lowering())


REFUSED = {
    "no-lowering": (torch.erfinv, "aten.erfinv.default", "no lowering"),
    "shape-from-data": (lambda x: x.nonzero(), "aten.nonzero.default", "depends on the data"),
    "value-read": (lambda x: x * x.sum().item(), "aten.item.default", "reads a value"),
    "complex": (lambda x: torch.fft.fft(x).real, "aten.fft_fft.default", "complex"),
    "branch": (lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), "cond", "control flow"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_operator_that_cannot_be_is_found_in_the_graph_with_its_place(tmp_path, case):
    function, name, reason = REFUSED[case]
    found = [issue for issue in issues(function, tmp_path) if issue.what == name]
    assert found
    assert reason in found[0].reason
    assert found[0].where.startswith("blocks.1, ")
    assert found[0].where.partition(", ")[2].startswith(HERE + ":")


TAKEN = {
    "in-place": lambda x: x.clone().add_(1).relu_().mul_(x),
    "magnitude-of-a-spectrum": lambda x: torch.fft.rfft(x).abs(),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x),
    "resize": lambda x: torch.nn.functional.interpolate(x[:, :, None], scale_factor=2.0, mode="bilinear"),
    "cumulative-sum": lambda x: x.cumsum(1),
    "einsum": lambda x: torch.einsum("abc,adc->abd", x, x),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "recurrent": torch.nn.GRU(8, 4),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_converts_is_not_suspected(tmp_path, case):
    function = TAKEN[case]
    assert issues(lambda x: function(x)[0] if case == "recurrent" else function(x), tmp_path) == []


def test_a_conversion_names_every_such_operator_and_writes_nothing(tmp_path):
    module = Around(lambda x: torch.erfinv(x) + torch.lgamma(x))
    with pytest.raises(UnsupportedModelError) as caught:
        kit.compiled(tmp_path, module, {"x": X})
    assert "aten.erfinv.default (blocks.1, " in caught.value.message
    assert "aten.lgamma.default (blocks.1, " in caught.value.message
    assert not (tmp_path / "artifact").exists()


def test_what_hides_in_a_compound_operator_is_named_after_the_attempt(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"aten\._linalg_det\.default.*no lowering"):
        kit.compiled(tmp_path, Around(lambda x: torch.linalg.det(x[:, :, :6])), {"x": X})


def test_an_operator_that_the_runtime_lacks_is_named():
    from edgekit.backends._litert import flatbuffer
    from edgekit.backends._litert.loadable import require_loadable

    tflite = flatbuffer.schema()
    model = tflite.ModelT(version=3, buffers=[tflite.BufferT()], subgraphs=[], operatorCodes=[])
    graph = flatbuffer.Graph.new(model, "main")
    given, gives = graph.tensor((1, 4)), graph.tensor((1, 4))
    graph.op("STABLEHLO_SORT", [given], [gives])
    graph.close([given], [gives])

    with pytest.raises(UnsupportedModelError, match=r"no operator STABLEHLO_SORT, which litert-torch makes of net\.py"):
        require_loadable(flatbuffer.write(model), "net.py")


ORDERED = {
    "largest": lambda x: torch.topk(x, 3),
    "smallest-along-an-inner-axis": lambda x: torch.topk(x, 2, dim=1, largest=False),
    "sorted": lambda x: torch.sort(x, descending=True),
    "sorted-upwards-stable": lambda x: torch.sort(x, dim=1, stable=True),
}


@pytest.mark.parametrize("case", ORDERED)
def test_values_are_ordered_by_the_runtimes_own_operator(tmp_path, case):
    def both(x):
        values, places = ORDERED[case](x)
        return values, places

    module = Around(both)
    artifact = kit.compiled(tmp_path, module, {"x": X})

    found = kit.run(kit.driver(artifact), {"x": X})
    values, places = kit.reference(module, {"x": X})
    assert kit.operators(artifact)["TOPK_V2"] == 1
    np.testing.assert_array_equal(found["y0"], values)
    np.testing.assert_array_equal(found["y1"], places)


def test_the_driver_tells_which_operators_its_delegate_left(tmp_path):
    artifact = kit.compiled(tmp_path, Around(lambda x: torch.sigmoid((x * 2 + 1).cumsum(1)) * 3), {"x": X})

    made, plain = kit.driver(artifact), kit.driver(artifact, xnnpack=False)
    for each in (made, plain):
        kit.run(each, {"x": X})

    assert made.facts()["not_delegated"] == {"CUMSUM": 1}
    assert plain.facts()["not_delegated"] == dict(kit.operators(artifact))
