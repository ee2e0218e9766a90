"""Frontend: reads one kind of source into a Model."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.model import Dtype, Layout, Model, Normalize, TensorSpec
from edgekit.core.registry import Registry

DTYPES: tuple[str, ...] = Dtype.__args__  # type: ignore[attr-defined]  # typing.Literal keeps its choices there


@dataclass(frozen=True)
class InputDeclaration:
    """What a person says about an input in `edgekit.yaml`; only what the source does not say itself is needed.

    Attributes:
        name: Name of the input.
        shape: Static sizes, the batch first.
        dtype: Element type.
        layout: What the axes mean.
        normalize: How raw values become the input's.
        range: Smallest and largest value that makes sense.
    """

    name: str
    shape: tuple[int, ...] | None = None
    dtype: Dtype | None = None
    layout: Layout | None = None
    normalize: Normalize | None = None
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class OutputDeclaration:
    """What a person says about an output in `edgekit.yaml`.

    Attributes:
        name: Name of the output.
        labels: Names of the classes along its last axis.
    """

    name: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceRequest:
    """What is to be read.

    Attributes:
        source: As the person wrote it: `model.py:build`, `net.pt2`, `net.onnx`.
        folder: Where relative paths in it start.
        name: The model's name.
        inputs: What the person says about the inputs.
        outputs: What the person says about the outputs, in order.
        weights: A file with a state dict that is loaded into what the factory builds, where there is one.
    """

    source: str
    folder: Path
    name: str
    inputs: tuple[InputDeclaration, ...] = ()
    outputs: tuple[OutputDeclaration, ...] = ()
    weights: str | None = None

    @property
    def path(self) -> Path:
        """The source's file."""
        return self.folder / split_source(self.source)[0]


class Frontend(abc.ABC):
    """Reads one kind of source."""

    summary: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """File name endings that it reads."""
    extra: ClassVar[str]
    """The extra of edgekit that it needs."""

    @abc.abstractmethod
    def load(self, request: SourceRequest) -> Model:
        """Read the source.

        Raises:
            ConfigError: The file is missing or is not what its name says.
            UnsupportedModelError: It is, and cannot be taken; the message names what stands in the way.
        """

    def to_torch(self, model: Model) -> Model:
        """A model of this frontend as a live torch module, for passes and for backends that do not read its format.

        Raises:
            UnsupportedModelError: It has no such form.
        """
        raise UnsupportedModelError(
            f"{model.source} is a {model.program.format} program, which cannot be turned into a live torch module.",
            "Point `source` at the factory that builds the module: model.py:build",
        )


registry: Registry[Frontend] = Registry("frontend", "edgekit.frontends", Frontend)  # type: ignore[type-abstract]


def split_source(source: str) -> tuple[str, str]:
    """`model.py:build` as file and name of the factory; the name is empty where none is given."""
    head, colon, tail = source.rpartition(":")
    if colon and head and tail.isidentifier():
        return head, tail
    return source, ""


def frontend_for(source: str) -> Frontend:
    """The frontend that reads `source`, chosen by its file name.

    Raises:
        ConfigError: None reads such a file.
    """
    file, _ = split_source(source)
    known: dict[str, str] = {}
    for name in registry.names():
        frontend = registry.get(name)
        for suffix in frontend.suffixes:
            known[suffix] = frontend.summary
            if file.endswith(suffix):
                return registry.create(name)
    listing = "; ".join(f"*{suffix}: {summary}" for suffix, summary in sorted(known.items()))
    raise ConfigError(
        f"'{source}' is not a source that edgekit can read. It reads {listing}.",
        "edgekit compile model.py:build --target linux-x86",
    )


def input_specs(
    request: SourceRequest,
    names: tuple[str, ...],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
) -> tuple[TensorSpec, ...]:
    """Specs from what the source says, completed by what the person says.

    Raises:
        ConfigError: The person names an input that the source does not have.
        UnsupportedModelError: The two differ, or a type is one that no target takes.
    """
    declared = {declaration.name: declaration for declaration in request.inputs}
    for name in declared:
        if name not in names:
            raise ConfigError(
                f"edgekit.yaml declares an input '{name}', but {request.source} has: {', '.join(names)}.",
                "Use the source's own names, or rename its forward() arguments.",
            )
    specs = []
    for name in names:
        said = declared.get(name)
        shape, dtype = tuple(shapes[name]), dtypes[name]
        if said is not None and said.shape is not None and tuple(said.shape) != shape:
            raise UnsupportedModelError(
                f"The input '{name}' of {request.source} has the shape {list(shape)}, but edgekit.yaml says"
                f" {list(said.shape)}.",
                f"In edgekit.yaml: inputs: [{{name: {name}, shape: {list(shape)}}}]",
            )
        if said is not None and said.dtype is not None and said.dtype != dtype:
            raise UnsupportedModelError(
                f"The input '{name}' of {request.source} is {dtype}, but edgekit.yaml says {said.dtype}."
            )
        specs.append(
            TensorSpec(
                name=name,
                shape=shape,
                dtype=checked_dtype(dtype, f"input '{name}'"),
                layout=said.layout if said else None,
                normalize=said.normalize if said else None,
                value_range=said.range if said else None,
            )
        )
    return tuple(specs)


def output_specs(
    request: SourceRequest, names: list[str], shapes: list[tuple[int, ...]], dtypes: list[str]
) -> tuple[TensorSpec, ...]:
    """Specs of the outputs; names that the person declares replace the source's, in order.

    Raises:
        ConfigError: The person declares another number of outputs than there are, or labels of the wrong count.
    """
    if request.outputs and len(request.outputs) != len(names):
        raise ConfigError(
            f"edgekit.yaml declares {len(request.outputs)} outputs, but {request.source} has {len(names)}:"
            f" {', '.join(names)}."
        )
    specs = []
    for index, (name, shape, dtype) in enumerate(zip(names, shapes, dtypes, strict=True)):
        said = request.outputs[index] if request.outputs else None
        if said is not None and said.labels and len(said.labels) != (shape[-1] if shape else 1):
            raise ConfigError(
                f"The output '{said.name}' has {shape[-1] if shape else 1} classes, but edgekit.yaml gives"
                f" {len(said.labels)} labels."
            )
        specs.append(
            TensorSpec(
                name=said.name if said else name,
                shape=tuple(shape),
                dtype=checked_dtype(dtype, f"output '{name}'"),
                labels=said.labels if said else (),
            )
        )
    return tuple(specs)


def checked_dtype(dtype: str, what: str) -> Dtype:
    """`dtype` where some target can take it.

    Raises:
        UnsupportedModelError: None can.
    """
    if dtype not in DTYPES:
        raise UnsupportedModelError(f"The {what} is {dtype}; edgekit takes {', '.join(DTYPES)}.")
    return dtype  # type: ignore[return-value]  # just checked to be one of the choices
