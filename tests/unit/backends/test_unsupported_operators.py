"""Each backend names the operators that its converter cannot take, and suspects none that it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.backends.base import Backend, registry
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.lowering import Lowering
from edgekit.core.program import TorchProgram
from edgekit.core.target import load_target
from tests.unit.backends import litert_kit as kit
from tests.unit.backends.convert_kit import NETS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HERE = Path(__file__).name
X = np.random.default_rng(0).uniform(0.1, 0.9, (1, 6, 8)).astype(np.float32)
TARGETS = {"coreml": "iphone15", "litert": "rpi4", "onnxruntime": "linux-x86", "openvino": "intel-cpu"}


@pytest.fixture(params=TARGETS)
def backend(request) -> Backend:
    return registry.create(request.param)


@torch.library.custom_op("edgekit_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x):
    return torch.empty_like(x)


class Around(torch.nn.Module):
    """A function between layers, in a module with a path."""

    class Inner(torch.nn.Module):
        def __init__(self, function) -> None:
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)  # the line that torch notes

    def __init__(self, function) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(torch.nn.ReLU(), self.Inner(function))

    def forward(self, x):
        return self.blocks(x)


def issues(backend: Backend, function, tmp_path: Path):
    exported = torch.export.export(Around(function).eval(), (torch.from_numpy(X),))
    torch.export.save(exported, tmp_path / "net.pt2")
    return backend.unsupported_operators(torch.export.load(tmp_path / "net.pt2"), Lowering())


def line_of(text: str) -> str:
    """`FILE:LINE` of the one line of this file that has a text."""
    lines = Path(__file__).read_text().splitlines()
    (place,) = [number for number, line in enumerate(lines, 1) if text in line and "line_of" not in line]
    return f"{HERE}:{place}"


def test_a_custom_operator_is_named_with_its_module_and_line(backend, tmp_path):
    (issue,) = issues(backend, lambda x: x + twice(x), tmp_path)
    assert issue.what == "edgekit_tests.twice.default"
    assert issue.where == f"blocks.1, {line_of('# the line that torch notes')}"
    assert issue.reason


def test_the_wrapper_of_a_program_is_no_part_of_the_path(backend, tmp_path):
    program = TorchProgram(Around(twice).eval(), ("x",), ("y",), False, {"x": X})
    program.save(tmp_path / "net.pt2")
    (issue,) = backend.unsupported_operators(torch.export.load(tmp_path / "net.pt2"), Lowering())
    assert issue.where.startswith("blocks.1, ")


def test_a_conversion_stops_before_the_converter_is_called(backend, tmp_path, monkeypatch):
    request = kit.request_for(tmp_path, Around(twice), {"x": X})
    request = replace(request, target=load_target(TARGETS[backend.name]))

    with pytest.raises(UnsupportedModelError) as caught:
        backend.compile(request, tmp_path / "artifact")
    assert f"edgekit_tests.twice.default (blocks.1, {HERE}:" in caught.value.message
    assert request.source in caught.value.message
    assert caught.value.__cause__ is None  # it is no converter's error
    assert caught.value.hint
    assert not (tmp_path / "artifact").exists()


def test_an_operator_used_twice_in_one_line_is_named_once(backend, tmp_path):
    assert len(issues(backend, lambda x: twice(x) + twice(x + 1), tmp_path)) == 1


def test_complex_results_that_no_converter_takes_are_named(backend, tmp_path):
    found = issues(backend, lambda x: torch.linalg.eig(x[:, :, :6])[0].real, tmp_path)
    assert "aten.linalg_eig.default" in [issue.what for issue in found]


# Every entry is what the converters did when they were asked; of what hides in a compound operator, LiteRT tells after
# the attempt.
REFUSED_BY = {
    "spectrum": (lambda x: torch.fft.fft(x).real, {"litert", "openvino"}),
    "product-of-spectra": (lambda x: (torch.fft.fft(x) * torch.fft.fft(x)).real, {"litert", "openvino", "coreml"}),
    "shape-from-data": (lambda x: x.nonzero().sum(), {"litert"}),
    "masked": (lambda x: x[x > 0.5].sum(), {"litert"}),
    "value-read": (lambda x: x * x.sum().item(), {"litert"}),
    "branch": (lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), {"litert", "coreml"}),
    "log-gamma": (torch.lgamma, {"litert", "openvino", "onnxruntime", "coreml"}),
    "inverse-error-function": (torch.erfinv, {"litert", "onnxruntime"}),
    "eigenvalues": (lambda x: torch.linalg.eigh(x[:, :, :6])[0], {"openvino", "onnxruntime", "coreml"}),
}


@pytest.mark.parametrize("case", REFUSED_BY)
def test_an_operator_is_refused_where_the_converter_refuses_it_and_nowhere_else(backend, tmp_path, case):
    function, by = REFUSED_BY[case]
    assert bool(issues(backend, function, tmp_path)) == (backend.name in by)


def test_what_an_operator_is_made_of_is_named_with_the_operators_own_line(tmp_path):
    backend = registry.create("openvino")

    found = issues(backend, lambda x: torch.linalg.det(x[:, :, :6]), tmp_path)
    assert [issue.what for issue in found] == ["aten._linalg_det.default"]
    assert "which aten.linalg_det.default is made of" in found[0].reason
    assert found[0].where.startswith(f"blocks.1, {HERE}:")


TAKEN = {
    "in-place": lambda x: x.clone().add_(1).relu_().mul_(x),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x),
    "resize": lambda x: torch.nn.functional.interpolate(x[:, :, None], scale_factor=2.0, mode="bilinear"),
    "cumulative-sum": lambda x: x.cumsum(1),
    "einsum": lambda x: torch.einsum("abc,adc->abd", x, x),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "new-ones": lambda x: x + x.new_ones(8),
    "normalized": lambda x: torch.nn.functional.layer_norm(x, (8,)),
    "without-gradients": torch.no_grad()(lambda x: torch.nn.functional.gelu(x) @ x.transpose(1, 2)),
    "largest": lambda x: torch.topk(x, 2)[0],
    "put": lambda x: x.clone().index_put((torch.tensor([0]),), x[0:1] * 2),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_converts_is_not_suspected(backend, tmp_path, case):
    assert issues(backend, TAKEN[case], tmp_path) == []


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU])
def test_recurrent_layers_are_not_suspected(backend, tmp_path, layer):
    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(8, 4, num_layers=2, bidirectional=True)

        def forward(self, x):
            return self.layer(x)[0]

    exported = torch.export.export(Recurrent().eval(), (torch.from_numpy(X),))
    assert backend.unsupported_operators(exported, Lowering()) == []


@pytest.mark.parametrize("factory", ["words", "conv", "add"])
def test_small_networks_are_not_suspected(backend, factory):
    namespace: dict = {}
    exec(NETS, namespace)
    module, inputs = namespace[factory]()
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    exported = torch.export.export(module.eval(), args, kwargs)
    assert backend.unsupported_operators(exported, Lowering()) == []
