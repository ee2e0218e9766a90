from __future__ import annotations

import numpy as np
import pytest

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.model import TensorSpec
from edgekit.core.progress import Silent
from edgekit.flow.cache import Cache
from edgekit.flow.evaluate import (
    GOLDEN_EXAMPLES,
    InputFiles,
    array_file,
    arrays_in,
    as_taken,
    golden_inputs,
    reference_outputs,
    run_batches,
)
from edgekit.frontends.base import InputDeclaration, SourceRequest
from edgekit.frontends.torch_module import TorchModule
from tests.unit.flow import kit

MODEL = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, ids, scale):
            return {"sum": ids.sum(1) * scale[:, 0], "rows": ids.float()}

    class Boxes(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 2), x.sum()

    def batched():
        return Net(), (torch.zeros(4, 3, dtype=torch.int64), torch.ones(4, 1))

    def boxes():
        return Boxes(), (torch.zeros(1, 6),)

    def many_boxes():
        return Boxes(), (torch.zeros(2, 6),)
    """


@pytest.fixture
def model_of(tmp_path):
    kit.write(tmp_path, {"model.py": MODEL})
    return lambda name: TorchModule().load(SourceRequest(f"model.py:{name}", tmp_path, "net"))


@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_a_last_batch_that_is_not_full_is_filled_up_and_cut(model_of, count):
    ids, scale = np.arange(count * 3).reshape(count, 3), np.full((count, 1), 2.0, np.float32)
    outputs = run_batches(model_of("batched"), {"ids": ids, "scale": scale}, Silent())
    assert outputs["sum"].tolist() == (ids.sum(1) * 2.0).tolist()
    assert outputs["rows"].shape == (count, 3)


def test_outputs_without_a_batch_axis_keep_all_their_rows_where_the_batch_is_one(model_of):
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    outputs = run_batches(model_of("boxes"), {"x": x}, Silent())
    assert outputs["output_0"].tolist() == x.reshape(6, 2).tolist()
    assert outputs["output_1"].tolist() == [15.0, 51.0]


def test_outputs_without_a_batch_axis_are_refused_by_name_where_the_batch_is_larger(model_of):
    with pytest.raises(UnsupportedModelError, match=r"'output_0' has the shape \[6, 2\], but the batch is 2"):
        run_batches(model_of("many_boxes"), {"x": np.zeros((3, 6), np.float32)}, Silent())


@pytest.mark.parametrize("name", ["output", "/head/Gemm_output_0", "Identity:0", "../up", "a%2Fb", "ü"])
def test_any_name_can_name_a_file(tmp_path, name):
    np.save(tmp_path / array_file(name), np.zeros(1))
    assert list(arrays_in(tmp_path)) == [name]
    assert next(iter(arrays_in(tmp_path).values())).parent == tmp_path


def test_outputs_are_computed_once_for_a_model_and_its_inputs(model_of, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1, 6), np.float32))
    asked = []

    def model():
        asked.append(1)
        return model_of("boxes")

    for key in ("a", "a", "b"):
        files = reference_outputs(
            "digest", model, InputFiles("golden", {"x": tmp_path / "x.npy"}, key), Cache(), Silent()
        )
        assert np.load(files["output_1"]).tolist() == [6.0]
    assert len(asked) == 2


def golden(spec, example):
    files = golden_inputs((spec,), lambda: {spec.name: example}, "digest", None, Cache())
    return np.load(files.files[spec.name])


def test_golden_inputs_are_made_up_within_the_examples_range():
    example = np.array([[0.0, 4.0]], np.float32)
    made = golden(TensorSpec("x", (1, 2)), example)
    assert made.shape == (GOLDEN_EXAMPLES, 2)
    assert made.dtype == np.float32
    assert made[0].tolist() == [0.0, 4.0]
    assert 0 <= made.min() <= made.max() <= 4
    assert len(np.unique(made)) > GOLDEN_EXAMPLES


def test_golden_inputs_keep_a_declared_range_and_integers(tmp_path):
    ids = golden(TensorSpec("ids", (1, 5), "int64", value_range=(3, 9)), np.full((1, 5), 3))
    assert ids.dtype == np.int64
    assert set(ids.ravel()) <= set(range(3, 10))
    assert len(set(ids.ravel())) > 1


def test_a_batch_that_is_larger_than_the_golden_set_stays_whole():
    assert golden(TensorSpec("x", (12, 1)), np.zeros((12, 1), np.float32)).shape == (12, 1)


def test_golden_inputs_come_from_the_validation_split_where_there_is_one(tasked):
    builder = kit.builder_in(tasked)
    made = golden_inputs(builder.source.info.inputs, dict, "digest", builder.data, Cache())
    split = np.load(builder.data.inputs("validation")["input"])
    assert np.array_equal(np.load(made.files["input"]), split[:GOLDEN_EXAMPLES])


def test_declared_ranges_reach_the_specs(tmp_path):
    kit.write(tmp_path, {"model.py": MODEL})
    declared = (InputDeclaration("x", range=(0, 255), layout="NC"),)
    model = TorchModule().load(SourceRequest("model.py:boxes", tmp_path, "net", declared))
    assert (model.inputs[0].value_range, model.inputs[0].layout) == ((0, 255), "NC")


def test_integers_are_given_in_the_artifacts_type(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([[1, 2]]))
    np.save(tmp_path / "x.npy", np.ones((1, 2), np.float32))
    inputs = InputFiles("golden", {"ids": tmp_path / "ids.npy", "x": tmp_path / "x.npy"}, "key")
    taken = as_taken(inputs, (TensorSpec("ids", (1, 2), "int32"), TensorSpec("x", (1, 2))), Cache())
    assert np.load(taken.files["ids"]).dtype == np.int32
    assert np.load(taken.files["ids"]).tolist() == [[1, 2]]
    assert taken.files["x"] == tmp_path / "x.npy"
    assert taken.key != inputs.key
    assert as_taken(inputs, (TensorSpec("ids", (1, 2), "int64"), TensorSpec("x", (1, 2), "int8")), Cache()) is inputs


def test_an_integer_that_does_not_fit_the_artifacts_type_is_refused(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([[1, 2**40]]))
    inputs = InputFiles("golden", {"ids": tmp_path / "ids.npy"}, "key")
    with pytest.raises(ConfigError, match="values from 1 to 1099511627776.*takes int32"):
        as_taken(inputs, (TensorSpec("ids", (1, 2), "int32"),), Cache())
