from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest

from edgekit.core.errors import BudgetError, ConfigError, MissingExtraError, UnsupportedModelError
from edgekit.core.target import load_target
from edgekit.flow.build import Builder
from edgekit.flow.data import DataSet
from edgekit.flow.export import export_artifact, open_artifact
from edgekit.flow.recipe import Budget, Recipe
from tests.unit.flow import kit

BUILD = """
    import sys
    from pathlib import Path
    from tests.unit.flow import kit
    heard = kit.Heard()
    print("ready", flush=True)
    sys.stdin.readline()
    built = kit.builder_in(Path(sys.argv[1]), heard).build(kit.intel())
    print(heard.count("converting"), built.artifact.digest, "torch" in sys.modules, flush=True)
    """


@pytest.fixture
def once(built_once):
    return built_once[1:]


def test_a_build_is_verified_on_golden_and_on_each_split(once):
    built, _ = once
    assert built.sets[0].name == "golden"
    examples = {name: parity[0].examples for name, parity in built.host.verification.parity.items()}
    assert examples.keys() == {s.name for s in built.sets}
    assert {"golden": 7, "validation": 7, "test": 5}.items() <= examples.items()
    assert built.host.verification.failures() == []
    assert built.host.verification.runtime["runtime"] == "openvino"
    assert built.source_metrics.keys() == built.host_metrics.keys() == {"validation", "test"}
    for split, metrics in built.source_metrics.items():
        assert built.host_metrics[split] == pytest.approx(metrics, rel=1e-4)


def test_a_build_records_what_it_took(once):
    built, heard = once
    build = built.artifact.build
    assert build.seconds > 0
    assert build.peak_rss_mib > 50
    assert 0 < build.download_bytes < built.artifact.bytes
    assert heard.count("converting with openvino") == 1
    assert (built.artifact.manifest.source, built.artifact.manifest.target) == ("model.py:build", "intel-cpu")


def test_an_exported_artifact_can_be_opened_where_it_lies(once, tmp_path):
    built, _ = once
    out = export_artifact(built, tmp_path / "out" / "intel-cpu")
    opened = open_artifact(out)
    assert opened.artifact.digest == built.artifact.digest
    assert opened.host.verification == built.host.verification
    for kind, files in (("inputs", opened.sets[0].files), ("expected", opened.host.outputs["golden"])):
        assert all(path.parent == out / "golden" / kind for path in files.values())
    got = np.load(opened.host.outputs["golden"]["output"])
    assert np.array_equal(got, np.load(built.host.outputs["golden"]["output"]))
    assert export_artifact(built, out) == out


def test_a_folder_that_is_no_artifact_is_not_replaced(once, tmp_path):
    built, _ = once
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is not replaced"):
        export_artifact(built, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert open_artifact(export_artifact(built, tmp_path / "empty")).artifact.digest == built.artifact.digest


def test_an_exported_artifact_with_a_changed_file_is_refused(once, tmp_path):
    out = export_artifact(once[0], tmp_path / "out")
    (out / "model.bin").write_bytes(b"\0" * (out / "model.bin").stat().st_size)
    with pytest.raises(ConfigError, match=r"model\.bin"):
        open_artifact(out)


def test_an_unchanged_project_is_neither_converted_nor_run_again_and_needs_no_torch(built_once, monkeypatch):
    builder, built, _ = built_once
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(builder.cache.root))
    # What this process remembers of the source covers all that the other tests imported: a fresh one writes it anew.
    started(builder.project.root).communicate("go\n", timeout=120)
    child = started(builder.project.root)
    out, said = child.communicate("go\n", timeout=120)
    assert out.split() == ["0", built.artifact.digest, "False"], said


