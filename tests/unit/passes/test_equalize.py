from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.core.errors import PassError
from edgekit.core.model import Model, TensorSpec
from edgekit.core.program import TorchProgram
from edgekit.passes.base import PassContext
from edgekit.passes.equalize import Equalize, EqualizeOptions


def uneven(module):
    """Channels of very unlike ranges, as training leaves them in depthwise convolutions."""
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(getattr(layer, "weight", None), nn.Parameter) and layer.weight.dim() > 1:
                layer.weight.mul_(torch.logspace(-1, 1, len(layer.weight)).reshape(-1, *[1] * (layer.weight.dim() - 1)))
    return module.eval()


def model_of(module, *shape):
    torch.manual_seed(1)
    x = torch.rand(shape).numpy()
    program = TorchProgram(uneven(module), ("x",), ("output",), False, {"x": x})
    specs = (TensorSpec("x", shape),), (TensorSpec("output", program.run({"x": x})["output"].shape),)
    return Model("net", program, *specs, {"x": x}, program.digest(), "model.py:build")


def equalized(model, tmp_path, **options):
    step = Equalize(EqualizeOptions(**options))
    digest = model.program.weights_digest()
    result = step.apply(model, None, PassContext(tmp_path))
    step.ensures(model, result.model)
    assert model.program.weights_digest() == digest, "the model passed in was changed"
    return result


def ranges(weight, axis):
    return weight.detach().abs().transpose(0, axis).reshape(weight.shape[axis], -1).amax(dim=1)


def layers_of(result):
    module = result.model.program.module
    return [m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]


PAIRS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (2, 6)),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (2, 4, 6)),
    "nothing between": (lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 1)), (2, 3, 4, 4)),
    "dropout and a slope": (
        lambda: nn.Sequential(nn.Conv1d(3, 5, 3), nn.LeakyReLU(0.1), nn.Dropout(), nn.Conv1d(5, 2, 1)),
        (2, 3, 9),
    ),
    "pooling": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(5, 2, 1)),
        (2, 3, 4, 4),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.ReLU(), nn.ConvTranspose2d(5, 2, 2)),
        (2, 3, 4, 4),
    ),
}


@pytest.mark.parametrize("name", list(PAIRS))
def test_both_sides_of_a_pair_get_the_same_ranges_and_the_outputs_stay(tmp_path, name):
    make, shape = PAIRS[name]
    result = equalized(model_of(make(), *shape), tmp_path)
    first, second = layers_of(result)
    made, taken = (1, 0) if isinstance(first, nn.ConvTranspose2d) else (0, 1)
    torch.testing.assert_close(ranges(first.weight, made), ranges(second.weight, taken), rtol=1e-3, atol=0)
    assert result.modified is True
    assert result.notes[0].startswith("1 groups of 2 layers equalized")


def test_a_flattened_image_keeps_its_channels_apart(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(20, 3))
    first, last = layers_of(equalized(model_of(net, 2, 3, 4, 4), tmp_path))
    taken = ranges(last.weight, 1).reshape(5, 4).amax(dim=1)
    torch.testing.assert_close(ranges(first.weight, 0), taken, rtol=1e-3, atol=0)


def test_a_depthwise_convolution_and_its_neighbours_come_to_rest_together(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    )
    first, depthwise, last = layers_of(equalized(model_of(net, 2, 3, 5, 5), tmp_path))
    for span in (ranges(first.weight, 0), ranges(last.weight, 1)):
        torch.testing.assert_close(span, ranges(depthwise.weight, 0), rtol=0.02, atol=0)


def test_a_grouped_consumer_counts_its_inputs_by_group(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2))
    first, second = layers_of(equalized(model_of(net, 2, 3, 5, 5), tmp_path))
    taken = torch.cat([ranges(second.weight[:2], 1), ranges(second.weight[2:], 1)])
    torch.testing.assert_close(ranges(first.weight, 0), taken, rtol=1e-3, atol=0)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        y = self.stem(x)
        return self.head(torch.relu(y + self.inner(torch.relu(y))))


def test_the_terms_of_a_sum_share_their_factors(tmp_path):
    result = equalized(model_of(Residual(), 2, 3, 5, 5), tmp_path)
    assert result.notes[0].startswith("1 groups of 3 layers equalized")


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.two(torch.relu(self.one(torch.relu(self.one(x)))))


class Returned(Twice):
    def forward(self, x):
        y = torch.relu(self.one(x))
        return self.two(y) + y.mean()


LEFT = {
    "a function with a ceiling": (nn.Sequential(nn.Linear(4, 4), nn.ReLU6(), nn.Linear(4, 2)), "'hardtanh' reads"),
    "a curved function": (nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)), "'gelu' reads"),
    "a layer used twice": (Twice(), "are used more than once"),
    "a second reader": (Returned(), "'mean' reads"),
    "a mean over channels": (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "'layer_norm' reads"),
    "one layer": (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "the model's output reads"),
}


@pytest.mark.parametrize("name", list(LEFT))
def test_what_lets_no_factor_through_is_named_and_nothing_changes(tmp_path, name):
    module, reason = LEFT[name]
    result = equalized(model_of(module, 2, 4), tmp_path)
    assert result.modified is False
    assert result.notes[0] == "there are no layers to equalize"
    assert any(reason in note for note in result.notes), result.notes


def test_the_input_in_a_sum_holds_the_stream_fast(tmp_path):
    class FromInput(Twice):
        def forward(self, x):
            return self.two(torch.relu(x + self.one(x)))

    result = equalized(model_of(FromInput(), 2, 4), tmp_path)
    assert any("is no layer's result" in note for note in result.notes), result.notes


def test_padding_with_something_else_than_zero_is_left_alone(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConstantPad2d(1, 1.0), nn.Conv2d(4, 2, 3))
    assert equalized(model_of(net, 1, 3, 4, 4), tmp_path).modified is False
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ZeroPad2d(1), nn.Conv2d(4, 2, 3))
    assert equalized(model_of(net, 1, 3, 4, 4), tmp_path).modified is True


def test_a_channel_that_training_switched_off_keeps_its_bias(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model = model_of(net, 2, 4)
    with torch.no_grad():
        net[0].weight[1] = 1e-12
    bias = net[0].bias[1].item()
    first, _ = layers_of(equalized(model, tmp_path))
    assert first.bias[1].item() == bias


def test_a_wrong_factor_does_not_pass(tmp_path):
    model = model_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), 2, 4)
    result = Equalize(EqualizeOptions()).apply(model, None, PassContext(tmp_path))
    with torch.no_grad():
        result.model.program.module[0].bias[2] += 1.0
    with pytest.raises(PassError, match="changed the output 'output'"):
        Equalize(EqualizeOptions()).ensures(model, result.model)


def test_iterations_below_one_are_refused():
    with pytest.raises(ValueError, match="iterations is at least 1, not 0"):
        EqualizeOptions(iterations=0)
