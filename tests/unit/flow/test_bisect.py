"""Real artifacts, whole and damaged, looked into by their real runtimes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from edgekit.core.artifact import load_artifact
from edgekit.core.errors import ConfigError, DeviceError
from edgekit.core.target import load_target
from edgekit.flow.bisect import bisect_artifact, source_of
from edgekit.flow.build import Builder
from edgekit.flow.export import export_artifact, golden_of, verification_of
from edgekit.flow.layers import layers_of
from edgekit.flow.project import Overrides, load_project
from edgekit.frontends.base import SourceRequest
from edgekit.frontends.exported_program import ExportedProgram
from tests.unit.flow import kit, nets

TASK = """
    import numpy as np

    class Task:
        metric, direction = "spread", "larger"

        def examples(self, split):
            if split in ("calibration", "validation"):
                generator = np.random.default_rng(len(split))
                yield {"image": generator.normal(size=(8, 3, 16, 16)).astype(np.float32)}

        def score(self, outputs, split):
            return {"spread": float(np.concatenate([batch["output"] for batch in outputs]).std())}
    """

_PROJECT = "schema_version: 1\nname: net\nsource: model.py:build\ntask: task.py:Task\n"
_INT8 = "schema_version: 1\nlowering: {quantize: {scheme: static_wi8_ai8, calibration: 8}}\n"

BACKENDS = [
    "openvino",
    pytest.param("onnxruntime", marks=pytest.mark.slow),
    pytest.param("litert", marks=pytest.mark.slow),
    pytest.param("coreml", marks=pytest.mark.slow),
]


class Bench:
    """One project and its exported artifacts, each made once for all tests of this file."""

    def __init__(self, folder):
        self.root = folder / "project"

    def builder(self, recipe=None):
        overrides = Overrides(recipe=str(self.root / recipe) if recipe else None)
        return Builder(load_project(self.root, overrides), kit.Heard(), timeout_seconds=300)

    def artifact(self, backend, recipe=None):
        out = self.root.parent / f"{backend}-{recipe}"
        if not out.exists():
            target = load_target("iphone15" if backend == "coreml" else "intel-cpu")
            export_artifact(self.builder(recipe).build(target, backend), out)
        return out

    def bisect(self, path, recipe=None):
        artifact = load_artifact(path)
        target = load_target(artifact.manifest.target)
        model = source_of(artifact, self.builder(recipe), target)
        tolerance = verification_of(artifact).tolerance
        return bisect_artifact(artifact, target, golden_of(artifact), model, tolerance, kit.Heard())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bisect")
    files = {"edgekit.yaml": _PROJECT, "model.py": nets.MODEL, "task.py": TASK, "int8.yaml": _INT8}
    kit.write(folder / "project", files)
    return folder


@pytest.fixture
def bench(made, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(made / "cache"))
    return Bench(made)


def damaged(path, tmp_path, spoil, layer):
    copy = tmp_path / "damaged"
    shutil.copytree(path, copy)
    spoil(copy, layer)
    with pytest.raises(ConfigError, match="is not what its manifest says"):
        load_artifact(copy).verify_files()
    return copy


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_layer_of_a_whole_artifact_diverges(bench, backend):
    found = bench.bisect(bench.artifact(backend))
    assert found.first is None
    by_path = {(layer.path, layer.operator): layer.status for layer in found.layers}
    assert by_path["head", "linear"] == by_path["left", "add"] == by_path["", "cat"] == "same"
    assert by_path["left.conv", "conv2d"] in ("same", "fused")
    assert ("shared@1", "conv2d") in by_path


@pytest.mark.parametrize("layer", sorted(nets.WEIGHTS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layer_whose_weights_are_damaged_is_named(bench, tmp_path, backend, layer):
    found = bench.bisect(damaged(bench.artifact(backend), tmp_path, nets.SPOIL[backend], layer))
    assert (found.first.path, found.first.operator) == (layer, "conv2d")
    assert found.others == ()
    assert found.first.snr_db < 10
    if layer == "stem":
        assert found.first.last_good is None or found.first.last_good == ("", "pad")
    else:
        assert found.first.snr_before_db > (50 if backend == "coreml" else 100)
        assert found.first.last_good == ("", "cat" if layer == "shared" else "relu")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "litert"])
def test_a_whole_8_bit_artifact_diverges_nowhere(bench, backend):
    found = bench.bisect(bench.artifact(backend, "int8.yaml"), "int8.yaml")
    assert found.first is None
    assert found.tolerance.min_snr_db == 10
    assert any(layer.status == "same" and layer.snr_db < 60 for layer in found.layers)


def test_another_source_than_the_artifacts_is_refused_with_what_differs(bench, tmp_path):
    artifact = load_artifact(bench.artifact("openvino"))
    other = kit.write(tmp_path, {"edgekit.yaml": _PROJECT, "task.py": TASK})
    (other / "model.py").write_text((bench.root / "model.py").read_text().replace("seed(0)", "seed(1)"))
    with pytest.raises(ConfigError, match="another model than model.py:build gives now: its graph or its weights"):
        source_of(artifact, kit.builder_in(other), load_target("intel-cpu"))
    (other / "recipe.yaml").write_text("schema_version: 1\npasses: [fold_batch_norm: {}]\n")
    with (other / "edgekit.yaml").open("a") as stream:
        stream.write("recipe: recipe.yaml\n")
    with pytest.raises(ConfigError, match=r"its passes were none; now they are fold_batch_norm"):
        source_of(artifact, kit.builder_in(other), load_target("intel-cpu"))


def test_a_file_that_the_runtime_refuses_is_an_error_in_its_words(bench, tmp_path):
    copy = tmp_path / "broken"
    shutil.copytree(bench.artifact("openvino"), copy)
    (copy / "model.xml").write_text("<net>")
    with pytest.raises(DeviceError, match="local"):
        bench.bisect(copy)


def test_a_missing_file_is_named(bench, tmp_path):
    copy = tmp_path / "lacking"
    shutil.copytree(bench.artifact("openvino"), copy)
    (copy / "model.bin").unlink()
    with pytest.raises(ConfigError, match="lacks its file 'model.bin'"):
        bench.bisect(copy)


@pytest.fixture
def live(bench):
    return bench.builder().source.live()


def calls_of(model):
    return [{name: np.asarray(value) for name, value in model.example_inputs.items()}]


def test_the_layers_of_a_torch_model_have_their_modules_paths(live):
    layers = layers_of(live.program, calls_of(live))
    named = {layer.key: layer for layer in layers}
    assert [layer.path for layer in layers if layer.operator == "conv2d"] == [
        "stem",
        "left.conv",
        "right.conv",
        "shared",
        "shared@1",
    ]
    cat = next(layer for layer in layers if layer.operator == "cat")
    assert [named[key].path for key in cat.inputs] == ["left", "right"]
    assert layers[-1].value.shape == (1, 1, 5)
    assert np.array_equal(layers[-1].value[0], live.program.run(live.example_inputs)["output"])


def test_a_pt2_file_shows_the_same_layers(live, tmp_path):
    live.program.save(tmp_path / "net.pt2")
    loaded = ExportedProgram().load(SourceRequest("net.pt2", tmp_path, "net"))
    call = dict(zip(loaded.program.input_names, live.example_inputs.values(), strict=True))
    of_file, of_model = layers_of(loaded.program, [call]), layers_of(live.program, calls_of(live))
    assert [layer.operator for layer in of_file] == [layer.operator for layer in of_model]
    assert [layer.path.removeprefix("inner").removeprefix(".") for layer in of_file] == [x.path for x in of_model]


def test_an_operator_that_works_in_place_does_not_change_the_layer_before_it(tmp_path):
    kit.write(
        tmp_path,
        {
            "model.py": """
            import torch

            class Net(torch.nn.Module):
                def forward(self, x):
                    y = x * -1
                    y.relu_()
                    return y + 1

            def build():
                return Net(), (torch.ones(1, 4),)
            """,
            "edgekit.yaml": "schema_version: 1\nname: net\nsource: model.py:build\n",
        },
    )
    model = kit.builder_in(tmp_path).source.live()
    mul, relu, add = layers_of(model.program, calls_of(model))
    assert (mul.value.max(), relu.value.max(), add.value.max()) == (-1, 0, 1)
    assert add.inputs == (relu.key,)


def test_an_onnx_model_is_bisected_by_its_nodes(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = [np.random.default_rng(seed).normal(size=(6, 6)).astype(np.float32) for seed in (0, 1)]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["a"], name="/first/MatMul"),
            helper.make_node("Tanh", ["a"], ["b"], name="/first/Tanh"),
            helper.make_node("MatMul", ["b", "w1"], ["y"], name="/second/MatMul"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
        [numpy_helper.from_array(value, f"w{index}") for index, value in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    kit.write(tmp_path, {"edgekit.yaml": "schema_version: 1\nname: net\nsource: net.onnx\n"})
    builder, target = kit.builder_in(tmp_path), load_target("intel-cpu")
    out = export_artifact(builder.build(target, "openvino"), tmp_path / "out")
    artifact = load_artifact(out)
    tolerance = verification_of(artifact).tolerance

    def bisected():
        model = source_of(artifact, builder, target)
        return bisect_artifact(artifact, target, golden_of(artifact), model, tolerance, kit.Heard())

    assert bisected().first is None
    data = (out / "model.bin").read_bytes()
    stored = next(value for value in (weights[1], weights[1].T) if value.tobytes() in data)
    (out / "model.bin").write_bytes(data.replace(stored.tobytes(), (-stored).tobytes()))
    first = bisected().first
    assert (first.path, first.operator) == ("/second/MatMul", "MatMul")
    assert first.last_good == ("/first/Tanh", "Tanh")