def started(folder):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BUILD), str(folder)],
        env={**os.environ, "PYTHONPATH": str(kit.ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.slow
def test_two_processes_that_want_the_same_artifact_convert_it_once(plain):
    children = [started(plain) for _ in range(2)]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.communicate(timeout=300) for child in children]
    found = [out.split() for out, _ in said]
    assert sorted(one[0] for one in found) == ["0", "1"], said
    assert found[0][1] == found[1][1]


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_nothing_half_written(plain, cache_dir):
    child = started(plain)
    child.stdin.write("go\n")
    child.stdin.flush()
    artifacts = cache_dir / "artifacts"
    deadline = time.monotonic() + 120
    while not (artifacts.is_dir() and any(artifacts.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert [path.name for path in artifacts.iterdir() if not path.name.startswith(".")] == []
    heard = kit.Heard()
    built = kit.builder_in(plain, heard).build(kit.intel())
    built.artifact.verify_files()
    assert heard.count("converting") == 1
    left = [path.name for path in artifacts.iterdir() if path != built.artifact.path]
    # The killed one's converter is a process of its own and may have been at work for a moment longer.
    assert all(name.startswith(".") for name in left)


def test_a_lossy_artifact_breaks_the_budget(built_once, monkeypatch):
    builder = built_once[0]
    real = DataSet.score

    def lower(self, outputs, split):
        of_the_artifact = any("verifications" in str(path) for path in outputs.values())
        return {**real(self, outputs, split), "accuracy": 0.2 if of_the_artifact else 0.9}

    monkeypatch.setattr(DataSet, "score", lower)
    project = replace(builder.project, recipe=Recipe(budget=Budget(0.5, "accuracy")))
    with pytest.raises(BudgetError, match="float32 on openvino takes accuracy from 0.9 to 0.2"):
        Builder(project, kit.Heard(), builder.cache).build(kit.intel())


@pytest.mark.parametrize(
    "backend, kind, said",
    [
        ("coreml", ConfigError, "does not run coreml artifacts; it runs openvino"),
        ("openvinno", ConfigError, "Did you mean 'openvino'"),
    ],
)
def test_a_backend_that_the_target_does_not_run_is_refused(plain, backend, kind, said):
    with pytest.raises(kind, match=said):
        kit.builder_in(plain).build(kit.intel(), backend)


@pytest.mark.parametrize(
    "recipe, said",
    [
        ("lowering: {layout: {image: NHWC}}", "layout: image"),
        ("lowering: {quantize: {scheme: float16, io: int8}}", "io: int8"),
        ("lowering: {overrides: {layer1: dynamic_wi8_afp32}}", "layer1"),
    ],
)
def test_what_the_backend_cannot_do_is_said_before_any_work(tmp_path, heard, recipe, said):
    project = kit.write(tmp_path, {"edgekit.yaml": kit.project_yaml(), "model.py": kit.MODEL})
    (project / "recipe.yaml").write_text(f"schema_version: 1\n{recipe}\n")
    with (project / "edgekit.yaml").open("a") as stream:
        stream.write("recipe: recipe.yaml\n")
    with pytest.raises(UnsupportedModelError) as caught:
        kit.builder_in(project, heard).build(kit.intel(), "openvino")
    assert said in caught.value.message
    assert heard.steps == []


def test_a_static_scheme_without_calibration_examples_is_refused(plain):
    (plain / "recipe.yaml").write_text("schema_version: 1\nlowering: {quantize: {scheme: static_wi8_ai8}}\n")
    with (plain / "edgekit.yaml").open("a") as stream:
        stream.write("recipe: recipe.yaml\n")
    with pytest.raises(ConfigError, match="needs calibration examples, and the project has no task"):
        kit.builder_in(plain).build(load_target("linux-x86"), "litert")


def test_a_task_that_does_not_fit_the_model_is_refused_before_converting(tasked, heard):
    task = tasked / "task.py"
    task.write_text(task.read_text().replace('"input"', '"image"'))
    with pytest.raises(ConfigError, match="lack the input 'input'"):
        kit.builder_in(tasked, heard).build(kit.intel())
    assert heard.count("converting") == 0


def test_without_the_converter_the_extra_is_named(plain, monkeypatch):
    monkeypatch.setattr("edgekit.backends.openvino.OpenVino.can_convert", lambda self: False)
    with pytest.raises(MissingExtraError) as caught:
        kit.builder_in(plain).build(kit.intel())
    assert "edgekit[openvino]" in caught.value.hint


def test_a_build_without_verification_says_so(built_once, heard):
    builder = built_once[0]
    built = Builder(builder.project, heard, builder.cache).build(kit.intel(), verify=False)
    assert built.host is None
    assert heard.warnings == ["Not verified: nobody has checked that this artifact computes what the model computes."]


ONNX_NAMES = """
    import sys, numpy as np, onnx
    from onnx import TensorProto, helper, numpy_helper
    weights = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    node = helper.make_node("MatMul", ["net/x:0", "w"], ["/head/Gemm_output_0"])
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("net/x:0", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("/head/Gemm_output_0", TensorProto.FLOAT, [2, 2])], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), sys.argv[1])
    """


def test_names_with_slashes_survive_the_whole_line(tmp_path):
    done = kit.python(ONNX_NAMES, str(tmp_path / "net.onnx"))
    assert done.returncode == 0, done.stderr
    kit.write(tmp_path, {"edgekit.yaml": "schema_version: 1\nsource: net.onnx\n"})
    built = kit.builder_in(tmp_path).build(kit.intel())
    assert list(built.host.outputs["golden"]) == ["/head/Gemm_output_0"]
    opened = open_artifact(export_artifact(built, tmp_path / "out"))
    assert list(opened.sets[0].files) == ["net/x:0"]
    assert list(opened.host.outputs["golden"]) == ["/head/Gemm_output_0"]


SHAPES = """
    import torch
    from torch import nn

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Embedding(11, 6)

        def forward(self, ids, mask):
            words = self.embed(ids) * mask[..., None]
            return {"mean": words.mean(1), "words": words}

    def words():
        return Words(), {"ids": torch.arange(8).reshape(2, 4), "mask": torch.ones(2, 4)}

    class Twice(nn.Module):
        def forward(self, x):
            y = x * 2
            return {"a": y, "b": y, "c": x}

    def twice():
        return Twice(), (torch.arange(4.0)[None],)
    """


@pytest.mark.slow
@pytest.mark.parametrize(
    "factory, outputs",
    [("words", {"mean": (8, 6), "words": (8, 4, 6)}), ("twice", {"a": (8, 4), "b": (8, 4), "c": (8, 4)})],
)
def test_several_inputs_and_outputs_keep_their_names_and_values(tmp_path, factory, outputs):
    kit.write(tmp_path, {"edgekit.yaml": f"schema_version: 1\nsource: net.py:{factory}\n", "net.py": SHAPES})
    built = kit.builder_in(tmp_path).build(kit.intel())
    assert {name: np.load(path).shape for name, path in built.host.outputs["golden"].items()} == outputs
