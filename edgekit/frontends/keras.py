"""A Keras 3 `.keras` file, read with Keras' torch backend: no TensorFlow is needed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.model import Layout, Model
from edgekit.core.program import TorchProgram, first_line
from edgekit.frontends._keras_recurrent import drop_replaced, use_torch_layers
from edgekit.frontends.base import Frontend, InputDeclaration, SourceRequest, input_specs, output_specs

if TYPE_CHECKING:
    from edgekit.core.task import Array

EXTRA = "keras"
_CONFIG = "config.json"
_PARTS = (_CONFIG, "metadata.json", "model.weights.h5")
_OTHER_BACKENDS = ("jax", "tensorflow")
_SAVE_ANEW = "Save it with Keras 3: model.save('net.keras')"


class Keras(Frontend):
    """Reads a `.keras` file into a torch module."""

    summary: ClassVar[str] = "a Keras 3 model (.h5 has to be saved anew as .keras first)"
    suffixes: ClassVar[tuple[str, ...]] = (".keras", ".h5", ".hdf5")
    extra: ClassVar[str] = EXTRA

    def load(self, request: SourceRequest) -> Model:
        """See `Frontend.load`."""
        _check_file(request)
        keras = _keras(request)
        torch = require("torch", EXTRA, f"the source {request.source}")
        network = _load(keras, request)
        tensors = {tensor.name: tensor for tensor in network.inputs}
        declared = {said.name: said for said in request.inputs}
        shapes = {name: _shape(request, name, tensor, declared.get(name)) for name, tensor in tensors.items()}
        specs = input_specs(request, tuple(tensors), shapes, {n: str(t.dtype) for n, t in tensors.items()})
        channels_last = keras.config.image_data_format() == "channels_last"
        specs = tuple(_with_layout(spec, channels_last) for spec in specs)
        examples = {spec.name: _example(spec.shape, spec.dtype, spec.value_range) for spec in specs}
        module = _module(torch, keras, network)
        try:
            with torch.no_grad():
                values = module(*(torch.from_numpy(array) for array in examples.values()))
        except Exception as error:
            raise UnsupportedModelError(
                f"The model of {request.source} cannot be run: {first_line(error)}",
                "Check the shapes that edgekit.yaml declares.",
            ) from error
        drop_replaced(network, module.recurrent)
        outputs = output_specs(
            request,
            _output_names(keras, network),
            [tuple(value.shape) for value in values],
            [str(value.dtype).removeprefix("torch.") for value in values],
        )
        program = TorchProgram(module, tuple(tensors), tuple(spec.name for spec in outputs), False, examples)
        return Model(request.name, program, specs, outputs, examples, program.digest(), request.source)


def _check_file(request: SourceRequest) -> None:
    """Refuse what is not a whole `.keras` file, before Keras is imported.

    Raises:
        ConfigError: It is missing, of the older format, truncated, or something else.
        UnsupportedModelError: It holds Python code.
    """
    path = request.path
    if not path.is_file():
        raise ConfigError(f"There is no file '{path}'.")
    if path.suffix in (".h5", ".hdf5"):
        raise ConfigError(
            f"'{path.name}' is of the older HDF5 format, which does not say all that a model needs.",
            f"Convert it once: import keras; keras.models.load_model('{path.name}').save('{path.stem}.keras')",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            lacking = [part for part in _PARTS if part not in archive.namelist()]
            if lacking:
                raise ConfigError(f"'{path.name}' is not a Keras model: it has no {lacking[0]}.", _SAVE_ANEW)
            config = json.loads(archive.read(_CONFIG))
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ConfigError(
            f"'{path.name}' is not a whole .keras file: {first_line(error)}", f"Copy it again, or: {_SAVE_ANEW}"
        ) from error
    if broken is not None:
        raise ConfigError(f"'{path.name}' is damaged: its part {broken} is not what was saved.", "Copy it again.")
    lambdas = sorted(_lambdas(config))
    if lambdas:
        raise UnsupportedModelError(
            f"{request.source} has Lambda layers, which are Python code that would run while the file is read:"
            f" {', '.join(lambdas)}.",
            "Replace each by a layer of Keras or of your own, or load it in a factory of your own: model.py:build",
        )


def _lambdas(config: Any) -> set[str]:
    """Names of the layers in a saved configuration that hold Python code."""
    if isinstance(config, Mapping) and config.get("class_name") in ("Lambda", "__lambda__"):
        inner = config.get("config")
        return {str(inner.get("name", "lambda")) if isinstance(inner, Mapping) else "lambda"}
    return {name for item in _items(config) for name in _lambdas(item)}


def _own_classes(config: Any) -> set[str]:
    """Classes in a saved configuration that are not Keras' own."""
    found = {name for item in _items(config) for name in _own_classes(item)}
    if isinstance(config, Mapping) and "registered_name" in config and isinstance(config.get("class_name"), str):
        module = config.get("module")
        if not (isinstance(module, str) and module.split(".")[0] in ("keras", "builtins")):
            found.add(config["class_name"])
    return found


