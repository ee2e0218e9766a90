from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.core.errors import PassError, UnsupportedModelError
from edgekit.core.model import Model, TensorSpec
from edgekit.core.program import OnnxProgram, TorchProgram
from edgekit.passes.base import NoOptions, PassContext
from edgekit.passes.fold_batch_norm import FoldBatchNorm


def norm(kind, channels, **options):
    layer = kind(channels, **options)
    if layer.running_mean is not None:
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.3, 3)
    if layer.weight is not None:
        nn.init.uniform_(layer.weight, -2, 2)
        nn.init.uniform_(layer.bias, -1, 1)
    return layer


def model_of(module, *shape):
    torch.manual_seed(1)
    x = torch.rand(shape).numpy()
    program = TorchProgram(module.eval(), ("x",), ("output",), False, {"x": x})
    out = program.run({"x": x})["output"]
    specs = (TensorSpec("x", shape),), (TensorSpec("output", out.shape),)
    return Model("net", program, *specs, {"x": x}, program.digest(), "model.py:build")


def folded(model, tmp_path):
    before = model.program.run(model.example_inputs)["output"].copy()
    digest = model.digest
    step = FoldBatchNorm(NoOptions())
    result = step.apply(model, None, PassContext(tmp_path))
    step.ensures(model, result.model)
    after = result.model.program.run(model.example_inputs)["output"]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert model.program.with_module(model.program.module).digest() == digest, "the model passed in was changed"
    return result


