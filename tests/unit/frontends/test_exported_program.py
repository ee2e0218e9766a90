from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.frontends.base import InputDeclaration, SourceRequest
from edgekit.frontends.exported_program import ExportedProgram


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x, shift, *, scale):
        return {"y": self.linear(x) * scale + shift, "x": x * 2}


class Batch(torch.nn.Module):
    def forward(self, batch):
        return batch["left"] - batch["right"][0]


def saved(folder, module, args=(), kwargs=None, **options):
    torch.export.save(torch.export.export(module, args, kwargs, **options), folder / "net.pt2")


def load(folder, *inputs):
    return ExportedProgram().load(SourceRequest("net.pt2", folder, "net", inputs))


def test_positional_and_keyword_inputs_become_named_ones_in_order(tmp_path):
    args, kwargs = (torch.rand(1, 3), torch.rand(1, 2)), {"scale": torch.rand(1, 2)}
    net = Net()
    saved(tmp_path, net, args, kwargs)
    model = load(tmp_path)
    assert [spec.name for spec in model.inputs] == ["x", "shift", "scale"]
    assert [spec.name for spec in model.outputs] == ["y", "x"]
    x = {spec.name: np.full(spec.shape, 2 + i, np.float32) for i, spec in enumerate(model.inputs)}
    want = net(torch.full((1, 3), 2.0), torch.full((1, 2), 3.0), scale=torch.full((1, 2), 4.0))
    got = model.program.run(x)
    np.testing.assert_allclose(got["y"], want["y"].detach().numpy(), rtol=1e-6)
    assert got["x"].tolist() == [[4.0] * 3]


def test_inputs_inside_dicts_and_lists_become_inputs_of_their_own(tmp_path):
    saved(tmp_path, Batch(), ({"left": torch.full((1, 2), 5.0), "right": [torch.ones(1, 2)]},))
    model = load(tmp_path)
    assert len(model.inputs) == 2
    assert model.program.run(model.example_inputs)["output"].tolist() == [[4.0, 4.0]]


@pytest.mark.parametrize("args", [(torch.rand(1, 3),), ({"left": torch.ones(1, 2), "right": [torch.ones(1, 2)]},)])
def test_a_program_written_back_out_computes_the_same(tmp_path, args):
    saved(tmp_path, torch.nn.Linear(3, 2) if len(args[0]) == 1 else Batch(), args)
    model = load(tmp_path)
    (tmp_path / "again").mkdir()
    model.program.save(tmp_path / "again" / "net.pt2")
    again = load(tmp_path / "again")
    assert again.digest == model.digest
    # Names may differ: backends call a program by order.
    renamed = dict(zip(again.program.input_names, model.example_inputs.values(), strict=True))
    assert np.array_equal(again.program.run(renamed)["output"], model.program.run(model.example_inputs)["output"])


def test_without_saved_examples_they_are_made_up(tmp_path):
    program = torch.export.export(Batch(), ({"left": torch.ones(1, 2), "right": [torch.ones(1, 2)]},))
    program._example_inputs = None
    torch.export.save(program, tmp_path / "net.pt2")
    model = load(tmp_path)
    assert [value.shape for value in model.example_inputs.values()] == [(1, 2), (1, 2)]
    model.program.run(model.example_inputs)


def test_the_digest_follows_the_weights(tmp_path):
    digests = set()
    for value in (1.0, 1.0, 2.0):
        net = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(net.weight, value)
        torch.nn.init.zeros_(net.bias)
        saved(tmp_path, net, (torch.zeros(1, 3),))
        digests.add(load(tmp_path).digest)
    assert len(digests) == 2


def test_a_declaration_is_checked_and_kept(tmp_path):
    saved(tmp_path, torch.nn.ReLU(), (torch.rand(1, 3),))
    assert load(tmp_path, InputDeclaration("input", (1, 3), layout="NC")).inputs[0].layout == "NC"
    with pytest.raises(ConfigError, match="declares an input 'image'"):
        load(tmp_path, InputDeclaration("image"))


def test_a_dynamic_shape_is_refused_by_name(tmp_path):
    batch = torch.export.Dim("batch", min=2, max=64)
    saved(tmp_path, torch.nn.ReLU(), (torch.rand(4, 3),), dynamic_shapes={"input": {0: batch}})
    with pytest.raises(UnsupportedModelError, match="'input' of net.pt2 has dynamic shape") as caught:
        load(tmp_path)
    assert "without dynamic_shapes" in caught.value.hint


def test_a_missing_a_cut_and_a_foreign_file_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="There is no file"):
        load(tmp_path)
    saved(tmp_path, torch.nn.ReLU(), (torch.rand(1, 3),))
    whole = (tmp_path / "net.pt2").read_bytes()
    for content in (whole[: len(whole) // 2], b"no program", b""):
        (tmp_path / "net.pt2").write_bytes(content)
        with pytest.raises(ConfigError, match=r"'net\.pt2' is not a program that torch\.export\.save"):
            load(tmp_path)


def test_weights_saved_by_torch_save_are_not_taken_for_a_program(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "net.pt2")
    with pytest.raises(ConfigError, match="is not a program"):
        load(tmp_path)
