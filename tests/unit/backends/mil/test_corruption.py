from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.backends._mil.evaluator import ReferenceEvaluator
from edgekit.core.errors import ConfigError, UnsupportedModelError, VerificationError
from tests.unit.backends.mil.programs import evaluate, snr_db, write_program

RNG = np.random.default_rng(11)
X = {"x": RNG.normal(size=(1, 4, 12, 12)).astype(np.float32)}
WEIGHT = RNG.normal(size=(8, 4, 3, 3)).astype(np.float32)
MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
CLOSE_DB = 100


def build(mb: Any, x: Any) -> Any:
    y = mb.conv(x=x, weight=WEIGHT, strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], name="first")
    return mb.sub(x=mb.sigmoid(x=y), y=y, name="difference")


def expected() -> np.ndarray:
    y = torch.nn.functional.conv2d(torch.from_numpy(X["x"]), torch.from_numpy(WEIGHT), stride=2, padding=1)
    return (torch.sigmoid(y) - y).numpy()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_program(tmp_path_factory.mktemp("whole") / "p.mlpackage", X, build)


@pytest.fixture
def package(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "p.mlpackage"))


def change_model(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change operations of the program, which are given by the name of their output."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    block = next(iter(model.mlProgram.functions["main"].block_specializations.values()))
    change({operation.outputs[0].name: operation for operation in block.operations})
    (package / MODEL).write_bytes(model.SerializeToString())


def test_the_whole_package_is_in_parity(package: Path):
    assert snr_db(expected(), evaluate(package, X)[0]) > CLOSE_DB


def test_one_flipped_byte_of_the_weights_is_caught(package: Path):
    data = bytearray((package / WEIGHTS).read_bytes())
    place = data.find(WEIGHT.tobytes()[:64]) + 4 * 17 + 3
    data[place] ^= 0x40
    (package / WEIGHTS).write_bytes(data)

    assert not snr_db(expected(), evaluate(package, X)[0]) > CLOSE_DB


def test_two_swapped_inputs_of_an_operation_are_caught(package: Path):
    def swap(operations: dict[str, Any]) -> None:
        inputs = operations["difference"].inputs
        x, y = inputs["x"].arguments[0].name, inputs["y"].arguments[0].name
        inputs["x"].arguments[0].name, inputs["y"].arguments[0].name = y, x

    change_model(package, swap)

    assert snr_db(expected(), evaluate(package, X)[0]) < CLOSE_DB


def constant(operations: dict[str, Any], of: str, name: str) -> Any:
    source = operations[operations[of].inputs[name].arguments[0].name]
    return source.attributes["val"].immediateValue.tensor.ints.values


def test_a_changed_stride_is_caught_by_the_shape(package: Path):
    def stride(operations: dict[str, Any]) -> None:
        constant(operations, "first", "strides")[0] = 1

    change_model(package, stride)

    with pytest.raises(VerificationError, match=r"conv 'first' gives the shape \(1, 8, 12, 6\); .* \(1, 8, 6, 6\)"):
        evaluate(package, X)


def test_a_changed_padding_of_the_same_shape_is_caught(package: Path):
    def pad(operations: dict[str, Any]) -> None:
        values = constant(operations, "first", "pad")
        values[0], values[1] = 0, 2

    change_model(package, pad)

    assert snr_db(expected(), evaluate(package, X)[0]) < CLOSE_DB


def test_an_unknown_operator_is_refused_by_name(package: Path):
    def rename(operations: dict[str, Any]) -> None:
        operations["difference"].type = "frobnicate"

    change_model(package, rename)

    with pytest.raises(UnsupportedModelError, match="does not know these Core ML operators: frobnicate"):
        ReferenceEvaluator(package)


def test_an_unknown_mode_of_a_known_operator_is_refused(package: Path):
    def mode(operations: dict[str, Any]) -> None:
        source = operations[operations["first"].inputs["pad_type"].arguments[0].name]
        source.attributes["val"].immediateValue.tensor.strings.values[0] = "sideways"

    change_model(package, mode)

    with pytest.raises(UnsupportedModelError, match="conv 'first' asks for padding 'sideways'"):
        evaluate(package, X)


@pytest.mark.parametrize(
    "piece, words",
    [
        ("Manifest.json", "lacks its Manifest.json"),
        (str(MODEL), "lacks its model 'com.apple.CoreML/model.mlmodel'"),
        (str(WEIGHTS), "lacks its weight file 'weight.bin'"),
    ],
)
def test_a_missing_piece_is_named(package: Path, piece: str, words: str):
    (package / piece).unlink()
    with pytest.raises(ConfigError, match=words):
        ReferenceEvaluator(package)


def test_a_weight_file_that_is_cut_short_is_named(package: Path):
    data = (package / WEIGHTS).read_bytes()
    (package / WEIGHTS).write_bytes(data[:-40])
    with pytest.raises(ConfigError, match="weight file 'weight.bin' is damaged"):
        ReferenceEvaluator(package)


@pytest.mark.parametrize("share", [0.999, 0.7, 0.3])
def test_a_model_file_that_is_cut_short_is_named(package: Path, share: float):
    data = (package / MODEL).read_bytes()
    (package / MODEL).write_bytes(data[: int(len(data) * share)])
    with pytest.raises((ConfigError, UnsupportedModelError), match=r"damaged|no ML Program"):
        ReferenceEvaluator(package)


def test_a_manifest_that_points_out_of_the_package_is_refused(package: Path):
    manifest = package / "Manifest.json"
    manifest.write_text(manifest.read_text().replace("com.apple.CoreML/model.mlmodel", "../../secret"))
    with pytest.raises(ConfigError, match="leaves the folder"):
        ReferenceEvaluator(package)


def test_no_package_at_all_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="There is no Core ML package at"):
        ReferenceEvaluator(tmp_path / "nowhere.mlpackage")


