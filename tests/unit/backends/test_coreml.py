from __future__ import annotations

import gc
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.backends._mil.driver import RUNTIME, Driver
from edgekit.backends._mil.evaluator import ReferenceEvaluator
from edgekit.backends._mil.package import read_package
from edgekit.backends.coreml import CoreMl, pixel_scale
from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import Normalize, TensorSpec
from tests.unit.backends.mil import nets
from tests.unit.backends.mil.compiled import compile_into, request_for, target

# coremltools leaves its temporary folders to the garbage collector, which Python warns of; none of it is ours.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FLOAT32 = target(precision="float32")


@pytest.fixture(scope="module", autouse=True)
def collected():
    # What a refused conversion leaves goes here, and not at the end of the session, where no filter holds any more.
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


class Scores(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, 2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(196, 3),
            torch.nn.Softmax(-1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def scores() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(1)
    return Scores().eval(), (torch.randn(1, 3, 16, 16),)


IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class TestInterface:
    def test_names_are_ours_and_whole_numbers_become_32_bits_wide(self, tmp_path: Path):
        module, tensors = nets.make("transformer")
        request, _, _ = request_for(tmp_path, module, tensors, FLOAT32, names=("ids", "mask"))

        artifact = compile_into(tmp_path, request)
        package = read_package(artifact.main)

        assert [(feature.name, feature.dtype) for feature in package.inputs] == [("ids", "int32"), ("mask", "int32")]
        assert [(feature.name, feature.dtype) for feature in package.outputs] == [
            ("out_0", "float32"),
            ("out_1", "float32"),
        ]
        assert [spec.dtype for spec in artifact.manifest.inputs] == ["int32", "int32"]
        assert "the input 'ids' is int32 in the artifact; it was int64" in artifact.manifest.changed
        assert artifact.manifest.bindings == {}

    def test_a_name_that_core_ml_does_not_take_is_bound(self, tmp_path: Path):
        module, tensors = scores()
        request, inputs, expected = request_for(tmp_path, module, tensors, FLOAT32, names=("pixel.values",))

        artifact = compile_into(tmp_path, request)
        driver = Driver(artifact.main, 1, artifact.manifest.bindings, {})
        driver.load()
        driver.prepare(inputs)
        driver.invoke()

        assert artifact.manifest.bindings == {"inputs.pixel.values": "pixel_values"}
        assert driver.inputs == [{"name": "pixel.values", "shape": [1, 3, 16, 16], "dtype": "float32"}]
        np.testing.assert_allclose(driver.results()["out_0"], expected["out_0"], atol=1e-6)

    def test_floats_stay_float32_outside_when_it_computes_in_float16(self, tmp_path: Path):
        module, tensors = scores()
        request, _, _ = request_for(tmp_path, module, tensors, target())

        artifact = compile_into(tmp_path, request)
        package = read_package(artifact.main)

        assert {feature.dtype for feature in (*package.inputs, *package.outputs)} == {"float32"}
        assert any("computes in float16" in sentence for sentence in artifact.manifest.changed)

    def test_truth_values_go_in_and_come_out_as_whole_numbers(self, tmp_path: Path):
        class Both(torch.nn.Module):
            def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return torch.where(keep, x, -x), keep & (x > 0)

        tensors = (torch.randn(2, 5), torch.tensor([[True, False, True, True, False]] * 2))
        request, inputs, expected = request_for(tmp_path, Both().eval(), tensors, FLOAT32)

        artifact = compile_into(tmp_path, request)
        found = ReferenceEvaluator(artifact.main).run({"in_0": inputs["in_0"], "in_1": inputs["in_1"].astype(np.int32)})

        assert artifact.manifest.outputs[1].dtype == "int32"
        np.testing.assert_array_equal(found["out_0"], expected["out_0"])
        np.testing.assert_array_equal(found["out_1"], expected["out_1"])

    @pytest.mark.parametrize("normalize", [IMAGENET, Normalize((127.5,), (127.5,))], ids=["by channel", "for all"])
    def test_an_image_input_takes_raw_pixels(self, tmp_path: Path, normalize: Normalize):
        module, tensors = scores()
        to = target(precision="float32", image_input=True)
        specs = {"in_0": {"layout": "NCHW", "normalize": normalize}}
        request, _, _ = request_for(tmp_path, module, tensors, to, specs=specs)
        pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16)).astype(np.uint8)
        unit = 255 if normalize is IMAGENET else 1
        mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (normalize.mean, normalize.std))
        with torch.no_grad():
            expected = module((torch.from_numpy(pixels).float() / unit - mean) / std)

        artifact = compile_into(tmp_path, request)
        evaluator = ReferenceEvaluator(artifact.main)

        assert evaluator.inputs[0].kind == "image"
        assert artifact.manifest.inputs[0].dtype == "uint8"
        assert artifact.manifest.inputs[0].normalize is None
        np.testing.assert_allclose(evaluator.run({"in_0": pixels})["out_0"], expected.numpy(), atol=1e-5)

    def test_a_normalized_input_stays_a_tensor_unless_an_image_is_asked_for(self, tmp_path: Path):
        module, tensors = scores()
        specs = {"in_0": {"layout": "NCHW", "normalize": IMAGENET}}
        request, _, _ = request_for(tmp_path, module, tensors, FLOAT32, specs=specs)

        package = read_package(compile_into(tmp_path, request).main)

        assert package.inputs[0].kind == "array"
        assert json.loads(package.metadata["edgekit.tensor.in_0"])["normalize"]["mean"] == [0.485, 0.456, 0.406]

    def test_a_classifier_gives_a_label_and_the_value_of_each(self, tmp_path: Path):
        module, tensors = scores()
        specs = {"out_0": {"labels": ("cat", "dog", "fish")}}
        to = target(precision="float32", classifier=True)
        request, inputs, expected = request_for(tmp_path, module, tensors, to, specs=specs)

        artifact = compile_into(tmp_path, request)
        evaluator = ReferenceEvaluator(artifact.main)
        found = evaluator.run(inputs)
        driver = Driver(artifact.main, 1, artifact.manifest.bindings, {})
        driver.load()
        driver.prepare(inputs)
        driver.invoke()

        assert str(found["classLabel"]) == ("cat", "dog", "fish")[int(expected["out_0"].argmax())]
        np.testing.assert_allclose(driver.results()["out_0"], expected["out_0"], atol=1e-6)
        assert "classify" in evaluator.operators()

    def test_a_classifier_without_labels_is_refused(self, tmp_path: Path):
        module, tensors = scores()
        request, _, _ = request_for(tmp_path, module, tensors, target(classifier=True))
        with pytest.raises(UnsupportedModelError, match="wants one output with labels; the model has 0"):
            compile_into(tmp_path, request)


