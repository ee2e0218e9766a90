"""Weights that pruning left mostly zeros, stored without them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.backends._litert import flatbuffer, sparsity
from edgekit.backends._litert.metadata import read_metadata
from edgekit.backends._litert.sparse import WITHOUT_XNNPACK, store_sparse
from edgekit.backends.litert import LiteRt
from edgekit.core.artifact import Artifact
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import PassRecord, TensorSpec
from tests.unit.backends import litert_kit as kit

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SCHEMES = ("float16", "weight_only_wi8_afp32", "static_wi8_ai8")


def pruned(layer: nn.Module, share: float, block: int = 1) -> nn.Module:
    """A layer with its smallest weights zero, in blocks along the input channels."""
    with torch.no_grad():
        weight = layer.weight
        if block == 1:
            weight *= weight.abs() > weight.abs().flatten().kthvalue(int(share * weight.numel())).values
        else:
            groups = weight.reshape(len(weight), -1, block)
            size = groups.abs().mean(-1)
            kept = size > size.flatten().kthvalue(int(share * size.numel())).values
            weight.copy_((groups * kept[..., None]).reshape(weight.shape))
    return layer


def mlp(share: float = 0.9, block: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        pruned(nn.Linear(256, 128), share, block),
        nn.ReLU(),
        pruned(nn.Linear(128, 64), share, block),
        nn.Linear(64, 10),
    )


class Convs(nn.Module):
    """A convolution of each kind, all but the first pruned, and a layer that is too small to store sparse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.full = pruned(nn.Conv2d(32, 32, 3), 0.9)
        self.point = pruned(nn.Conv2d(32, 64, 1), 0.9)
        self.depth = pruned(nn.Conv2d(64, 64, 3, groups=64), 0.9)
        self.up = pruned(nn.ConvTranspose2d(64, 16, 2, stride=2), 0.9)
        self.tiny = pruned(nn.Conv2d(16, 4, 1), 0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.full, self.point, self.depth, self.up):
            x = torch.relu(layer(x))
        return self.tiny(x)


def images(count: int = 1) -> np.ndarray:
    return np.random.default_rng(1).random((count, 3, 10, 10), dtype=np.float32)


def rows(count: int = 1) -> np.ndarray:
    return np.random.default_rng(1).random((count, 256), dtype=np.float32)


def lowered(scheme: str | None, sparse: str, **more) -> Lowering:
    return Lowering(quantize=Quantize(scheme) if scheme else None, sparse=sparse, **more)


def compiled(folder: Path, module: nn.Module, x: np.ndarray, lowering: Lowering):
    static = lowering.precision == "static_wi8_ai8"
    folder.mkdir(parents=True, exist_ok=True)
    calibration = {"x": np.concatenate([x] * 32)} if static else None
    request = kit.request_for(folder, module, {"x": x}, lowering=lowering, calibration=calibration)
    return LiteRt().compile(request, folder / "artifact")


_dense: dict[str, tuple] = {}


def both(folder: Path, module: nn.Module, x: np.ndarray, scheme: str | None = None, sparse: str = "size", **more):
    """The same model stored dense and sparse; the slow conversion of equal models is done once."""
    key = f"{module}{x.shape}{scheme}{more}{sum(float(one.double().sum()) for one in module.state_dict().values())}"
    if key not in _dense:
        made = compiled(folder / "off", module, x, lowered(scheme, "off", **more))
        _dense[key] = made.manifest, made.main.read_bytes()
    manifest, content = _dense[key]
    stored, notes = store_sparse(content, sparse, pruned=sparse != "auto")
    found = []
    for name, data, changed in (("dense", content, manifest.changed), ("sparse", stored, (*manifest.changed, *notes))):
        path = folder / name / "artifact"
        path.mkdir(parents=True)
        (path / manifest.main).write_bytes(data)
        found.append(Artifact(path, replace(manifest, changed=changed), "0" * 64))
    return found


def run(artifact, x: np.ndarray) -> np.ndarray:
    """The output of an artifact in a process of its own: a bad file may crash its runtime."""
    code = (
        "import json, sys\nsys.path.insert(0, sys.argv[1])\nimport numpy as np\n"
        "from device_litert import Driver\n"
        "made = Driver(sys.argv[2], 1, {}, json.loads(sys.argv[3]))\nmade.load()\n"
        "made.prepare({'x': np.load(sys.argv[4])})\nmade.invoke()\n"
        "np.save(sys.argv[5], made.results()['y0'])\nprint(json.dumps(made.facts()))\n"
    )
    folder = artifact.main.parent.parent
    np.save(folder / "x.npy", x)
    plan = LiteRt().run_plan(artifact.manifest, kit.HERE, [])
    agent = Path(flatbuffer.__file__).parents[2] / "agent"
    argv = [agent, artifact.main, json.dumps(dict(plan.options)), folder / "x.npy", folder / "y.npy"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "facts.json").write_text(done.stdout.splitlines()[-1])
    return np.load(folder / "y.npy")


