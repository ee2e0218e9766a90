from __future__ import annotations

import gc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.frontends.base import InputDeclaration, OutputDeclaration, SourceRequest
from edgekit.frontends.onnx import Onnx


def saved(folder, shape, *, ids=None, out=None, external=False, listed=False):
    """`y = x @ w` (and `ids` passed through as `same`), with the shapes given."""
    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, out or [shape[0], 4])]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if ids is not None:
        inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ids))
        outputs.append(helper.make_tensor_value_info("same", TensorProto.INT64, ids))
        nodes.append(helper.make_node("Identity", ["ids"], ["same"]))
    if listed:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx", save_as_external_data=external, location="net.bin", size_threshold=0)


def load(folder, inputs=(), outputs=()):
    return Onnx().load(SourceRequest("net.onnx", folder, "net", tuple(inputs), tuple(outputs)))


def test_a_static_graph_is_read_as_it_is(tmp_path):
    saved(tmp_path, [2, 3], ids=[2, 5])
    model = load(tmp_path)
    assert [(s.name, s.shape, s.dtype) for s in model.inputs] == [("x", (2, 3), "float32"), ("ids", (2, 5), "int64")]
    assert [(s.name, s.shape, s.dtype) for s in model.outputs] == [("y", (2, 4), "float32"), ("same", (2, 5), "int64")]
    assert model.program.path == tmp_path / "net.onnx"
    x = np.ones((2, 3), np.float32)
    got = model.program.run({"x": x, "ids": np.zeros((2, 5), np.int64)})
    assert got["y"].tolist() == (x @ np.arange(12).reshape(3, 4)).tolist()


def test_weights_that_old_files_list_as_inputs_are_none(tmp_path):
    saved(tmp_path, [1, 3], listed=True)
    assert [spec.name for spec in load(tmp_path).inputs] == ["x"]


@pytest.mark.parametrize("size", ["batch", None, 0, -1])
def test_a_dynamic_size_needs_a_declaration(tmp_path, size):
    saved(tmp_path, [size, 3], out=["b", 4])
    with pytest.raises(UnsupportedModelError, match="'x' of net.onnx has the dynamic shape") as caught:
        load(tmp_path)
    assert "name: x" in caught.value.hint
    model = load(tmp_path, [InputDeclaration("x", (2, 3))])
    assert (model.inputs[0].shape, model.outputs[0].shape) == ((2, 3), (2, 4))


def test_a_declared_size_is_pinned_in_what_backends_read(tmp_path):
    saved(tmp_path, ["batch", 3])
    digests = set()
    for batch in (1, 2, 2):
        model = load(tmp_path, [InputDeclaration("x", (batch, 3))])
        model.program.save(tmp_path / "pinned.onnx")
        pinned = onnx.load(tmp_path / "pinned.onnx").graph.input[0].type.tensor_type.shape.dim
        assert [dim.dim_value for dim in pinned] == [batch, 3]
        digests.add(model.digest)
    assert len(digests) == 2
    folder = model.program.path.parent
    assert folder.exists()
    del model
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 1)])
def test_a_declaration_that_contradicts_the_graph_is_refused(tmp_path, shape):
    saved(tmp_path, [2, 3])
    with pytest.raises(UnsupportedModelError, match=r"has the shape \[2, 3\], but edgekit\.yaml says"):
        load(tmp_path, [InputDeclaration("x", shape)])


def test_a_static_size_with_a_dynamic_one_is_not_overridden(tmp_path):
    saved(tmp_path, ["batch", 3])
    with pytest.raises(UnsupportedModelError, match="but edgekit.yaml says"):
        load(tmp_path, [InputDeclaration("x", (2, 5))])


def test_weights_in_external_files_count_and_come_along(tmp_path):
    saved(tmp_path, [1, 3], external=True)
    model = load(tmp_path)
    assert model.program.parameter_count() == 12
    (tmp_path / "elsewhere").mkdir()
    model.program.save(tmp_path / "elsewhere" / "net.onnx")
    alone = load(tmp_path / "elsewhere")
    assert np.array_equal(alone.program.run(model.example_inputs)["y"], model.program.run(model.example_inputs)["y"])
    data = bytearray((tmp_path / "net.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "net.bin").write_bytes(data)
    assert load(tmp_path).digest != model.digest


@pytest.mark.parametrize("external", [False, True])
def test_a_file_cut_in_half_is_said_to_be(tmp_path, external):
    saved(tmp_path, [1, 3], external=external)
    path = tmp_path / ("net.bin" if external else "net.onnx")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert path.name in caught.value.message


def test_a_missing_and_a_foreign_file_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="There is no file"):
        load(tmp_path)
    (tmp_path / "net.onnx").write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match="net.onnx"):
        load(tmp_path)


def test_outputs_keep_the_graphs_names(tmp_path):
    saved(tmp_path, [1, 3])
    assert load(tmp_path, outputs=[OutputDeclaration("y", tuple("abcd"))]).outputs[0].labels == tuple("abcd")
    with pytest.raises(ConfigError, match="names an output 'scores', but net.onnx has: y"):
        load(tmp_path, outputs=[OutputDeclaration("scores")])


def test_a_graph_that_the_runtime_cannot_run_is_told(tmp_path):
    saved(tmp_path, [1, 3])
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises((UnsupportedModelError, ConfigError)) as caught:
        load(tmp_path)
    assert "MatMul" in caught.value.message or "com.example" in caught.value.message