def test_pixels_are_divided_by_255_where_the_statistics_were_of_such():
    spec = TensorSpec("x", (1, 3, 8, 8), layout="NCHW", normalize=Normalize((0.5,), (0.25,)))
    assert pixel_scale(spec) == ((4 / 255,) * 3, (-2.0,) * 3)
    assert pixel_scale(replace(spec, normalize=Normalize((128.0,), (64.0,)))) == ((1 / 64,) * 3, (-2.0,) * 3)
    with pytest.raises(ConfigError, match="needs one mean and one std, or 3 of each"):
        pixel_scale(replace(spec, normalize=Normalize((0.5, 0.5), (1.0,))))


class TestBytes:
    def test_the_same_model_gives_the_same_bytes(self, tmp_path: Path):
        module, tensors = nets.make("transformer")
        artifacts = []
        for place in ("a", "b"):
            request, _, _ = request_for(tmp_path / place, module, tensors, target(), "palette_4")
            artifacts.append(compile_into(tmp_path / place, request))
        assert [entry.sha256 for entry in artifacts[0].manifest.files] == [
            e.sha256 for e in artifacts[1].manifest.files
        ]
        assert artifacts[0].digest == artifacts[1].digest

    @pytest.mark.slow
    def test_another_process_gives_the_same_bytes(self, tmp_path: Path):
        script = (
            "import sys; from pathlib import Path\n"
            "from tests.unit.backends.mil import compiled, nets\n"
            "folder = Path(sys.argv[1])\n"
            "request = compiled.request_for(folder, *nets.make('conv_net'), compiled.target('18.0'))[0]\n"
            "digest = compiled.compile_into(folder, request).digest\n"
            "(folder / 'digest').write_text(digest)\n"
        )
        digests = []
        for seed in ("1", "2"):
            folder = tmp_path / seed
            environment = {"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": ".", "HOME": str(tmp_path)}
            command = [sys.executable, "-c", script, str(folder)]
            done = subprocess.run(command, env=environment, check=True, capture_output=True)
            digests.append((folder / "digest").read_text())
            assert done.stdout == b""
        assert digests[0] == digests[1]

    def test_nothing_is_printed(self, tmp_path: Path, capfd):
        module, tensors = scores()
        request, _, _ = request_for(tmp_path, module, tensors, target(), "float16")
        capfd.readouterr()
        compile_into(tmp_path, request)
        assert capfd.readouterr().out == ""

    def test_nothing_but_the_package_and_its_manifest_is_left(self, tmp_path: Path):
        module, tensors = scores()
        request, _, _ = request_for(tmp_path, module, tensors, target())
        artifact = compile_into(tmp_path, request)
        folder = "model.mlpackage/"
        assert [entry.path for entry in artifact.manifest.files] == [
            f"{folder}Data/com.apple.CoreML/model.mlmodel",
            f"{folder}Data/com.apple.CoreML/weights/weight.bin",
            f"{folder}Manifest.json",
        ]
        artifact.verify_files()
        assert "conversion_date" not in "".join(read_package(artifact.main).metadata)


