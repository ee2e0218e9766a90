from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.backends._litert.batches import require_equal
from edgekit.backends.litert import LiteRt
from edgekit.core.errors import BackendError, UnsupportedModelError
from edgekit.core.lowering import Lowering, Quantize
from tests.unit.backends import litert_kit as kit

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Net(torch.nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv1d(3, width, 3)
        self.layer = torch.nn.GRU(width, width, batch_first=True)
        self.last = torch.nn.Linear(width, 4)

    def forward(self, x):
        hidden = torch.relu(self.conv(x)).transpose(1, 2)
        return self.last(self.layer(hidden)[0][:, -1].view(1, -1))


def data(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 20)).astype(np.float32)


def want(x: np.ndarray) -> np.ndarray:
    return np.concatenate([kit.reference(Net(), {"x": one[None]})[0] for one in x])


def runner(artifact, signature: str):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=str(artifact.main), num_threads=1).get_signature_runner(signature)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    lowering = Lowering(batch_sizes=(1, 4))
    return kit.compiled(tmp_path_factory.mktemp("several"), Net(), {"x": data(1)}, lowering=lowering)


def test_each_batch_size_is_a_signature_that_computes_the_model(several):
    x = data(4)
    np.testing.assert_allclose(runner(several, "batch_4")(x=x)["y0"], want(x), atol=1e-5)
    np.testing.assert_allclose(runner(several, "serving_default")(x=x[:1])["y0"], want(x[:1]), atol=1e-5)
    assert several.manifest.changed == ("the artifact takes the batch sizes 1, 4; it was 1",)


def test_the_driver_runs_the_first(several):
    made = kit.driver(several)
    assert made.inputs[0]["shape"] == [1, 3, 20]
    np.testing.assert_allclose(kit.run(made, {"x": data(1)})["y0"], want(data(1)), atol=1e-5)


def test_the_weights_are_stored_once(several):
    constants = [len(buffer.data) for buffer in kit.model_of(several).buffers if buffer.data is not None]
    large = [size for size in constants if size >= 32 * 32 * 4]
    assert sorted(large) == [3 * 32 * 32 * 4] * 2  # input and state weights of the GRU


def test_the_first_size_may_be_another_than_the_models(tmp_path):
    artifact = kit.compiled(tmp_path, Net(), {"x": data(1)}, lowering=Lowering(batch_sizes=(3,)))
    assert [spec.shape for spec in (*artifact.manifest.inputs, *artifact.manifest.outputs)] == [(3, 3, 20), (3, 4)]
    np.testing.assert_allclose(kit.run(kit.driver(artifact), {"x": data(3)})["y0"], want(data(3)), atol=1e-5)


def test_quantized_signatures_agree(tmp_path):
    lowering = Lowering(Quantize("static_wi8_ai8", calibration=32), batch_sizes=(1, 2))
    artifact = kit.compiled(tmp_path, Net(), {"x": data(1)}, lowering=lowering, calibration={"x": data(32, seed=1)})
    x = data(2, seed=5)
    found = runner(artifact, "batch_2")(x=x)["y0"]
    assert np.corrcoef(found.ravel(), want(x).ravel())[0, 1] > 0.95
    constants = [len(buffer.data) for buffer in kit.model_of(artifact).buffers if buffer.data is not None]
    assert len([size for size in constants if size >= 32 * 32]) == 2  # those of the GRU, in 8 bits and once


def test_a_size_that_is_no_multiple_is_refused(tmp_path):
    class Two(torch.nn.Module):
        def forward(self, x):
            return x * 2

    with pytest.raises(UnsupportedModelError, match="asks for 3; the model's own batch size is 2"):
        kit.compiled(tmp_path, Two(), {"x": data(2)}, lowering=Lowering(batch_sizes=(2, 3)))


def test_an_output_without_a_batch_is_refused_by_name(tmp_path):
    class Total(torch.nn.Module):
        def forward(self, x):
            return x.sum()

    with pytest.raises(UnsupportedModelError, match=r"the output 'y0' \[\] has no batch of 1"):
        kit.compiled(tmp_path, Total(), {"x": data(1)}, lowering=Lowering(batch_sizes=(1, 2)))


def test_signatures_that_differ_are_caught(several):
    from edgekit.backends._litert import flatbuffer

    model = kit.model_of(several)
    second = model.signatureDefs[1].subgraphIndex
    tensor = next(
        tensor for tensor in model.subgraphs[second].tensors if tuple(tensor.shape) == (4, 32) and tensor.buffer
    )
    buffer = flatbuffer.schema().BufferT()
    buffer.data = np.zeros(4 * 32 * 4, np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1
    with pytest.raises(BackendError, match="'serving_default' and 'batch_4' do not compute the same"):
        require_equal(flatbuffer.write(model), {"serving_default": 1, "batch_4": 4})


def test_a_plan_names_the_signature_only_where_there_are_several(several):
    assert LiteRt().run_plan(several.manifest, kit.HERE, []).options == {"signature": "serving_default"}
