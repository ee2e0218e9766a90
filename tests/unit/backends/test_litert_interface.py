from __future__ import annotations

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit.backends._litert.metadata import TensorMetadata, read_metadata
from edgekit.backends.litert import LiteRt
from edgekit.core.errors import BackendError, UnsupportedModelError
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import Normalize, TensorSpec
from tests.unit.backends import litert_kit as kit

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LABELS = ("cat", "dog", "große Maus")
IMAGE = TensorSpec("image", (1, 3, 8, 6), layout="NCHW", normalize=Normalize((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)))


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.last = torch.nn.Linear(4 * 6 * 4, 3)

    def forward(self, image: torch.Tensor, shift: torch.Tensor):
        hidden = torch.relu(self.conv(image))
        return torch.softmax(self.last(hidden.flatten(1)) + shift, -1)


def inputs(count: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "image": generator.standard_normal((count, 3, 8, 6)).astype(np.float32),
        "shift": generator.standard_normal((count, 3)).astype(np.float32),
    }


def described() -> dict[str, tuple[TensorSpec, ...]]:
    return {
        "input_specs": (IMAGE, TensorSpec("shift", (1, 3), value_range=(-1.0, 1.0))),
        "output_specs": (TensorSpec("scores", (1, 3), labels=LABELS),),
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return kit.compiled(tmp_path_factory.mktemp("plain"), Small(), inputs())


@pytest.fixture(scope="module")
def spoken_of(tmp_path_factory):
    return kit.compiled(tmp_path_factory.mktemp("described"), Small(), inputs(), **described())


class TestMetadata:
    def test_what_the_specs_say_is_read_back_from_the_file(self, spoken_of):
        found = read_metadata(spoken_of.main)

        assert (found.name, found.description) == ("net", "Made by edgekit.")
        by_name = {tensor.name: tensor for tensor in found.inputs}
        assert by_name["image"] == TensorMetadata("image", normalize=IMAGE.normalize, image=(6, 8, 3))
        assert by_name["shift"] == TensorMetadata("shift", value_range=(-1.0, 1.0))
        assert found.outputs == (TensorMetadata("scores", labels=LABELS),)

    def test_inputs_stand_in_the_order_of_the_file(self, spoken_of):
        model = kit.model_of(spoken_of)
        main = model.subgraphs[0]
        shapes = [tuple(int(n) for n in main.tensors[index].shape) for index in main.inputs]
        expected = {"image": (1, 3, 8, 6), "shift": (1, 3)}

        assert [expected[tensor.name] for tensor in read_metadata(spoken_of.main).inputs] == shapes

    def test_labels_are_a_file_in_a_zip_archive_behind_the_model(self, spoken_of):
        with zipfile.ZipFile(spoken_of.main) as archive:
            assert archive.namelist() == ["scores_labels.txt"]
            assert archive.read("scores_labels.txt").decode().splitlines() == list(LABELS)

    def test_outputs_are_the_same_to_the_bit(self, plain, spoken_of):
        first = kit.run(kit.driver(plain), inputs())["y0"]
        second = kit.run(kit.driver(spoken_of), inputs())["scores"]
        assert first.tobytes() == second.tobytes()

    def test_a_file_of_which_nothing_is_known_has_none(self, plain):
        assert read_metadata(plain.main) is None

    def test_labels_that_were_cut_off_are_missed_by_name(self, spoken_of, tmp_path):
        whole = spoken_of.main.read_bytes()
        cut = tmp_path / "cut.tflite"
        cut.write_bytes(whole[: whole.rindex(b"PK\x03\x04")])
        with pytest.raises(BackendError, match=r"'cut\.tflite' names the file 'scores_labels\.txt'"):
            read_metadata(cut)

    def test_the_same_model_gives_the_same_bytes(self, spoken_of, tmp_path):
        again = kit.compiled(tmp_path, Small(), inputs(), **described())
        assert again.main.read_bytes() == spoken_of.main.read_bytes()


class TestLayout:
    def test_an_input_is_taken_in_the_layout_asked_for_and_data_stay_as_they_are(self, tmp_path):
        lowering = Lowering(layout={"image": "NHWC"})
        artifact = kit.compiled(tmp_path, Small(), inputs(), lowering=lowering, **described())

        image = artifact.manifest.inputs[0]
        assert (image.shape, image.layout) == ((1, 8, 6, 3), "NHWC")
        assert artifact.manifest.changed == ("the input 'image' is NHWC [1, 8, 6, 3] in the artifact; it was NCHW",)
        assert kit.operators(artifact)["TRANSPOSE"] <= 1  # none in front of the convolution; one before the flatten
        assert read_metadata(artifact.main).inputs[0].image == (6, 8, 3)
        made = kit.driver(artifact)
        shapes = {spec["name"]: spec["shape"] for spec in made.inputs}
        assert shapes["image"] == [1, 3, 8, 6]
        np.testing.assert_allclose(kit.run(made, inputs())["scores"], kit.reference(Small(), inputs())[0], atol=1e-5)

    def test_the_models_own_layout_changes_nothing(self, tmp_path):
        lowering = Lowering(layout={"image": "NCHW"})
        artifact = kit.compiled(tmp_path, Small(), inputs(), lowering=lowering, **described())
        assert artifact.manifest.changed == ()
        assert artifact.manifest.inputs[0] == IMAGE
        assert "permute" not in LiteRt().run_plan(artifact.manifest, kit.HERE, []).options

    def test_an_input_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(UnsupportedModelError, match=r"`layout` names 'picture'") as caught:
            kit.compiled(tmp_path, Small(), inputs(), lowering=Lowering(layout={"picture": "NHWC"}))
        assert "image, shift" in caught.value.hint

    def test_an_input_that_is_no_image_is_refused(self, tmp_path):
        with pytest.raises(UnsupportedModelError, match=r"'shift', which is NCHW of shape \[1, 3\]"):
            kit.compiled(tmp_path, Small(), inputs(), lowering=Lowering(layout={"shift": "NHWC"}))


class TestIntegerInterface:
    @pytest.fixture(scope="class")
    def whole(self, tmp_path_factory):
        lowering = Lowering(Quantize("static_wi8_ai8", io="int8", calibration=32), layout={"image": "NHWC"})
        return kit.compiled(
            tmp_path_factory.mktemp("int8"),
            Small(),
            inputs(),
            lowering=lowering,
            calibration=inputs(40, seed=1),
            **described(),
        )

    def test_the_manifest_says_what_the_file_takes(self, whole):
        assert [spec.dtype for spec in (*whole.manifest.inputs, *whole.manifest.outputs)] == ["int8"] * 3
        assert "the input 'image' is int8 in the artifact; it was float32" in whole.manifest.changed

    def test_the_driver_takes_and_gives_floats_as_the_runtime_itself_would(self, whole, tmp_path):
        made = kit.driver(whole)
        assert [(spec["dtype"], spec["shape"]) for spec in made.inputs if spec["name"] == "image"] == [
            ("float32", [1, 3, 8, 6])
        ]
        data = inputs(20, seed=2)
        found = np.concatenate(
            [kit.run(made, {name: value[n : n + 1] for name, value in data.items()})["scores"] for n in range(20)]
        )
        lowering = replace(
            whole.manifest.lowering, quantize=replace(whole.manifest.lowering.quantize, io="float32"), layout={}
        )
        floats = kit.driver(
            kit.compiled(tmp_path, Small(), inputs(), lowering=lowering, calibration=inputs(40, seed=1), **described())
        )
        want = np.concatenate(
            [kit.run(floats, {name: value[n : n + 1] for name, value in data.items()})["scores"] for n in range(20)]
        )
        # The runtime's own conversion at the file's edges is the measure of the driver's.
        np.testing.assert_allclose(found, want, atol=1e-6)
        assert np.corrcoef(found.ravel(), kit.reference(Small(), data)[0].ravel())[0, 1] > 0.85
        assert [spec.dtype for spec in LiteRt().driven(whole).manifest.outputs] == ["float32"]

    def test_values_outside_the_range_are_clipped_not_wrapped(self, whole):
        made = kit.driver(whole)
        made.prepare({"image": np.full((1, 3, 8, 6), 1e6, np.float32), "shift": np.zeros((1, 3), np.float32)})
        index = made._in["image"]
        assert int(made._interpreter.get_tensor(index).min()) == 127

    def test_an_unsigned_interface_computes_the_same(self, whole, tmp_path):
        lowering = replace(whole.manifest.lowering, quantize=replace(whole.manifest.lowering.quantize, io="uint8"))
        artifact = kit.compiled(
            tmp_path, Small(), inputs(), lowering=lowering, calibration=inputs(40, seed=1), **described()
        )
        assert {spec.dtype for spec in (*artifact.manifest.inputs, *artifact.manifest.outputs)} == {"uint8"}
        for seed in (3, 4):
            signed, unsigned = (kit.run(kit.driver(one), inputs(seed=seed))["scores"] for one in (whole, artifact))
            np.testing.assert_array_equal(unsigned, signed)

    def test_an_output_that_is_whole_numbers_already_is_refused(self):
        lowering = Lowering(Quantize("static_wi8_ai8", io="int8"))
        issues = LiteRt().unsupported("pt2", (TensorSpec("mask", (1, 4), "uint8"),), lowering, kit.HERE)
        assert [issue.reason for issue in issues] == ["the output 'mask' is uint8 in the model already"]

    def test_without_the_option_the_driver_shows_the_integers(self, whole):
        made = kit.driver(whole, float_io=False)
        assert {spec["dtype"] for spec in (*made.inputs, *made.outputs)} == {"int8"}


def test_a_64_bit_input_is_said_to_be_narrowed(tmp_path):
    class Lookup(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(5, 4)

        def forward(self, ids):
            return self.table(ids)

    artifact = kit.compiled(tmp_path, Lookup(), {"ids": np.array([[1, 2, 3]])})
    assert artifact.manifest.inputs[0].dtype == "int32"
    assert artifact.manifest.changed == ("the input 'ids' is int32 in the artifact; it was int64",)


class TestConstants:
    def test_equal_constants_are_stored_once(self, tmp_path):
        class Twice(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.left, self.right = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
                self.right.load_state_dict(self.left.state_dict())

            def forward(self, x):
                return self.right(torch.relu(self.left(x)))

        module = Twice()
        x = {"x": np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)}
        artifact = kit.compiled(tmp_path, module, x)

        # Half the weights and a small graph.
        assert artifact.bytes < kit.weight_bytes(module) / 2 + 3000
        np.testing.assert_allclose(kit.run(kit.driver(artifact), x)["y0"], kit.reference(module, x)[0], atol=1e-5)

    def test_every_constant_lies_on_a_multiple_of_sixteen(self, plain):
        from ai_edge_litert import schema_py_generated as schema

        content = plain.main.read_bytes()
        model = schema.Model.GetRootAs(content)
        places = []
        for index in range(model.BuffersLength()):
            buffer = model.Buffers(index)
            if not buffer.DataIsNone():
                table = buffer._tab
                places.append(table.Vector(table.Offset(4)))
        assert places
        assert all(place % 16 == 0 for place in places)

    def test_a_file_that_is_none_is_refused(self):
        from edgekit.backends._litert import flatbuffer

        with pytest.raises(BackendError, match="identifier is missing"):
            flatbuffer.read(b"\x00" * 64)


def test_other_backends_refuse_a_layout_before_any_work():
    from edgekit.backends.openvino import OpenVino

    target = replace(kit.HERE, backends=("openvino",))
    issues = OpenVino().unsupported("pt2", (), Lowering(layout={"image": "NHWC"}), target)
    assert [issue.what for issue in issues] == ["layout: image"]
