"""The backend onnxruntime, with real conversions and the real runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgekit.backends._onnxruntime.export import newest_opset
from edgekit.backends._onnxruntime.format import in_order
from edgekit.backends._onnxruntime.graph import merge_duplicates, ort_format
from edgekit.backends.onnxruntime import OnnxRuntime, options_of
from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import TensorSpec
from edgekit.core.target import find_targets, load_target
from edgekit.core.workload import Workload
from tests.unit.backends.conversions import ConvNet, NoWeights, Recurrent, Transformer, request_for, target

# torch's own, on its way out of a program's file and through its exporter.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]
ROOT = Path(__file__).resolve().parents[3]
TO = target("onnxruntime")
IMAGE = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
STEPS = torch.linspace(-1, 1, 2 * 7 * 8).reshape(2, 7, 8)


def run(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, inputs), strict=True))


def largest_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name] - expected[name]).max()) for name in expected)


@pytest.fixture(scope="module")
def convnet(tmp_path_factory):
    torch.manual_seed(0)
    request, inputs, outputs = request_for(tmp_path_factory.mktemp("net"), ConvNet(), IMAGE, TO, name="image")
    return request, inputs, outputs, OnnxRuntime().compile(request, request.program.parent / "artifact")


def test_an_artifact_computes_what_torch_computes_under_our_names(convnet):
    _, inputs, outputs, artifact = convnet
    assert largest_difference(run(artifact.main, inputs), outputs) < 1e-5
    model = onnx.load(artifact.main)
    assert [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input] == [[1, 3, 16, 16]]
    assert artifact.manifest.changed == ()


def test_the_graph_is_optimised_before_it_is_written(convnet):
    kinds = [node.op_type for node in onnx.load(convnet[3].main).graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("FusedConv") == 2
    assert "Relu" not in kinds


def test_equal_weights_are_stored_once_and_the_file_is_hardly_larger_than_its_weights(convnet):
    model = onnx.load(convnet[3].main)
    shapes = [tuple(i.dims) for i in model.graph.initializer]
    assert shapes.count((128, 16)) == 1
    weights = sum(onnx.numpy_helper.to_array(i).nbytes for i in model.graph.initializer)
    nodes = sum(node.ByteSize() for node in model.graph.node)
    assert convnet[3].bytes <= 1.1 * (weights + nodes)


def test_a_second_conversion_gives_the_same_bytes(convnet, tmp_path):
    assert OnnxRuntime().compile(convnet[0], tmp_path / "again").digest == convnet[3].digest


def test_a_file_tells_nothing_of_the_machine_that_made_it(convnet):
    content = convnet[3].main.read_bytes()
    for word in (
        str(Path.home()),
        "conversions.py",
        "site-packages",
        "forward",
        "pkg.torch",
        str(convnet[0].program.parent),
    ):
        assert word.encode() not in content, word
    model = onnx.load(convnet[3].main)
    assert not model.metadata_props
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)


def test_a_pinned_runtime_decides_the_opset(convnet, tmp_path):
    older = replace(convnet[0], target=target("onnxruntime", runtimes={"onnxruntime": "1.20.1"}))
    model = onnx.load(OnnxRuntime().compile(older, tmp_path / "older").main)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {21}
    assert model.ir_version == 10


@pytest.mark.parametrize(
    ("version", "opset"),
    [("1.32.0", 24), ("1.24.1", 24), ("1.23.2", 23), ("1.22.1", 22), ("1.20.1", 21), ("1.17.3", 20)],
)
def test_the_opset_is_the_newest_that_a_release_was_seen_to_read(version, opset):
    assert newest_opset(version) == opset


def test_a_runtime_too_old_for_the_exporter_is_refused_before_any_work():
    old = target("onnxruntime", runtimes={"onnxruntime": "1.10.0"})
    with pytest.raises(UnsupportedModelError, match="pins onnxruntime 1.10.0"):
        OnnxRuntime().unsupported("pt2", (), Lowering(), old)


def test_the_shipped_targets_can_be_compiled_for():
    for name in find_targets():
        built = load_target(name)
        if "onnxruntime" in built.backends:
            assert not OnnxRuntime().unsupported("pt2", (), Lowering(), built)


@pytest.mark.parametrize(
    ("kind", "options", "count"),
    [("LSTM", {}, 1), ("LSTM", {"num_layers": 2, "bidirectional": True}, 2), ("GRU", {"bidirectional": True}, 1)],
)
def test_a_recurrent_layer_is_one_operator_and_no_loop(tmp_path, kind, options, count):
    request, inputs, outputs = request_for(tmp_path, Recurrent(kind, batch_first=True, **options), STEPS, TO)
    artifact = OnnxRuntime().compile(request, tmp_path / "artifact")
    kinds = [node.op_type for node in onnx.load(artifact.main).graph.node]
    assert kinds.count(kind) == count
    assert len(kinds) < 12
    assert largest_difference(run(artifact.main, inputs), outputs) < 1e-5


@pytest.mark.parametrize(
    ("scheme", "allowed", "smaller"),
    [
        # Of a file of 15 kB the operators that unpack are a part.
        ("float16", 2e-3, 1.6),
        ("static_wi8_ai8", 3e-2, 1.0),
        ("dynamic_wi8_afp32", 3e-2, 1.3),
        ("weight_only_wi8_afp32", 1e-2, 1.8),
    ],
)
def test_a_scheme_shrinks_the_file_and_keeps_float_inputs_and_outputs(convnet, tmp_path, scheme, allowed, smaller):
    request, inputs, outputs, plain = convnet
    artifact = OnnxRuntime().compile(replace(request, lowering=Lowering(Quantize(scheme))), tmp_path / "artifact")
    assert plain.bytes / artifact.bytes > smaller
    assert {spec.dtype for spec in artifact.manifest.inputs + artifact.manifest.outputs} == {"float32"}
    found = run(artifact.main, inputs)
    assert 0 < largest_difference(found, outputs) < allowed
    wanted = {onnx.TensorProto.FLOAT16} if scheme == "float16" else {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    assert wanted & {i.data_type for i in onnx.load(artifact.main).graph.initializer if len(i.dims) > 1}


def test_a_transformer_survives_dynamic_quantization(tmp_path):
    tokens = torch.arange(8).reshape(1, 8)
    request, inputs, outputs = request_for(tmp_path, Transformer(), tokens, TO, "dynamic_wi8_afp32")
    artifact = OnnxRuntime().compile(request, tmp_path / "artifact")
    found = run(artifact.main, inputs)
    assert largest_difference(found, outputs) < 0.1
    assert "MatMulInteger" in [node.op_type for node in onnx.load(artifact.main).graph.node]


@pytest.mark.parametrize("scheme", OnnxRuntime.schemes)
def test_a_scheme_that_would_change_nothing_is_refused_by_name(tmp_path, scheme):
    request, _, _ = request_for(tmp_path, NoWeights(), STEPS, TO, scheme)
    with pytest.raises(UnsupportedModelError, match=f"scheme {scheme} changes nothing in nets.py"):
        OnnxRuntime().compile(request, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_static_quantization_without_examples_says_what_is_missing(convnet, tmp_path):
    request = replace(convnet[0], lowering=Lowering(Quantize("static_wi8_ai8")), calibration=None)
    with pytest.raises(UnsupportedModelError, match="needs calibration examples"):
        OnnxRuntime().compile(request, tmp_path / "artifact")


def test_the_mobile_format_runs_and_computes_the_same(convnet, tmp_path):
    request = replace(convnet[0], target=target("onnxruntime", format="ort"))
    artifact = OnnxRuntime().compile(request, tmp_path / "artifact")
    assert artifact.manifest.main == "model.ort"
    assert artifact.main.read_bytes()[4:8] == b"ORTM"
    assert largest_difference(run(artifact.main, convnet[1]), convnet[2]) < 1e-5
    assert artifact.main.read_bytes() == in_order(artifact.main.read_bytes())


def test_the_mobile_format_has_the_same_bytes_whatever_the_runtimes_hash_tables_gave(convnet):
    model = onnx.load(convnet[3].main)
    written = {ort_format(model, "none") for _ in range(12)}
    assert len({in_order(content) for content in written}) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fromat": "ort"}, "unknown option onnxruntime.fromat. Did you mean 'format'"),
        ({"format": "tflite"}, "onnxruntime.format of the target 'board' cannot be 'tflite'"),
        ({"offline": "fast"}, "onnxruntime.offline of the target 'board' cannot be 'fast'"),
        ({"reduce_range": "yes"}, "cannot be 'yes'"),
        ({"offline": "all"}, "lays the graph out for the processor of this machine"),
    ],
)
def test_a_wrong_option_is_named(options, words):
    with pytest.raises(ConfigError) as caught:
        options_of(target("onnxruntime", arch="wasm32", **options))
    assert words in caught.value.message


def test_integer_inputs_and_unknown_schemes_of_layers_are_refused_before_any_work():
    lowering = Lowering(
        Quantize("static_wi8_ai8", io="int8", block_size=32), overrides={"stem": "int5", "head": "float32"}
    )
    found = OnnxRuntime().unsupported("pt2", (), lowering, TO)
    assert [issue.what for issue in found] == ["io: int8", "scheme int5", "block_size: 32"]
    assert "weight_only_wi4_afp32" in found[1].hint


def onnx_request(tmp_path, opset: int, base):
    weight = np.eye(4, 2, dtype=np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(weight)),
            onnx.helper.make_node("MatMul", ["data", "w"], ["scores"], doc_string="/home/somebody/net.py"),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("data", 1, [1, 4])],
        [onnx.helper.make_tensor_value_info("scores", 1, ["batch", 2])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, str(tmp_path / "net.onnx"))
    return replace(
        base,
        program=tmp_path / "net.onnx",
        inputs=(TensorSpec("data", (1, 4)),),
        outputs=(TensorSpec("scores", (1, 2)),),
        source="net.onnx",
    )


def test_an_onnx_file_keeps_its_opset_and_gets_static_shapes(convnet, tmp_path):
    artifact = OnnxRuntime().compile(onnx_request(tmp_path, 13, convnet[0]), tmp_path / "artifact")
    model = onnx.load(artifact.main)
    assert [entry.version for entry in model.opset_import] == [13]
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 2]
    assert b"somebody" not in artifact.main.read_bytes()
    data = np.arange(4, dtype=np.float32)[None]
    assert run(artifact.main, {"data": data})["scores"].tolist() == [[0, 1]]


def test_an_onnx_file_too_new_for_the_pinned_runtime_is_refused(convnet, tmp_path):
    base = replace(convnet[0], target=target("onnxruntime", runtimes={"onnxruntime": "1.20.1"}))
    with pytest.raises(UnsupportedModelError, match="has opset 23; onnxruntime 1.20.1 reads up to 21"):
        OnnxRuntime().compile(onnx_request(tmp_path, 23, base), tmp_path / "artifact")


def test_merging_reaches_the_graphs_inside_nodes():
    weight = np.arange(4, dtype=np.float32)
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["b"], ["z"])], "i", [], [onnx.helper.make_tensor_value_info("z", 1, [4])]
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
        "g",
        [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])],
        [onnx.helper.make_tensor_value_info("y", 1, [4])],
        [onnx.numpy_helper.from_array(weight, "a"), onnx.numpy_helper.from_array(weight, "b")],
    )
    model = onnx.helper.make_model(graph)
    assert merge_duplicates(model) == 16
    assert {name for a in model.graph.node[0].attribute for n in a.g.node for name in n.input} == {"a"}
    onnx.checker.check_model(model)


def test_the_run_plan_tells_the_driver_nothing_of_the_compilation(convnet):
    manifest = replace(convnet[3].manifest, lowering=Lowering(Quantize("weight_only_wi8_afp32")))
    to = target("onnxruntime", format="ort", optimization="basic")
    plan = OnnxRuntime().run_plan(manifest, to, [Workload("latency", "latency")])
    assert plan.options == {"optimization": "basic"}


def test_the_driver_runs_an_artifact_of_each_kind(convnet, tmp_path):
    lowering = Lowering(Quantize("weight_only_wi8_afp32"))
    artifact = OnnxRuntime().compile(replace(convnet[0], lowering=lowering), tmp_path / "artifact")
    np.save(tmp_path / "image.npy", convnet[1]["image"])
    script = (
        "import sys, json, numpy as np; sys.path.insert(0, sys.argv[1]); import device_onnxruntime as d\n"
        "driver = d.Driver(sys.argv[2], 1, {}, json.loads(sys.argv[4])); driver.load()\n"
        "driver.prepare({'image': np.load(sys.argv[3])}); driver.invoke(); np.save(sys.argv[5], driver.results()['out_0'])"
    )
    argv = [str(ROOT / "edgekit/agent"), str(artifact.main), str(tmp_path / "image.npy")]
    for place, options in enumerate(({}, {"optimization": "none"}, {"optimization": "extended"})):
        out = tmp_path / f"{place}.npy"
        subprocess.run(
            [sys.executable, "-c", script, *argv, json.dumps(options), str(out)],
            check=True,
            env={**os.environ, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert np.abs(np.load(out) - convnet[2]["out_0"]).max() < 1e-2
    refused = subprocess.run(
        [sys.executable, "-c", script, *argv, json.dumps({"providers": ["NpuExecutionProvider"]}), "x"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "has no provider NpuExecutionProvider here; it has:" in refused.stderr


@pytest.mark.slow
def test_a_conversion_prints_nothing_and_writes_nothing_at_home_and_needs_no_network(convnet, tmp_path):
    from edgekit.core.progress import Silent
    from edgekit.flow.convert import convert

    home = tmp_path / "home"
    home.mkdir()
    before = os.environ["HOME"]
    os.environ["HOME"] = str(home)
    try:
        request = replace(convnet[0], lowering=Lowering(Quantize("static_wi8_ai8")))
        convert("onnxruntime", request, tmp_path / "artifact", Silent())
    finally:
        os.environ["HOME"] = before
    assert not list(home.rglob("*"))