class TestRefusals:
    def test_a_scheme_that_changes_nothing_is_an_error(self, tmp_path: Path):
        module, tensors = scores()
        request, _, _ = request_for(tmp_path, module, tensors, FLOAT32, "palette_2")
        with pytest.raises(UnsupportedModelError, match="The scheme palette_2 changes nothing in this model"):
            compile_into(tmp_path, request)
        assert not (tmp_path / "artifact").exists()

    def test_an_operator_that_core_ml_lacks_is_named_with_its_place(self, tmp_path: Path):
        class Bessel(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.special.bessel_j0(x)

        module = torch.nn.Sequential(torch.nn.Linear(4, 4), Bessel()).eval()
        request, _, _ = request_for(tmp_path, module, (torch.randn(2, 4),), FLOAT32)
        with pytest.raises(
            UnsupportedModelError, match=r"the operator 'special_bessel_j0[^']*' \(in 1, test_coreml.py:\d+\)"
        ):
            compile_into(tmp_path, request)

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"precison": "float32"}, "unknown option coreml.precison"),
            ({"precision": "bfloat16"}, "cannot be 'bfloat16'"),
            ({"image_input": "yes"}, "coreml.image_input of the target 'phone' cannot be 'yes'"),
        ],
    )
    def test_an_option_that_cannot_be_is_named(self, options, words):
        with pytest.raises(ConfigError, match=words):
            CoreMl().unsupported("pt2", (), Lowering(), target(**options))

    def test_what_stands_in_the_way_is_found_before_any_work(self):
        backend = CoreMl()

        def reasons(lowering: Lowering, release: str | None = "17.0", form: str = "pt2") -> list[str]:
            return [issue.what for issue in backend.unsupported(form, (), lowering, target(release))]

        assert reasons(Lowering()) == []
        assert reasons(Lowering(), None) == []
        assert reasons(Lowering(), form="onnx") == ["programs of the format onnx"]
        assert reasons(Lowering(), "14.0") == ["min_version 14.0"]
        assert reasons(Lowering(Quantize("palette_4")), "15.0") == ["scheme palette_4"]
        assert reasons(Lowering(Quantize("static_wi8_ai8")), "16.0") == ["scheme static_wi8_ai8"]
        assert reasons(Lowering(Quantize("weight_only_wi4_afp32"))) == ["scheme weight_only_wi4_afp32"]
        assert reasons(Lowering(Quantize("weight_only_wi4_afp32")), "18.0") == []
        assert reasons(Lowering(Quantize("dynamic_wi8_afp32"))) == ["scheme dynamic_wi8_afp32"]
        assert reasons(Lowering(Quantize("float16", io="int8"))) == ["io: int8"]
        assert reasons(Lowering(Quantize("weight_only_wi4_afp32", block_size=0)), "18.0") == ["block_size: 0"]

    def test_overrides_are_judged_one_by_one(self):
        def found(scheme: str, default: str | None = None, release: str = "17.0") -> list[tuple[str, str]]:
            lowering = Lowering(Quantize(default) if default else None, {"head": scheme})  # type: ignore[arg-type]
            return [(one.what, one.where) for one in CoreMl().unsupported("pt2", (), lowering, target(release))]

        assert found("float32") == found("float16") == found("palette_2") == []
        assert found("palette_2", release="15.0") == [("scheme palette_2", "head")]
        assert found("weight_only_wi4_afp32") == [("scheme weight_only_wi4_afp32", "head")]
        assert found("dynamic_wi8_afp32") == [("override dynamic_wi8_afp32", "head")]
        assert found("static_wi8_ai8") == [("override static_wi8_ai8", "head")]
        assert found("static_wi8_ai8", "static_wi8_ai8") == []

    def test_what_can_be_done_instead_is_said(self):
        def hint(scheme: str, release: str) -> str:
            lowering = Lowering(Quantize(scheme))  # type: ignore[arg-type]
            return CoreMl().unsupported("pt2", (), lowering, target(release))[0].hint

        assert "Use palette_4, from iOS 16 on" in hint("weight_only_wi4_afp32", "17.0")
        assert "Use weight_only_wi8_afp32, from iOS 16 on" in hint("static_wi8_ai8", "16.0")
        assert "Use float16" in hint("static_wi8_ai8", "15.0")
        assert "build for iOS 18 or newer: os.min_version" in hint("weight_only_wi4_afp32", "17.0")

    def test_a_mac_of_the_same_year_reads_what_a_phone_reads(self):
        lowering = Lowering(Quantize("palette_4"))
        assert CoreMl().unsupported("pt2", (), lowering, target("13.0", "macos")) == []
        assert len(CoreMl().unsupported("pt2", (), lowering, target("12.0", "macos"))) == 1
        with pytest.raises(ConfigError, match="'newest', which is no version"):
            CoreMl().unsupported("pt2", (), lowering, target("newest"))