def norms_in(model):
    return [m for m in model.program.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


FOLDABLE = {
    "conv2d": (lambda: (nn.Conv2d(3, 8, 3), norm(nn.BatchNorm2d, 8)), (2, 3, 6, 6)),
    "conv2d without bias": (lambda: (nn.Conv2d(3, 8, 3, bias=False), norm(nn.BatchNorm2d, 8)), (2, 3, 6, 6)),
    "grouped": (lambda: (nn.Conv2d(4, 8, 3, groups=2), norm(nn.BatchNorm2d, 8)), (2, 4, 6, 6)),
    "depthwise": (lambda: (nn.Conv2d(4, 4, 3, groups=4, bias=False), norm(nn.BatchNorm2d, 4)), (2, 4, 6, 6)),
    "padding by name": (lambda: (nn.Conv2d(3, 8, 3, padding="same"), norm(nn.BatchNorm2d, 8)), (2, 3, 6, 6)),
    "conv1d": (lambda: (nn.Conv1d(3, 5, 3), norm(nn.BatchNorm1d, 5)), (2, 3, 9)),
    "conv3d": (lambda: (nn.Conv3d(2, 3, 2), norm(nn.BatchNorm3d, 3)), (1, 2, 4, 4, 4)),
    "transposed": (lambda: (nn.ConvTranspose2d(3, 5, 2, stride=2), norm(nn.BatchNorm2d, 5)), (2, 3, 4, 4)),
    "transposed 1d": (lambda: (nn.ConvTranspose1d(3, 5, 2), norm(nn.BatchNorm1d, 5)), (2, 3, 4)),
    "linear": (lambda: (nn.Linear(6, 4), norm(nn.BatchNorm1d, 4)), (3, 6)),
    "not affine": (lambda: (nn.Conv2d(3, 8, 1), norm(nn.BatchNorm2d, 8, affine=False)), (2, 3, 4, 4)),
    "large eps": (lambda: (nn.Conv2d(3, 8, 1), norm(nn.BatchNorm2d, 8, eps=0.5)), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("name", list(FOLDABLE))
def test_a_norm_behind_a_layer_is_folded_and_the_outputs_stay(tmp_path, name):
    make, shape = FOLDABLE[name]
    torch.manual_seed(0)
    result = folded(model_of(nn.Sequential(*make(), nn.ReLU()), *shape), tmp_path)
    assert result.modified is True
    assert result.notes == ("1 batch norms folded",)
    assert norms_in(result.model) == []


class SideReader(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), norm(nn.BatchNorm2d, 3)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class UsedTwice(SideReader):
    def forward(self, x):
        return self.bn(self.conv(self.bn(self.conv(x))))


class NormUsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), norm(nn.BatchNorm2d, 3)

    def forward(self, x):
        return self.bn(self.two(self.bn(self.one(x))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), norm(nn.BatchNorm2d, 3)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.bn(self.one(x)))


class ReadElsewhere(SideReader):
    def forward(self, x):
        return self.bn(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight)


class Standardized(nn.Conv2d):
    """A convolution that normalizes its own weight, as in Qiao et al. 2019."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class BiasIgnored(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight)


class NormAndActivation(nn.BatchNorm2d):
    """A batch norm with an activation inside, as some model libraries have."""

    def forward(self, x):
        return super().forward(x).relu()


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("mean", torch.rand(3))
        self.register_buffer("var", torch.rand(3) + 0.5)

    def forward(self, x):
        return nn.functional.batch_norm(self.conv(x), self.mean, self.var)


def hooked():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), norm(nn.BatchNorm2d, 3))
    net[1].register_forward_hook(lambda module, inputs, output: output * 2)
    return net


def parametrized():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), norm(nn.BatchNorm2d, 3))


STAYING = {
    "something else reads the output": SideReader,
    "a module of the pair is used more than once": UsedTwice,
    "used more than once": NormUsedTwice,
    "shared with another layer": Tied,
    "are shared": ReadElsewhere,
    "'0' computes its weight": lambda: nn.Sequential(Standardized(3, 3, 3), norm(nn.BatchNorm2d, 3)),
    "more than a plain layer": lambda: nn.Sequential(BiasIgnored(3, 3, 3, bias=False), norm(nn.BatchNorm2d, 3)),
    "does more than normalize": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), norm(NormAndActivation, 3)),
    "its module does more": hooked,
    "computes its weight": parametrized,
    "not a module with running statistics": Functional,
    "running statistics": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), norm(nn.BatchNorm2d, 3, track_running_stats=False)),
    "neither a convolution nor a linear layer": lambda: nn.Sequential(nn.ReLU(), norm(nn.BatchNorm2d, 3)),
    "grouped transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 2, groups=3), norm(nn.BatchNorm2d, 3)),
}


@pytest.mark.parametrize("reason", list(STAYING))
def test_a_norm_that_cannot_be_folded_stays_and_is_named_with_its_reason(tmp_path, reason):
    torch.manual_seed(0)
    result = folded(model_of(STAYING[reason](), 2, 3, 4, 4), tmp_path)
    assert result.modified is False
    assert result.notes[0] == "there is no batch norm to fold"
    assert reason in result.notes[1]


def test_a_norm_whose_channels_are_not_the_linear_layers_stays(tmp_path):
    net = nn.Sequential(nn.Linear(6, 6), norm(nn.BatchNorm1d, 5))
    assert "its channels" in folded(model_of(net, 2, 5, 6), tmp_path).notes[1]


def test_a_net_without_norms_says_so(tmp_path):
    result = folded(model_of(nn.Conv2d(3, 3, 1), 1, 3, 4, 4), tmp_path)
    assert (result.modified, result.notes) == (False, ("there is no batch norm to fold",))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm(nn.BatchNorm2d, 4), nn.ReLU())
        self.blocks = nn.ModuleDict(
            {"a": SideReader(), "b": nn.Sequential(nn.Conv2d(3, 3, 1), norm(nn.BatchNorm2d, 3))}
        )
        self.point = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.blocks["b"](self.blocks["a"](self.point(self.stem(x))))


def test_what_can_be_folded_is_and_the_rest_stays(tmp_path):
    torch.manual_seed(0)
    result = folded(model_of(Nested(), 1, 3, 8, 8), tmp_path)
    assert result.notes[0] == "2 batch norms folded"
    assert result.notes[1].startswith("blocks.a.bn stays")
    assert result.structure == {"pairs": [["stem.0", "stem.1"], ["blocks.b.0", "blocks.b.1"]]}


def test_replaying_gives_a_fresh_module_the_folded_structure(tmp_path):
    torch.manual_seed(0)
    net = Nested()
    fresh = copy.deepcopy(net)
    result = folded(model_of(net, 1, 3, 8, 8), tmp_path)
    replayed = FoldBatchNorm(NoOptions()).replay(fresh, result.structure)
    replayed.load_state_dict(result.model.program.module.state_dict(), strict=True)
    assert result.model.program.with_module(replayed.eval()).digest() == result.model.digest


def test_a_fold_that_would_change_the_outputs_is_stopped(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm(nn.BatchNorm2d, 4))
    model = model_of(net, 1, 3, 4, 4)
    result = folded(model, tmp_path)
    wrong = copy.deepcopy(result.model.program.module)
    wrong[0].bias.data[0] += 1
    from dataclasses import replace

    broken = replace(result.model, program=result.model.program.with_module(wrong))
    with pytest.raises(PassError, match="changed the output 'output' by"):
        FoldBatchNorm(NoOptions()).ensures(model, broken)


def test_a_program_that_is_no_live_module_is_refused(tmp_path):
    program = OnnxProgram(tmp_path / "net.onnx", ("x",), ("y",))
    model = Model("net", program, (), (), {}, "", "net.onnx")
    with pytest.raises(UnsupportedModelError, match="needs a live torch module"):
        FoldBatchNorm(NoOptions()).requires(model)


class PaddedByItself(nn.Conv2d):
    """A convolution that pads in its own forward, as TensorFlow's networks in torch do."""

    def forward(self, x):
        return nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


def test_a_layer_with_a_forward_of_its_own_is_folded_where_that_changes_nothing(tmp_path):
    net = nn.Sequential(PaddedByItself(3, 4, 3, stride=2, bias=False), norm(nn.BatchNorm2d, 4), nn.ReLU())
    model = model_of(net, 1, 3, 8, 8)
    result = folded(model, tmp_path)
    assert result.modified
    assert isinstance(result.model.program.module[1], nn.Identity)
    FoldBatchNorm(NoOptions()).ensures(model, result.model)
