from __future__ import annotations

import textwrap

import numpy as np
import pytest

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.frontends.base import InputDeclaration, OutputDeclaration, SourceRequest, frontend_for, split_source
from edgekit.frontends.torch_module import TorchModule

HEAD = """\
import torch
from torch import nn

class Two(nn.Module):
    def forward(self, ids, mask, *, bias=0.0):
        return {"minus": ids - 2 * mask, "nested": (ids, [mask])}

"""


def load(folder, body, name="build", inputs=(), outputs=()):
    (folder / "model.py").write_text(HEAD + textwrap.dedent(body))
    source = f"model.py:{name}" if name else "model.py"
    return TorchModule().load(SourceRequest(source, folder, "net", tuple(inputs), tuple(outputs)))


def ran(model):
    return model.program.run(model.example_inputs)


@pytest.mark.parametrize(
    "given",
    [
        "(torch.full((1, 2), 5.0), torch.ones(1, 2))",
        "[torch.full((1, 2), 5.0), torch.ones(1, 2)]",
        "{'mask': torch.ones(1, 2), 'ids': torch.full((1, 2), 5.0)}",
    ],
)
def test_example_inputs_come_in_order_or_by_name(tmp_path, given):
    model = load(tmp_path, f"def build():\n    return Two(), {given}\n")
    assert {spec.name for spec in model.inputs} == {"ids", "mask"}
    assert ran(model)["minus"].tolist() == [[3.0, 3.0]]
    assert model.program.exported is model.program.exported


def test_outputs_are_named_by_what_the_module_returns(tmp_path):
    model = load(tmp_path, "def build():\n    return Two(), (torch.ones(1, 2), torch.ones(1, 2))\n")
    assert [spec.name for spec in model.outputs] == ["minus", "nested_0", "nested_1"]


def test_one_tensor_is_an_example_too(tmp_path):
    model = load(tmp_path, "def build():\n    return nn.Linear(3, 2), torch.ones(1, 3)\n")
    assert [(spec.name, spec.shape) for spec in model.inputs + model.outputs] == [("input", (1, 3)), ("output", (1, 2))]


def test_a_script_with_get_model_and_get_args_works(tmp_path):
    body = "def get_model():\n    return nn.Linear(3, 2)\ndef get_args():\n    return (torch.ones(1, 3),)\n"
    assert load(tmp_path, body, "").inputs[0].shape == (1, 3)


@pytest.mark.parametrize("order", [["ids", "mask"], ["mask", "ids"]])
def test_declared_inputs_meet_forwards_arguments_by_name(tmp_path, order):
    ranges = {"ids": (5, 5), "mask": (1, 1)}
    inputs = [InputDeclaration(name, (1, 2), range=ranges[name]) for name in order]
    model = load(tmp_path, "def build():\n    return Two()\n", inputs=inputs)
    assert ran(model)["minus"].tolist() == [[3.0, 3.0]]


def test_declared_names_may_take_the_place_of_forwards(tmp_path):
    inputs = [InputDeclaration("tokens", (1, 2)), InputDeclaration("weights", (1, 2))]
    model = load(tmp_path, "def build():\n    return Two()\n", inputs=inputs)
    assert [spec.name for spec in model.inputs] == ["tokens", "weights"]
    named = load(tmp_path, "def build():\n    return Two(), (torch.ones(1, 2), torch.ones(1, 2))\n", inputs=inputs)
    assert [spec.name for spec in named.inputs] == ["tokens", "weights"]


def test_made_up_inputs_keep_their_declared_type_and_range(tmp_path):
    body = "def build():\n    return nn.Embedding(11, 4)\n"
    model = load(tmp_path, body, inputs=[InputDeclaration("input", (1, 50), "int64", range=(3, 9))])
    values = model.example_inputs["input"]
    assert values.dtype == np.int64
    assert set(np.unique(values)) == set(range(3, 10))


def test_labels_and_names_of_outputs_can_be_declared(tmp_path):
    body = "def build():\n    return nn.Linear(3, 2), torch.ones(1, 3)\n"
    model = load(tmp_path, body, outputs=[OutputDeclaration("scores", ("cat", "dog"))])
    assert (model.outputs[0].name, model.outputs[0].labels) == ("scores", ("cat", "dog"))
    assert list(ran(model)) == ["scores"]


def test_a_module_is_put_into_evaluation_mode(tmp_path):
    model = load(tmp_path, "def build():\n    return nn.Dropout(0.9), torch.ones(1, 50)\n")
    assert ran(model)["output"].tolist() == [[1.0] * 50]