class TestDriver:
    def test_it_says_what_it_is_and_that_it_is_no_device(self, tmp_path: Path):
        facts = Driver(tmp_path / "none.mlpackage", 1, {}, {}).facts()
        assert facts["runtime"] == RUNTIME == "coreml reference evaluation (not device-verified)"
        assert facts["delegate"] is None

    def test_results_are_copies(self, tmp_path: Path):
        module, tensors = scores()
        request, inputs, _ = request_for(tmp_path, module, tensors, FLOAT32)
        artifact = compile_into(tmp_path, request)
        driver = Driver(str(artifact.main), 1, artifact.manifest.bindings, {})
        driver.load()
        driver.prepare(inputs)
        driver.invoke()
        driver.results()["out_0"][:] = 7
        assert not (driver.results()["out_0"] == 7).any()

    def test_a_missing_input_is_named(self, tmp_path: Path):
        module, tensors = scores()
        request, _, _ = request_for(tmp_path, module, tensors, FLOAT32)
        driver = Driver(compile_into(tmp_path, request).main, 1, {}, {})
        driver.load()
        with pytest.raises(ConfigError, match="The input 'in_0' is missing"):
            driver.prepare({})


def test_only_a_mac_runs_it():
    assert CoreMl().can_run() is (sys.platform == "darwin")
    assert CoreMl().can_convert()
