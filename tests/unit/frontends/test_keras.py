"""The frontend keras, with files that Keras itself saves here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.model import Model
from edgekit.frontends.base import InputDeclaration, OutputDeclaration, SourceRequest, frontend_for

# Keras' and torch's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]


@pytest.fixture(scope="module")
def keras():
    if importlib.util.find_spec("keras") is None:
        pytest.skip("keras is not installed")
    from edgekit.frontends.keras import _keras

    return _keras(SourceRequest("net.keras", Path(), "net"))


def request_for(path: Path, *inputs: InputDeclaration, outputs: tuple[OutputDeclaration, ...] = ()) -> SourceRequest:
    return SourceRequest(path.name, path.parent, "net", inputs, outputs)


def load(path: Path, *inputs: InputDeclaration, outputs: tuple[OutputDeclaration, ...] = ()) -> Model:
    return frontend_for(path.name).load(request_for(path, *inputs, outputs=outputs))


def image_net(keras):
    layers = keras.layers
    image = layers.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(image)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x)
    x = layers.AveragePooling2D(2)(layers.MaxPooling2D(2)(x))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(5, activation="softmax", name="scores")(x))


def token_net(keras):
    layers = keras.layers
    tokens = layers.Input((12,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 16)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    return keras.Model(tokens, layers.Dense(3, name="tags")(layers.GlobalAveragePooling1D()(x)))


def step_net(keras, recurrent):
    steps = keras.layers.Input((7, 8), name="steps")
    return keras.Model(steps, keras.layers.Dense(3)(recurrent(steps)))


def saved(folder: Path, network) -> Path:
    rng = np.random.default_rng(3)
    # Biases and moving statistics start at values that would hide a mistake.
    network.set_weights([w + rng.uniform(0, 0.3, w.shape).astype(w.dtype) for w in network.get_weights()])
    network.save(folder / "net.keras")
    return folder / "net.keras"


def largest_difference(keras, model: Model, network) -> float:
    rng = np.random.default_rng(1)
    inputs = {s.name: (rng.random(s.shape) * (40 if s.dtype == "int32" else 1)).astype(s.dtype) for s in model.inputs}
    ours = model.program.run(inputs)
    theirs = keras.tree.flatten(
        network(list(inputs.values()) if len(inputs) > 1 else next(iter(inputs.values())), training=False)
    )
    return max(float(np.abs(a - b.detach().numpy()).max()) for a, b in zip(ours.values(), theirs, strict=True))


@pytest.mark.parametrize("make", [image_net, token_net])
def test_a_network_predicts_what_keras_predicts(keras, tmp_path, make):
    network = make(keras)
    model = load(saved(tmp_path, network))
    assert largest_difference(keras, model, network) < 1e-5


def test_an_image_input_is_named_and_its_channels_are_last(keras, tmp_path):
    model = load(saved(tmp_path, image_net(keras)))
    (image,) = model.inputs
    assert (image.name, image.shape, image.layout) == ("image", (1, 16, 16, 3), "NHWC")
    assert [(spec.name, spec.shape) for spec in model.outputs] == [("scores", (1, 5))]


def test_a_declared_batch_size_is_taken(keras, tmp_path):
    model = load(saved(tmp_path, image_net(keras)), InputDeclaration("image", shape=(4, 16, 16, 3)))
    assert model.outputs[0].shape == (4, 5)


def test_an_open_size_has_to_be_declared(keras, tmp_path):
    layers = keras.layers
    wide = layers.Input((None, 16, 3), name="image")
    path = saved(tmp_path, keras.Model(wide, layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(wide))))
    with pytest.raises(UnsupportedModelError, match="dynamic shape"):
        load(path)
    assert load(path, InputDeclaration("image", shape=(1, 9, 16, 3))).inputs[0].shape == (1, 9, 16, 3)


def recurrent_layers(keras):
    layers = keras.layers
    return {
        "lstm": layers.LSTM(16),
        "gru": layers.GRU(16, return_sequences=True),
        "backwards": layers.LSTM(16, go_backwards=True, return_sequences=True),
        "both": layers.Bidirectional(layers.GRU(16, return_sequences=True)),
        "unbiased": layers.GRU(16, use_bias=False),
        "relu": layers.LSTM(16, activation="relu"),
        "before": layers.GRU(16, reset_after=False),
    }


@pytest.mark.parametrize(
    ("name", "count"),
    [("lstm", 1), ("gru", 1), ("backwards", 1), ("both", 2), ("unbiased", 1), ("relu", 0), ("before", 0)],
)
def test_a_recurrent_layer_is_torchs_own_where_that_computes_the_same(keras, tmp_path, name, count):
    network = step_net(keras, recurrent_layers(keras)[name])
    model = load(saved(tmp_path, network))
    assert largest_difference(keras, model, network) < 1e-5
    found = [str(node.target) for node in model.program.exported.graph.nodes]
    assert found.count("aten.lstm.input") + found.count("aten.gru.input") == count
    biases = 2 * 4 * 16  # torch has two of them for each gate
    assert network.count_params() <= model.program.parameter_count() <= network.count_params() + biases


def test_masked_steps_are_left_to_keras(keras, tmp_path):
    layers = keras.layers
    tokens = layers.Input((7,), dtype="int32", name="tokens")
    network = keras.Model(tokens, layers.LSTM(4)(layers.Embedding(50, 8, mask_zero=True)(tokens)))
    model = load(saved(tmp_path, network))
    given = np.array([[5, 7, 9, 0, 0, 0, 0]], np.int32)
    expected = network(given, training=False).detach().numpy()
    assert np.abs(next(iter(model.program.run({"tokens": given}).values())) - expected).max() < 1e-5
    # With the states of its random generators, which Keras does not count.
    assert model.program.parameter_count() == sum(int(np.prod(v.shape)) for v in network.variables)


def test_two_inputs_keep_their_order_and_their_names(keras, tmp_path):
    layers = keras.layers
    first, second = layers.Input((4,), name="b_first"), layers.Input((4,), name="a_second")
    network = keras.Model(
        [first, second], [layers.Dense(2, name="p")(first), layers.Dense(2, name="q")(second - first)]
    )
    model = load(saved(tmp_path, network))
    assert [spec.name for spec in model.inputs] == ["b_first", "a_second"]
    assert [spec.name for spec in model.outputs] == ["p", "q"]
    assert largest_difference(keras, model, network) < 1e-5


def test_a_dictionary_of_outputs_gives_its_keys(keras, tmp_path):
    layers = keras.layers
    x = layers.Input((4,), name="x")
    network = keras.Model(x, {"size": layers.Dense(1)(x), "kind": layers.Dense(3)(x)})
    model = load(saved(tmp_path, network))
    assert {spec.name: spec.shape for spec in model.outputs} == {"size": (1, 1), "kind": (1, 3)}


def test_a_sequential_network_with_names_from_the_project(keras, tmp_path):
    network = keras.Sequential([keras.layers.Input((8,), name="x"), keras.layers.Dense(2)])
    model = load(saved(tmp_path, network), outputs=(OutputDeclaration("scores", ("no", "yes")),))
    assert model.outputs[0].labels == ("no", "yes")
    assert largest_difference(keras, model, network) < 1e-5


def test_a_file_gives_the_same_digest_each_time(keras, tmp_path):
    path = saved(tmp_path, step_net(keras, keras.layers.LSTM(16)))
    assert load(path).digest == load(path).digest


def test_a_lambda_layer_is_refused_by_its_name(keras, tmp_path):
    x = keras.layers.Input((4,))
    keras.Model(x, keras.layers.Lambda(lambda t: t + 1, name="shift")(x)).save(tmp_path / "net.keras")
    with pytest.raises(UnsupportedModelError, match="Lambda layers.*: shift"):
        load(tmp_path / "net.keras")


def test_a_layer_of_ones_own_is_said_to_be_one(keras, tmp_path):
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return x * 2

    x = keras.layers.Input((4,))
    keras.Model(x, Doubled()(x)).save(tmp_path / "net.keras")
    with pytest.raises(UnsupportedModelError) as caught:
        load(tmp_path / "net.keras")
    assert caught.value.message == "net.keras uses classes that are not Keras' own: Doubled."
    assert "model.py:build" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "litert", "onnxruntime"])
def test_a_network_reaches_a_backend(keras, tmp_path, backend):
    from edgekit.backends.base import CompileRequest
    from edgekit.core.lowering import Lowering
    from edgekit.core.progress import Silent
    from edgekit.flow.convert import convert
    from tests.unit.backends.conversions import target

    network = image_net(keras)
    model = load(saved(tmp_path, network))
    model.program.save(tmp_path / "program.pt2")
    request = CompileRequest(
        tmp_path / "program.pt2", "net", model.inputs, model.outputs, Lowering(), target(backend), "net.keras", "0" * 64
    )
    artifact = convert(backend, request, tmp_path / "artifact", Silent())
    image = np.random.default_rng(0).random((1, 16, 16, 3)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    expected = network(image, training=False).detach().numpy()
    script = (
        f"import sys, json, numpy as np; sys.path.insert(0, sys.argv[1]); import device_{backend} as d\n"
        "driver = d.Driver(sys.argv[2], 1, json.loads(sys.argv[4]), {}); driver.load()\n"
        "driver.prepare({'image': np.load(sys.argv[3])}); driver.invoke(); np.save(sys.argv[5], driver.results()['scores'])"
    )
    bindings = json.dumps(dict(artifact.manifest.bindings))
    agent = Path(__file__).resolve().parents[3] / "edgekit" / "agent"
    argv = [str(agent), str(artifact.main), str(tmp_path / "image.npy"), bindings, str(tmp_path / "out.npy")]
    subprocess.run(
        [sys.executable, "-c", script, *argv], check=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert np.abs(np.load(tmp_path / "out.npy") - expected).max() < 1e-5


@pytest.mark.slow
def test_the_home_folder_is_left_alone_and_the_environment_too(tmp_path, keras):
    path = saved(tmp_path, image_net(keras))
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "import os, sys; from pathlib import Path; from edgekit.frontends.base import SourceRequest, frontend_for\n"
        "p = Path(sys.argv[1]); frontend_for(p.name).load(SourceRequest(p.name, p.parent, 'net'))\n"
        "assert 'KERAS_BACKEND' not in os.environ and 'KERAS_HOME' not in os.environ\n"
        "assert not {'tensorflow', 'jax'} & sys.modules.keys()"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KERAS")} | {"HOME": str(home)}
    root = str(Path(__file__).resolve().parents[3])
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, env={**environment, "PYTHONPATH": root})
    assert not list(home.rglob("*"))


class TestAFileThatIsNoKerasModel:
    """Said without Keras being imported."""

    def test_is_missing(self, tmp_path):
        with pytest.raises(ConfigError, match="There is no file"):
            load(tmp_path / "net.keras")

    def test_is_of_the_older_format(self, tmp_path):
        (tmp_path / "net.h5").write_bytes(b"\x89HDF\r\n")
        with pytest.raises(ConfigError, match="older HDF5 format") as caught:
            load(tmp_path / "net.h5")
        assert "load_model('net.h5').save('net.keras')" in caught.value.hint

    def test_is_something_else(self, tmp_path):
        (tmp_path / "net.keras").write_bytes(b"not a zip")
        with pytest.raises(ConfigError, match="not a whole .keras file"):
            load(tmp_path / "net.keras")

    def test_is_another_zip(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "net.keras", "w") as archive:
            archive.writestr("readme", "hello")
        with pytest.raises(ConfigError, match="it has no config.json"):
            load(tmp_path / "net.keras")

    def test_is_cut_short(self, keras, tmp_path):
        path = saved(tmp_path, image_net(keras))
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ConfigError, match="not a whole .keras file"):
            load(path)

    def test_is_damaged(self, keras, tmp_path):
        path = saved(tmp_path, image_net(keras))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(bytes(content))
        with pytest.raises(ConfigError, match="is damaged: its part model.weights.h5"):
            load(path)