def test_outputs_that_are_one_tensor_or_an_input_are_tensors_of_their_own(tmp_path):
    body = """
        class Same(nn.Module):
            def forward(self, x):
                y = x * 2
                return {"a": y, "b": y, "c": x}
        def build():
            return Same(), torch.arange(3.0)[None]
        """
    model = load(tmp_path, body)
    nodes = next(node for node in model.program.exported.graph.nodes if node.op == "output").args[0]
    assert len({node.name for node in nodes} | {"tensors_0"}) == 4
    assert {name: value.tolist() for name, value in ran(model).items()} == {
        "a": [[0, 2, 4]],
        "b": [[0, 2, 4]],
        "c": [[0, 1, 2]],
    }


@pytest.mark.parametrize(
    "body, kind, said",
    [
        ("def build():\n    return 3\n", ConfigError, "returned 'int', not an nn.Module"),
        ("build = 3\n", ConfigError, "cannot be called"),
        ("def biuld():\n    return nn.ReLU()\n", ConfigError, "Did you mean 'biuld'"),
        ("def build():\n    raise OSError('no disk')\n", ConfigError, "model.py:9: OSError: no disk"),
        ("def build():\n    return nn.ReLU()\n", ConfigError, "gives no example inputs"),
        ("def build():\n    return nn.ReLU(), (3,)\n", ConfigError, "is a int, not a tensor"),
        ("def build():\n    return nn.ReLU(), (torch.ones(1),) * 3\n", ConfigError, "takes 1: input"),
        ("def build():\n    return nn.Linear(3, 2), torch.ones(1, 4)\n", UnsupportedModelError, "input [1, 4] float32"),
        ("def build():\n    return nn.ReLU(), torch.ones(1, 4).bfloat16()\n", UnsupportedModelError, "is bfloat16"),
        ("def build():\n    return nn.ReLU(), torch.ones(1, 4).double()\n", UnsupportedModelError, "is float64"),
        (
            (
                "class C(nn.Module):\n    def forward(self, x):\n        return x.bfloat16()\n"
                "def build():\n    return C(), torch.ones(1)\n"
            ),
            UnsupportedModelError,
            "output 'output' is bfloat16",
        ),
        (
            (
                "class T(nn.Module):\n    def forward(self, x):\n        return {'x': x, 'n': 'text'}\n"
                "def build():\n    return T(), torch.ones(1)\n"
            ),
            UnsupportedModelError,
            "returns a str as 'n'",
        ),
        (
            (
                "class B(nn.Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"
                "def build():\n    return B(), torch.ones(1)\n"
            ),
            UnsupportedModelError,
            "torch.export cannot capture",
        ),
    ],
)
def test_what_cannot_be_taken_is_told_by_name(tmp_path, body, kind, said):
    with pytest.raises(kind) as caught:
        load(tmp_path, body)
    assert said in caught.value.message


def test_a_file_that_names_no_factory_lists_its_functions(tmp_path):
    with pytest.raises(ConfigError, match="defines: make") as caught:
        load(tmp_path, "def make():\n    return nn.ReLU()\n", "")
    assert "model.py:make" in caught.value.hint


@pytest.mark.parametrize(
    "inputs, outputs, said",
    [
        ([InputDeclaration("image")], [], "declares an input 'image', but model.py:build has: input"),
        ([InputDeclaration("input", (1, 4))], [], "has the shape [1, 3], but edgekit.yaml says [1, 4]"),
        ([InputDeclaration("input", dtype="int8")], [], "is float32, but edgekit.yaml says int8"),
        ([], [OutputDeclaration("a"), OutputDeclaration("b")], "declares 2 outputs"),
        ([], [OutputDeclaration("a", ("one",))], "has 2 classes, but edgekit.yaml gives 1 labels"),
    ],
)
def test_a_declaration_that_contradicts_the_source_is_refused(tmp_path, inputs, outputs, said):
    body = "def build():\n    return nn.Linear(3, 2), {'input': torch.ones(1, 3)}\n"
    with pytest.raises((ConfigError, UnsupportedModelError)) as caught:
        load(tmp_path, body, inputs=inputs, outputs=outputs)
    assert said in caught.value.message


@pytest.mark.parametrize(
    "source, parts",
    [
        ("model.py:build", ("model.py", "build")),
        ("C:\\nets\\net.onnx", ("C:\\nets\\net.onnx", "")),
        ("a:b/net.pt2", ("a:b/net.pt2", "")),
        ("model.py:", ("model.py:", "")),
    ],
)
def test_a_source_is_a_file_and_perhaps_a_name(source, parts):
    assert split_source(source) == parts


def test_a_frontend_is_chosen_by_the_files_name():
    assert type(frontend_for("model.py:build")) is TorchModule
    with pytest.raises(ConfigError, match=r"'net\.xyz' is not a source.*\.onnx.*\.pt2.*\.py"):
        frontend_for("net.xyz")