def _items(config: Any) -> Iterable[Any]:
    if isinstance(config, Mapping):
        return config.values()
    return config if isinstance(config, list) else ()


def _keras(request: SourceRequest) -> Any:
    """Keras on its torch backend.

    Raises:
        ConfigError: This process uses Keras with another backend already.
    """
    require("torch", EXTRA, f"the source {request.source}")
    if "keras" not in sys.modules:
        with _settings():
            keras = require("keras", EXTRA, f"the source {request.source}")
    keras = sys.modules["keras"]
    backend = keras.config.backend()
    if backend != "torch":
        raise ConfigError(
            f"Keras runs on {backend} in this process, and its backend cannot be changed once it is imported.",
            "Set KERAS_BACKEND=torch before Keras is imported.",
        )
    return keras


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """The torch backend, and no settings read from or written to the home folder, while Keras is imported.

    Keras imports other backends' libraries where it finds them, on no use of its own here: they take seconds and start
    threads. They are hidden from it meanwhile.
    """
    hidden = [name for name in _OTHER_BACKENDS if name not in sys.modules]
    with tempfile.TemporaryDirectory(prefix="edgekit-keras-") as home:
        before = {name: os.environ.get(name) for name in ("KERAS_BACKEND", "KERAS_HOME")}
        os.environ.update(KERAS_BACKEND="torch", KERAS_HOME=home)
        for name in hidden:
            sys.modules[name] = None  # type: ignore[assignment]  # None is how an import is blocked
        try:
            yield
        finally:
            for name in hidden:
                del sys.modules[name]
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _load(keras: Any, request: SourceRequest) -> Any:
    try:
        network = keras.models.load_model(request.path, compile=False, safe_mode=True)
    except Exception as error:
        with zipfile.ZipFile(request.path) as archive:
            own = sorted(_own_classes(json.loads(archive.read(_CONFIG))))
        if own:
            raise UnsupportedModelError(
                f"{request.source} uses classes that are not Keras' own: {', '.join(own)}.",
                "Load it in a factory that imports them: model.py:build",
            ) from error
        raise UnsupportedModelError(
            f"Keras cannot load '{request.path.name}': {first_line(error)}", _SAVE_ANEW
        ) from error
    if not getattr(network, "inputs", None):
        raise UnsupportedModelError(
            f"{request.source} does not say what its inputs are.", "Build it with keras.Input before it is saved."
        )
    return network


def _shape(request: SourceRequest, name: str, tensor: Any, said: InputDeclaration | None) -> tuple[int, ...]:
    """The input's sizes: a batch that is open is 1, others take what the person declares.

    Raises:
        UnsupportedModelError: A size is open and nothing is declared for it.
    """
    sizes: list[int] = []
    declared = said.shape if said is not None and said.shape is not None else ()
    for index, size in enumerate(tensor.shape):
        if size is not None:
            sizes.append(int(size))
        elif len(declared) == len(tensor.shape):
            sizes.append(declared[index])
        elif index == 0:
            sizes.append(1)
        else:
            shape = ["?" if size is None else size for size in tensor.shape]
            raise UnsupportedModelError(
                f"The input '{name}' of {request.source} has the dynamic shape {shape}; artifacts have static ones.",
                f"Declare it in edgekit.yaml: inputs: [{{name: {name}, shape: [1, …]}}]",
            )
    return tuple(sizes)


def _with_layout(spec: Any, channels_last: bool) -> Any:
    from dataclasses import replace

    if spec.layout is not None or len(spec.shape) != 4:
        return spec
    layout: Layout = "NHWC" if channels_last else "NCHW"
    return replace(spec, layout=layout)


def _example(shape: tuple[int, ...], dtype: str, value_range: tuple[float, float] | None) -> Array:
    import numpy as np

    low, high = value_range or (0.0, 1.0)
    values = np.random.default_rng(0).uniform(low, high, shape)
    return np.asarray(values if dtype.startswith("float") else np.round(values)).astype(dtype)


def _module(torch: Any, keras: Any, network: Any) -> Any:
    """The network as a module that takes tensors in the order of its inputs and gives a tuple of tensors."""
    tree = keras.tree
    structure = getattr(getattr(network, "_functional", network), "_inputs_struct", None)

    class KerasNetwork(torch.nn.Module):  # type: ignore[misc]  # torch is seen as Any
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.recurrent = torch.nn.ModuleList(use_torch_layers(torch, network))

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            given = tree.pack_sequence_as(structure, list(tensors)) if structure is not None else tensors[0]
            return tuple(tree.flatten(self.network(given, training=self.training)))

    return KerasNetwork().eval()


def _output_names(keras: Any, network: Any) -> list[str]:
    """Keys where the network gives a dictionary, else the names of the layers that made the outputs; each once."""
    structure = getattr(getattr(network, "_functional", network), "_outputs_struct", None)
    if isinstance(structure, Mapping):
        names = [str(name) for name in keras.tree.flatten({key: key for key in structure})]
    else:
        names = [str(name) for name in getattr(network, "_functional", network).output_names]
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        unique.append(f"{name}_{seen[name]}" if seen[name] else name)
    return unique
