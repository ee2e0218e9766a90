from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.core.lowering import Lowering, Quantize
from tests.unit.backends import litert_kit as kit

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FEATURES, HIDDEN = 5, 8


class Recurrent(torch.nn.Module):
    """A recurrent layer; `gives` chooses the outputs that are read: all, y or state."""

    def __init__(self, kind: str, *, gives: str = "all", **options) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = getattr(torch.nn, kind)(FEATURES, HIDDEN, **options)
        self.gives = gives

    def forward(self, x: torch.Tensor, *state: torch.Tensor):
        given = (tuple(state) if isinstance(self.layer, torch.nn.LSTM) else state[0]) if state else None
        y, last = self.layer(x, given)
        last = last if isinstance(last, tuple) else (last,)
        return {"all": (y, *last), "y": y, "state": last}[self.gives]


def sequence(steps: int, batch: int, *, batch_first: bool, seed: int = 0) -> np.ndarray:
    shape = (batch, steps, FEATURES) if batch_first else (steps, batch, FEATURES)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def states(count: int, layers: int, batch: int, width: int = HIDDEN) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(9)
    return {f"s{n}": generator.standard_normal((layers, batch, width)).astype(np.float32) for n in range(count)}


CASES = {
    "lstm": ("LSTM", {"batch_first": True}, 20, 1, 0),
    "lstm-time-first-two-layers-both-ways-from-a-state": ("LSTM", {"num_layers": 2, "bidirectional": True}, 11, 3, 2),
    "lstm-projected": ("LSTM", {"proj_size": 4, "bidirectional": True}, 9, 2, 0),
    "lstm-without-bias": ("LSTM", {"bias": False, "gives": "y", "batch_first": True}, 16, 1, 0),
    "gru-both-ways-from-a-state": ("GRU", {"bidirectional": True, "batch_first": True}, 13, 2, 1),
    "gru-two-layers-last-state-only": ("GRU", {"num_layers": 2, "gives": "state"}, 17, 1, 0),
    "rnn-relu": ("RNN", {"nonlinearity": "relu", "batch_first": True, "bidirectional": True}, 10, 1, 0),
    "rnn-tanh-shorter-than-a-turn": ("RNN", {}, 3, 1, 0),
    "a-single-step": ("LSTM", {}, 1, 1, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_recurrent_layer_computes_what_torch_does_on_every_inference(tmp_path, case):
    kind, options, steps, batch, given = CASES[case]
    module = Recurrent(kind, **options)
    layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    first, second = (sequence(steps, batch, batch_first=options.get("batch_first", False), seed=s) for s in (1, 2))
    more = states(given, layers, batch)

    made = kit.driver(kit.compiled(tmp_path, module, {"x": first, **more}))

    # The same again after other data: a state that outlived an inference would show.
    for x in (first, second, first):
        found = kit.run(made, {"x": x, **more})
        for place, want in enumerate(kit.reference(module, {"x": x, **more})):
            np.testing.assert_allclose(found[f"y{place}"], want, atol=1e-5)


@pytest.mark.parametrize("steps", [40, 301])
def test_the_file_of_a_recurrent_layer_does_not_grow_with_its_sequence(tmp_path, steps):
    module = Recurrent("LSTM", gives="y", batch_first=True)
    x = sequence(steps, 1, batch_first=True)

    artifact = kit.compiled(tmp_path, module, {"x": x})

    kinds = kit.operators(artifact)
    assert kinds["WHILE"] >= 1
    # A turn's few steps and those that fill no turn; never one product a step.
    assert kinds["FULLY_CONNECTED"] <= 30
    np.testing.assert_allclose(
        kit.run(kit.driver(artifact), {"x": x})["y0"], kit.reference(module, {"x": x})[0], atol=1e-5
    )


def test_a_recurrent_network_is_hardly_larger_than_its_weights(tmp_path):
    torch.manual_seed(0)
    module = torch.nn.LSTM(128, 256, batch_first=True)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        def forward(self, x):
            return self.layer(x)[0]

    x = np.random.default_rng(0).standard_normal((1, 20, 128)).astype(np.float32)
    artifact = kit.compiled(tmp_path, Net(), {"x": x})

    assert artifact.bytes <= 1.1 * kit.weight_bytes(module)


def test_weights_that_are_computed_are_carried_through_the_loop(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.layer = torch.nn.GRU(FEATURES, HIDDEN)

        def forward(self, x, scale):
            weights = [scale * parameter for parameter in self.layer._flat_weights]
            start = torch.zeros(1, x.shape[1], HIDDEN)
            return torch.gru(x, start, weights, True, 1, 0.0, False, False, False)[0]

    inputs = {"x": sequence(18, 1, batch_first=False), "scale": np.array([0.7], np.float32)}
    module = Scaled()

    found = kit.run(kit.driver(kit.compiled(tmp_path, module, inputs)), inputs)

    np.testing.assert_allclose(found["y0"], kit.reference(module, inputs)[0], atol=1e-5)


def test_a_loop_runs_without_the_delegate_too(tmp_path):
    module = Recurrent("GRU", gives="y")
    x = sequence(20, 2, batch_first=False)
    artifact = kit.compiled(tmp_path, module, {"x": x})

    found = kit.run(kit.driver(artifact, xnnpack=False), {"x": x})

    np.testing.assert_allclose(found["y0"], kit.reference(module, {"x": x})[0], atol=1e-5)


def test_the_newer_compiled_model_runtime_runs_a_loop_anew_each_time(tmp_path):
    from ai_edge_litert.compiled_model import CompiledModel

    module = Recurrent("LSTM", gives="y", batch_first=True)
    x = sequence(30, 1, batch_first=True)
    artifact = kit.compiled(tmp_path, module, {"x": x})
    want = kit.reference(module, {"x": x})[0]

    model = CompiledModel.from_file(str(artifact.main))
    given, gives = model.create_input_buffers(0), model.create_output_buffers(0)
    for _ in range(2):
        given[0].write(x)
        model.run_by_index(0, given, gives)
        found = gives[0].read(want.size, np.float32).reshape(want.shape)
        np.testing.assert_allclose(found, want, atol=1e-5)


def test_static_quantization_leaves_the_state_of_a_recurrence_in_float(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.first = torch.nn.Linear(FEATURES, 32)
            self.layer = torch.nn.LSTM(32, 32, batch_first=True)
            self.last = torch.nn.Linear(32, 4)

        def forward(self, x):
            return self.last(self.layer(torch.relu(self.first(x)))[0][:, -1])

    module = Net()
    data = np.random.default_rng(0).standard_normal((40, 21, FEATURES)).astype(np.float32)
    lowering = Lowering(Quantize("static_wi8_ai8", calibration=32))
    artifact = kit.compiled(tmp_path, module, {"x": data[:1]}, lowering=lowering, calibration={"x": data})

    made = kit.driver(artifact)
    found = np.concatenate([kit.run(made, {"x": one[None]})["y0"] for one in data])
    want = kit.reference(module, {"x": data})[0]
    assert np.corrcoef(found.ravel(), want.ravel())[0, 1] > 0.95
    # The weights of the recurrence are stored in 8 bits as well: float ones alone would be 16 KiB.
    constants = [len(buffer.data) for buffer in kit.model_of(artifact).buffers if buffer.data is not None]
    assert max(constants) == 4 * 32 * 32
