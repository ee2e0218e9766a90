"""A `.pt2` file, as `torch.export.save` writes it: compilable, not trainable."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.model import Model
from edgekit.core.program import TORCH_EXTRA, ExportedProgramOnly, first_line, flatten
from edgekit.frontends.base import Frontend, SourceRequest, input_specs, output_specs

if TYPE_CHECKING:
    from edgekit.core.task import Array


_PICKLED_PREFIXES = ("custom_obj_", "opaque_obj_")


class ExportedProgram(Frontend):
    """Reads a `.pt2` file."""

    summary: ClassVar[str] = "a program saved by torch.export.save"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)
    extra: ClassVar[str] = TORCH_EXTRA

    def load(self, request: SourceRequest) -> Model:
        """See `Frontend.load`."""
        torch = require("torch", TORCH_EXTRA, f"the source {request.source}")
        if not request.path.is_file():
            raise ConfigError(f"There is no file '{request.path}'.")
        _refuse_pickled_objects(request.path)
        try:
            with _weights_only():
                exported = torch.export.load(request.path)
        except Exception as error:
            raise ConfigError(
                f"'{request.path.name}' is not a program that torch.export.save of this or an earlier torch wrote:"
                f" {first_line(error)}",
                "Save it anew: torch.export.save(torch.export.export(module, args), 'net.pt2')",
            ) from error
        tensors = _example_tensors(exported, request)
        examples: dict[str, Array] = {name: tensor.numpy() for name, tensor in tensors.items()}
        inputs = input_specs(
            request,
            tuple(examples),
            {n: a.shape for n, a in examples.items()},
            {n: str(a.dtype) for n, a in examples.items()},
        )
        flat = _positional(exported, tuple(tensors.values()))
        with torch.no_grad():
            names, values = flatten(flat.module()(*tensors.values()))
        specs = output_specs(
            request, names, [tuple(v.shape) for v in values], [str(v.dtype).removeprefix("torch.") for v in values]
        )
        program = ExportedProgramOnly(flat, tuple(examples), tuple(spec.name for spec in specs))
        return Model(request.name, program, inputs, specs, examples, program.digest(), request.source)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Keep torch from unpickling anything but tensors: its reader of `.pt2` files falls back to plain pickle."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _refuse_pickled_objects(path: Path) -> None:
    """Refuse a program that carries objects which only pickle can restore; the switch above does not cover those.

    Raises:
        ConfigError: It is no archive.
        UnsupportedModelError: It carries such an object.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            configs = [name for name in archive.namelist() if name.endswith("_config.json")]
            described = [json.loads(archive.read(name)) for name in configs]
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise ConfigError(
            f"'{path.name}' is not a program that torch.export.save wrote: {first_line(error)}",
            "Save it anew: torch.export.save(torch.export.export(module, args), 'net.pt2')",
        ) from error
    for config in described:
        entries = config.get("config", config) if isinstance(config, dict) else {}
        names += [str(entry.get("path_name", "")) for entry in entries.values() if isinstance(entry, dict)]
    pickled = [name for name in names if name.startswith(_PICKLED_PREFIXES)]
    if pickled:
        raise UnsupportedModelError(
            f"'{path.name}' holds the pickled object '{pickled[0]}'; unpickling runs whatever its author put there.",
            "Export a module without custom script objects, or use its factory: model.py:build",
        )


def _example_tensors(exported: Any, request: SourceRequest) -> dict[str, Any]:
    """Example inputs by name: those saved with the program, else made up from its signature."""
    torch = require("torch", TORCH_EXTRA, f"the source {request.source}")
    placeholders = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    examples = {}
    saved = torch.utils._pytree.tree_leaves(exported.example_inputs) if exported.example_inputs else []
    generator = torch.Generator().manual_seed(0)
    for index, name in enumerate(exported.graph_signature.user_inputs):
        value: Any = placeholders.get(name)
        if not hasattr(value, "shape"):
            raise UnsupportedModelError(f"The input '{name}' of {request.source} is not a tensor.")
        if any(not isinstance(size, int) for size in value.shape):
            raise UnsupportedModelError(
                f"The input '{name}' of {request.source} has dynamic shape {list(map(str, value.shape))}; artifacts have"
                " static shapes.",
                "Export it anew without dynamic_shapes.",
            )
        if index < len(saved) and isinstance(saved[index], torch.Tensor):
            examples[name] = saved[index].detach().contiguous()
        elif value.dtype.is_floating_point:
            examples[name] = torch.rand(tuple(value.shape), generator=generator).to(value.dtype)
        else:
            examples[name] = torch.zeros(tuple(value.shape), dtype=value.dtype)
    return examples


def _positional(exported: Any, examples: tuple[Any, ...]) -> Any:
    """The program with every input positional: backends call it by order."""
    torch = require("torch", TORCH_EXTRA, "a .pt2 program")
    in_spec: Any = exported.call_spec.in_spec
    if in_spec is None:
        return exported
    positional, keyword = in_spec.children()
    if keyword.num_leaves == 0 and positional.num_leaves == positional.num_children:
        return exported
    inner = exported.module()

    class Positional(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is seen as Any
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *tensors: Any) -> Any:
            args, kwargs = torch.utils._pytree.tree_unflatten(list(tensors), in_spec)
            return self.inner(*args, **kwargs)

    return torch.export.export(Positional(), examples, strict=False)