def facts(artifact) -> dict:
    return json.loads((artifact.main.parent.parent / "facts.json").read_text())


def size(artifact) -> int:
    return artifact.main.stat().st_size


def sparse_tensors(artifact) -> list:
    model = flatbuffer.read(artifact.main.read_bytes())
    return [tensor for subgraph in model.subgraphs for tensor in subgraph.tensors if tensor.sparsity is not None]


def operators(artifact) -> list[str]:
    model = flatbuffer.read(artifact.main.read_bytes())
    names = flatbuffer.builtin_names()
    return [flatbuffer.operator_name(model, one, names) for one in model.subgraphs[0].operators]


def test_pruned_float_layers_get_smaller_by_what_was_computed_and_give_the_same_bits(tmp_path):
    dense, sparse = both(tmp_path, mlp(), rows())
    assert (run(sparse, rows()) == run(dense, rows())).all()
    saved = size(dense) - size(sparse)
    computed = 0
    for layer in (mlp()[0], mlp()[2]):
        weights = layer.weight.detach().numpy()
        computed += weights.nbytes - sparsity.smallest(weights).nbytes
    assert saved == pytest.approx(computed, rel=0.02)
    assert size(dense) / size(sparse) > 5
    (said,) = sparse.manifest.changed
    assert said == f"sparse: the weights of 2 of 3 layers are stored without their zeros (90.0%): {saved:,} bytes saved"


def test_xnnpack_computes_with_unpacked_weights_as_with_constants(tmp_path):
    _, sparse = both(tmp_path, Convs(), images())
    run(sparse, images())
    assert facts(sparse)["xnnpack_applied"]
    assert facts(sparse)["not_delegated"] == {}


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_every_kind_of_convolution_gives_the_same_bits_in_fewer_bytes(tmp_path, scheme):
    dense, sparse = both(tmp_path, Convs(), images(), scheme)
    assert (run(sparse, images()) == run(dense, images())).all()
    assert size(sparse) < size(dense)
    # The first has no zeros, and the last is so small that leaving zeros out would make it larger.
    assert 3 <= operators(sparse).count("DENSIFY") <= 4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_fully_connected_layers_of_other_types_give_the_same_bits_in_fewer_bytes(tmp_path, scheme):
    dense, sparse = both(tmp_path, mlp(), rows(), scheme)
    assert (run(sparse, rows()) == run(dense, rows())).all()
    assert size(dense) / size(sparse) > {"float16": 3.5, "weight_only_wi8_afp32": 2.5, "static_wi8_ai8": 2}[scheme]
    assert facts(sparse)["not_delegated"] == {}


def test_fully_connected_layers_with_int8_data_become_convolutions_whose_weights_xnnpack_unpacks(tmp_path):
    _, sparse = both(tmp_path, mlp(), rows(3), "static_wi8_ai8")
    assert operators(sparse).count("CONV_2D") == 2
    assert operators(sparse).count("FULLY_CONNECTED") == 1


def test_zeros_in_blocks_are_stored_as_blocks(tmp_path):
    scattered = both(tmp_path / "a", mlp(0.9, 1), rows())[1]
    blocks = both(tmp_path / "b", mlp(0.9, 4), rows())[1]
    assert size(blocks) < size(scattered)
    assert all(list(tensor.sparsity.blockMap) == [1] for tensor in sparse_tensors(blocks))


def test_dynamic_quantization_stays_dense_and_says_why(tmp_path):
    dense, sparse = both(tmp_path, mlp(), rows(), "dynamic_wi8_afp32")
    assert dense.main.read_bytes() == sparse.main.read_bytes()
    (said,) = sparse.manifest.changed
    assert "2 layers stay dense: under dynamic quantization XNNPACK reads no unpacked weights" in said


def test_a_model_without_zeros_is_untouched_and_nothing_is_said(tmp_path):
    dense, sparse = both(tmp_path, nn.Linear(256, 64), rows(), sparse="auto")
    assert dense.main.read_bytes() == sparse.main.read_bytes()
    assert sparse.manifest.changed == ()


def test_a_pruned_model_that_would_not_get_smaller_says_so(tmp_path):
    module = pruned(nn.Linear(256, 64), 0.4)
    request = kit.request_for(tmp_path, module, {"x": rows()}, lowering=lowered("weight_only_wi8_afp32", "auto"))
    history = (PassRecord("prune_magnitude", modified=True),)
    artifact = LiteRt().compile(type(request)(**{**vars(request), "history": history}), tmp_path / "artifact")
    assert sparse_tensors(artifact) == []
    (said,) = artifact.manifest.changed
    assert said.startswith("sparse: nothing is stored sparse: where weights are zero (40% at most")