def test_inputs_are_checked(package: Path):
    evaluator = ReferenceEvaluator(package)
    with pytest.raises(ConfigError, match="The input 'x' of the Core ML model is missing"):
        evaluator.run({})
    with pytest.raises(ConfigError, match="has no input 'y'.*\n?It has: x"):
        evaluator.run({**X, "y": X["x"]})
    with pytest.raises(ConfigError, match=r"has shape \(1, 4, 12, 11\); the model takes fp32\[1, 4, 12, 12\]"):
        evaluator.run({"x": X["x"][..., :-1]})


def test_intermediate_values_are_kept_when_told(package: Path):
    evaluator = ReferenceEvaluator(package)
    assert evaluator.intermediate_names()[0] == "first"

    evaluator.run(X, keep=["first"])
    convolved = torch.nn.functional.conv2d(torch.from_numpy(X["x"]), torch.from_numpy(WEIGHT), stride=2, padding=1)

    np.testing.assert_allclose(evaluator.intermediates(["first"])["first"], convolved.numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="The value 'difference' was not kept"):
        evaluator.intermediates(["difference"])
    with pytest.raises(ConfigError, match="has no value 'nothing'"):
        evaluator.run(X, keep=["nothing"])


def test_values_are_rounded_to_float16_where_the_program_says_so(tmp_path: Path):
    import coremltools as ct

    path = write_program(tmp_path / "half.mlpackage", X, build, passes=True, precision=ct.precision.FLOAT16)

    noise = snr_db(expected(), evaluate(path, X)[0])
    assert 55 < noise < 80


def test_a_float16_overflow_is_seen(tmp_path: Path):
    big = {"x": np.full((2, 2), 60000, np.float16)}
    path = write_program(tmp_path / "big.mlpackage", big, lambda mb, x: mb.add(x=x, y=x))
    assert np.isinf(evaluate(path, big)[0]).all()
