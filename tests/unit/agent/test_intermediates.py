"""What the drivers show of a model's inner values, each in the worker's real process."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.unit.agent.kit import AGENT, workload
from tests.unit.agent.models import WEIGHTS, onnx_model, openvino_model, tflite_model
from tests.unit.agent.test_drivers import work

MAKERS = {"onnxruntime": onnx_model, "openvino": openvino_model, "litert": tflite_model}
X = np.arange(12, dtype=np.float32).reshape(3, 4)


def task_for(driver, main, bindings, folder):
    np.save(folder / "x.npy", X)
    return workload("intermediates") | {
        "driver": str(AGENT / f"device_{driver}.py"),
        "path": str(folder / main),
        "bindings": bindings,
        "options": {},
        "inputs": {"x": str(folder / "x.npy")},
        "out": str(folder / "out"),
    }


def tensors_in(folder):
    with np.load(folder / "out" / "intermediates.npz") as archive:
        return {entry["name"]: archive[entry["file"]] for entry in json.loads(archive["index.json"])}


@pytest.mark.parametrize("driver", sorted(MAKERS))
def test_every_value_is_given_for_every_call(driver, tmp_path):
    main, bindings = MAKERS[driver](tmp_path, batch=2)
    answer, _ = work(task_for(driver, main, bindings, tmp_path), tmp_path / "home")
    assert answer["run"]["examples"] == 3
    (value,) = tensors_in(tmp_path).values()
    assert value.shape == (2, 2, 3)
    assert np.allclose(value.reshape(4, 3)[:3], X @ WEIGHTS, atol=1e-5)


@pytest.fixture
def deep_onnx(tmp_path):
    """Two products with a branch, an integer and an optional output between them."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["inner"]),
        helper.make_node("MaxPool", ["cube"], ["pooled", "where"], kernel_shape=[1, 1]),
        helper.make_node("Unsqueeze", ["inner", "axes"], ["cube"]),
        helper.make_node("Relu", ["inner"], ["y"]),
    ]
    graph = helper.make_graph(
        [nodes[0], nodes[2], nodes[1], nodes[3]],
        "deep",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(np.array([0, 1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    return task_for("onnxruntime", "model.onnx", {}, tmp_path)


def test_onnx_runtime_shows_values_that_are_no_outputs_of_the_file(deep_onnx, tmp_path):
    work(deep_onnx, tmp_path / "home")
    found = tensors_in(tmp_path)
    assert list(found) == ["inner", "cube", "pooled", "y"]
    assert np.allclose(found["inner"][:, 0], X @ WEIGHTS, atol=1e-5)


def test_a_file_in_ort_format_is_refused_with_the_way_out(deep_onnx, tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(deep_onnx["path"], options, providers=["CPUExecutionProvider"])
    answer, _ = work(deep_onnx | {"path": str(tmp_path / "model.ort")}, tmp_path / "home")
    assert answer["error"]["kind"] == "model"
    assert "compile it with `format: onnx`" in answer["error"]["message"]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_an_onnx_file_that_is_cut_off_is_an_error_of_the_model(deep_onnx, tmp_path, cut):
    data = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(data[:-cut])
    answer, _ = work(deep_onnx, tmp_path / "home")
    assert answer["error"]["kind"] == "model"
