"""Program: what computes in a model. One of three kinds, each with what can be done with it.

    TorchProgram           a live nn.Module: trainable, every pass can take it
    ExportedProgramOnly    a `.pt2`: can be compiled and run, not trained
    OnnxProgram            an `.onnx` file: read directly by the backends that read ONNX

A program is called with arrays by input name and answers with arrays by output name. The torch libraries are imported
inside the methods: this module describes programs to code that has no torch.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.files import sha256_file

if TYPE_CHECKING:
    from edgekit.core.task import Array

TORCH_EXTRA = "torch"
ONNX_EXTRA = "onnx"


class Program(abc.ABC):
    """What computes in a model."""

    format: str
    """What it is on disk when a backend reads it: `pt2` or `onnx`."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    @abc.abstractmethod
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs, by name, for one batch of exactly the specs' shapes."""

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Write the program where a backend's child process reads it."""

    @abc.abstractmethod
    def digest(self) -> str:
        """Hash of structure and weights."""

    @abc.abstractmethod
    def parameter_count(self) -> int:
        """Number of weights."""

    def weights_digest(self) -> str:
        """Hash of the weights alone: cheaper than `digest`, and enough to see whether a factory repeats itself."""
        return self.digest()


class TorchProgram(Program):
    """A live `nn.Module`.

    Args:
        module: The user's module, in evaluation mode.
        input_names: Names of the inputs, in calling order.
        output_names: Names of the outputs, in the order in which they are flattened.
        by_keyword: Whether the module's forward takes the inputs as keyword arguments of these names.
        example_inputs: Arrays of the shapes it is exported for.
    """

    format = "pt2"

    def __init__(
        self,
        module: Any,
        input_names: tuple[str, ...],
        output_names: tuple[str, ...],
        by_keyword: bool,
        example_inputs: Mapping[str, Array],
    ) -> None:
        self.module = module
        self.input_names = input_names
        self.output_names = output_names
        self.by_keyword = by_keyword
        self.example_inputs = example_inputs

    @cached_property
    def flat(self) -> Any:
        """The module behind positional tensors in and a tuple of tensors out: what is exported.

        Module paths in its graph carry the prefix `inner.`.
        """
        torch = require("torch", TORCH_EXTRA, "a torch model")

        class Flat(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is seen as Any
            def __init__(self, inner: Any, keywords: tuple[str, ...] | None) -> None:
                super().__init__()
                self.inner = inner
                self._keywords = keywords

            def forward(self, *tensors: Any) -> tuple[Any, ...]:
                if self._keywords is not None:
                    outputs = flatten(self.inner(**dict(zip(self._keywords, tensors, strict=True))))[1]
                else:
                    outputs = flatten(self.inner(*tensors))[1]
                return _distinct(outputs, tensors)

        return Flat(self.module, self.input_names if self.by_keyword else None).eval()

    def tensors(self, inputs: Mapping[str, Array]) -> tuple[Any, ...]:
        """The inputs as torch tensors in calling order."""
        torch = require("torch", TORCH_EXTRA, "a torch model")
        import numpy as np

        return tuple(torch.from_numpy(np.array(inputs[name])) for name in self.input_names)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Program.run`."""
        torch = require("torch", TORCH_EXTRA, "a torch model")
        with torch.no_grad():
            outputs = self.flat(*self.tensors(inputs))
        return {name: tensor.numpy() for name, tensor in zip(self.output_names, outputs, strict=True)}

    @cached_property
    def exported(self) -> Any:
        """The `torch.export.ExportedProgram`, made once and kept.

        Raises:
            UnsupportedModelError: torch.export cannot capture the module.
        """
        torch = require("torch", TORCH_EXTRA, "a torch model")
        flat = self.flat
        # Converters have been seen to corrupt non-contiguous weights silently (typical of factors from an SVD).
        with torch.no_grad():
            for parameter in (*flat.parameters(), *flat.buffers()):
                if not parameter.is_contiguous():
                    parameter.data = parameter.data.contiguous()
        try:
            return torch.export.export(flat, self.tensors(self.example_inputs), strict=False)
        except Exception as error:
            raise UnsupportedModelError(
                f"torch.export cannot capture this model: {first_line(error)}",
                "Run with --verbose for torch's own words. Usual causes: control flow that depends on values of"
                " tensors, and calls of .item() or .numpy() in forward.",
            ) from error

    def save(self, path: Path) -> None:
        """Write a `.pt2`."""
        torch = require("torch", TORCH_EXTRA, "a torch model")
        torch.export.save(self.exported, path)

    def digest(self) -> str:
        """Hash of the graph and of every weight and constant in it."""
        return exported_digest(self.exported)

    def parameter_count(self) -> int:
        """Number of parameters of the module."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def weights_digest(self) -> str:
        """See `Program.weights_digest`."""
        return tensors_digest(self.module.state_dict())

    def with_module(self, module: Any) -> TorchProgram:
        """The same interface around another module."""
        return TorchProgram(module, self.input_names, self.output_names, self.by_keyword, self.example_inputs)


class ExportedProgramOnly(Program):
    """A `.pt2` file: compilable, not trainable.

    Args:
        exported: The loaded `ExportedProgram`, with positional inputs.
        input_names: Names of the inputs, in calling order.
        output_names: Names of the outputs, in order.
    """

    format = "pt2"

    def __init__(self, exported: Any, input_names: tuple[str, ...], output_names: tuple[str, ...]) -> None:
        self.exported = exported
        self.input_names = input_names
        self.output_names = output_names

    @cached_property
    def _module(self) -> Any:
        return self.exported.module()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Program.run`."""
        torch = require("torch", TORCH_EXTRA, "a .pt2 program")
        import numpy as np

        with torch.no_grad():
            result = self._module(*(torch.from_numpy(np.array(inputs[n])) for n in self.input_names))
        return {name: tensor.numpy() for name, tensor in zip(self.output_names, flatten(result)[1], strict=True)}

    def save(self, path: Path) -> None:
        """Write it back out."""
        torch = require("torch", TORCH_EXTRA, "a .pt2 program")
        torch.export.save(self.exported, path)

    def digest(self) -> str:
        """Hash of the graph and of every weight and constant in it."""
        return exported_digest(self.exported)

    def parameter_count(self) -> int:
        """Number of weights in the program's state."""
        return sum(tensor.numel() for tensor in self.exported.state_dict.values() if tensor.is_floating_point())


class OnnxProgram(Program):
    """An `.onnx` file, already checked.

    Args:
        path: The file; weights in external files lie beside it.
        input_names: Names of the inputs, in the graph's order.
        output_names: Names of the outputs, in the graph's order.
        external_files: Files beside it that hold weights.
    """

    format = "onnx"

    def __init__(
        self,
        path: Path,
        input_names: tuple[str, ...],
        output_names: tuple[str, ...],
        external_files: Sequence[Path] = (),
    ) -> None:
        self.path = path
        self.input_names = input_names
        self.output_names = output_names
        self.external_files = tuple(external_files)

    @cached_property
    def _session(self) -> Any:
        ort = require("onnxruntime", ONNX_EXTRA, "running an ONNX model")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Program.run`; ONNX Runtime on the CPU is the reference."""
        outputs = self._session.run(list(self.output_names), {name: inputs[name] for name in self.input_names})
        return dict(zip(self.output_names, outputs, strict=True))

    def save(self, path: Path) -> None:
        """Write it as one file, weights inside."""
        onnx = require("onnx", ONNX_EXTRA, "an ONNX model")
        onnx.save_model(onnx.load(str(self.path)), str(path))

    def digest(self) -> str:
        """Hash of the file and of the files that hold its weights."""
        parts = [sha256_file(path) for path in (self.path, *self.external_files)]
        return hashlib.sha256(":".join(parts).encode()).hexdigest()

    def parameter_count(self) -> int:
        """Number of elements of all initializers."""
        onnx = require("onnx", ONNX_EXTRA, "an ONNX model")
        import math

        model = onnx.load(str(self.path), load_external_data=False)
        return sum(math.prod(initializer.dims) for initializer in model.graph.initializer)


def _distinct(outputs: list[Any], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The outputs, each a tensor of its own: runtimes name tensors, and one tensor has one name."""
    seen = {id(tensor) for tensor in inputs}
    found = []
    for tensor in outputs:
        # Not clone(): converters see through it.
        again = id(tensor) in seen and str(tensor.dtype) != "torch.bool"
        found.append(tensor + 0 if again else tensor)
        seen.add(id(tensor))
    return tuple(found)


def flatten(value: Any) -> tuple[list[str], list[Any]]:
    """The tensors in what a module returned, in order, and a name for each.

    A single tensor is `output`; a tuple gives `output_0`, `output_1`, …; mappings and objects with fields (as Hugging
    Face models return) give their keys.

    Raises:
        UnsupportedModelError: There is something in it that is no tensor.
    """
    names: list[str] = []
    tensors: list[Any] = []

    def visit(name: str, item: Any) -> None:
        if item is None:
            return
        if hasattr(item, "detach") and hasattr(item, "shape"):
            names.append(name or "output")
            tensors.append(item)
        elif isinstance(item, Mapping):
            for key, inner in item.items():
                visit(f"{name}_{key}" if name else str(key), inner)
        elif isinstance(item, list | tuple):
            if hasattr(item, "_fields"):
                for key, inner in zip(item._fields, item, strict=True):
                    visit(f"{name}_{key}" if name else str(key), inner)
            elif len(item) == 1:
                visit(name, item[0])
            else:
                for index, inner in enumerate(item):
                    visit(f"{name or 'output'}_{index}", inner)
        else:
            raise UnsupportedModelError(
                f"The model returns a {type(item).__name__}{f' as {name!r}' if name else ''}; only tensors can be"
                " outputs of a compiled model.",
                "Return a tensor, a tuple of tensors, or a dict of name → tensor.",
            )

    visit("", value)
    if not tensors:
        raise UnsupportedModelError("The model returns no tensor.", "Return a tensor, a tuple or a dict of tensors.")
    return names, tensors


def exported_digest(exported: Any) -> str:
    """Hash of an ExportedProgram: its graphs, and the name, shape, type and bytes of every weight and constant."""
    digest = hashlib.sha256()
    for name, graph_module in exported.graph_module.named_modules():
        if not hasattr(graph_module, "graph"):
            continue
        digest.update(f"graph {name}\n".encode())
        for node in graph_module.graph.nodes:
            # Not the printed graph: that holds paths and lines of the person's files.
            value = node.meta.get("val")
            shape = f"{tuple(value.shape)}:{value.dtype}" if hasattr(value, "shape") else ""
            digest.update(f"{node.op}|{node.name}|{node.target}|{node.args}|{node.kwargs}|{shape}\n".encode())
    digest.update(str(exported.graph_signature).encode())
    constants = {key: value for key, value in exported.constants.items() if hasattr(value, "detach")}
    digest.update(tensors_digest(exported.state_dict | constants).encode())
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, Any]) -> str:
    """Hash of the name, shape, type and bytes of torch tensors."""
    torch = require("torch", TORCH_EXTRA, "a torch model")
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(array.shape)}:{array.dtype}\n".encode())
        if array.numel():
            digest.update(array.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line with words in it of an exception's message: what fits in ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