def test_several_batch_sizes_share_what_is_stored(tmp_path):
    plain, one = both(tmp_path / "one", mlp(), rows())
    dense, several = both(tmp_path / "several", mlp(), rows(), batch_sizes=(1, 4))
    # Another signature costs about what it costs in a dense file, not its weights' places once more.
    assert size(several) - size(one) < size(dense) - size(plain) + 800
    assert size(several) < size(dense) / 4
    expected = kit.reference(mlp(), {"x": rows(4)})[0]
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(several.main), num_threads=1).get_signature_runner("batch_4")
    np.testing.assert_allclose(runner(x=rows(4))["y0"], expected, atol=1e-5)
    np.testing.assert_allclose(run(several, rows()), kit.reference(mlp(), {"x": rows()})[0], atol=1e-5)


def test_metadata_are_written_around_sparse_weights(tmp_path):
    inputs = (TensorSpec("x", (1, 256), value_range=(0.0, 1.0)),)
    request = kit.request_for(tmp_path, mlp(), {"x": rows()}, lowering=lowered(None, "size"), input_specs=inputs)
    artifact = LiteRt().compile(request, tmp_path / "artifact")
    assert read_metadata(artifact.main).inputs[0].value_range == (0.0, 1.0)
    assert len(sparse_tensors(artifact)) == 2
    np.testing.assert_allclose(run(artifact, rows()), kit.reference(mlp(), {"x": rows()})[0], atol=1e-5)


def test_palettes_are_left_alone(tmp_path):
    dense, sparse = both(tmp_path, mlp(), rows(), "palette_4")
    assert (run(sparse, rows()) == run(dense, rows())).all()
    assert size(sparse) <= size(dense)


def test_weights_that_something_else_reads_stay_dense(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight = pruned(nn.Linear(256, 64, bias=False), 0.9).weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight) + nn.functional.embedding(x.argmax(1) % 64, self.weight)[:, :64]

    dense, sparse = both(tmp_path, Tied(), rows())
    assert (run(sparse, rows()) == run(dense, rows())).all()


def test_speed_computes_blocks_by_the_sparse_kernels_without_the_delegate(tmp_path):
    dense = both(tmp_path, mlp(0.9, 4), rows())[0]
    fast = compiled(tmp_path / "fast", mlp(0.9, 4), rows(), lowered(None, "speed"))
    assert WITHOUT_XNNPACK in fast.manifest.changed
    assert LiteRt().run_plan(fast.manifest, kit.HERE, []).options["xnnpack"] is False
    assert "DENSIFY" not in operators(fast)
    np.testing.assert_allclose(run(fast, rows()), run(dense, rows()), atol=1e-6)
    assert facts(fast)["xnnpack_applied"] is False
    assert size(dense) / size(fast) > 5


def test_speed_stores_for_size_where_zeros_are_in_no_blocks(tmp_path):
    _, sparse = both(tmp_path, mlp(0.9, 1), rows(), sparse="speed")
    first, second = sparse.manifest.changed
    assert first == (
        "sparse: speed does not pay, stored for size: no fully connected layer has enough of its zeros in blocks of 1x4"
    )
    assert "2 of 3 layers" in second
    assert "xnnpack" not in LiteRt().run_plan(sparse.manifest, kit.HERE, []).options


def test_speed_stores_for_size_where_the_other_layers_need_the_delegate(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Flatten(), pruned(nn.Linear(2048, 16), 0.9, 4))
    _, sparse = both(tmp_path, module, images(), sparse="speed")
    assert "times as long without XNNPACK" in sparse.manifest.changed[0]
    assert WITHOUT_XNNPACK not in sparse.manifest.changed


def test_speed_stores_for_size_where_weights_are_integers(tmp_path):
    _, sparse = both(tmp_path, mlp(0.9, 16), rows(), "static_wi8_ai8", "speed")
    assert "with float32 weights only" in sparse.manifest.changed[1]
    assert WITHOUT_XNNPACK not in sparse.manifest.changed


def test_a_layer_of_zeros_alone_is_stored_and_gives_its_bias(tmp_path):
    layer = nn.Linear(256, 64)
    with torch.no_grad():
        layer.weight.zero_()
    dense, sparse = both(tmp_path, layer, rows())
    np.testing.assert_array_equal(run(sparse, rows())[0], layer.bias.detach().numpy())
    assert size(sparse) < size(dense) / 4


def test_equal_models_give_equal_bytes(tmp_path):
    content = both(tmp_path, mlp(), rows())[0].main.read_bytes()
    assert store_sparse(content, "size", pruned=True) == store_sparse(content, "size", pruned=True)
