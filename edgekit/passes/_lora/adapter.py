"""Adapters as peft leaves them on disk: found, checked against the model, loaded and merged."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core.attention import without_fast_path
from edgekit.core.errors import ConfigError, PassError, nearest
from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA, TorchProgram, first_line
from edgekit.core.task import Task
from edgekit.passes._graph import tied_parameters
from edgekit.passes._lora.library import peft, torch_
from edgekit.passes._lora.training import checked, plain, probe

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<layer>.+?)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(?:\.weight)?")
_SHOWN = 5


@dataclass(frozen=True)
class Merged:
    """A model that an adapter was merged into.

    Attributes:
        module: The module, of the same structure as before.
        layers: How many layers the adapter is for.
        rank: Its rank, where it is the same for all layers that are not named in its own patterns.
        alpha: Its alpha, likewise.
        prefix: The module that the adapter was made for, by path; empty for the model itself.
        apart: How far the merged model is from the adapted one, as a share of its largest output.
    """

    module: Any
    layers: int
    rank: int
    alpha: float
    prefix: str
    apart: float


def folder_of(adapter: str, task: object | None) -> Path | None:
    """Where an adapter's folder is: beside the task's file, else in the current folder; None where it is in neither."""
    origin = getattr(sys.modules.get(type(task).__module__), "__file__", None)
    folders = [Path(origin).parent] if origin and task is not None else []
    return next((found for folder in (*folders, Path()) if (found := folder / adapter).is_dir()), None)


def files_of(adapter: str, task: object | None) -> tuple[Path, ...]:
    """The files of an adapter, as far as they are there."""
    folder = folder_of(adapter, task)
    return tuple(path for name in (CONFIG, WEIGHTS) if folder and (path := folder / name).is_file())


def merge(program: TorchProgram, adapter: str, task: Task | None) -> Merged:
    """Merge an adapter into a copy of a program's module.

    Args:
        program: The model; it is not changed.
        adapter: The adapter's folder.
        task: Says where the folder is, and gives inputs to compare by.

    Raises:
        ConfigError: The folder is none of an adapter, or its adapter was not made for this model.
        PassError: The merged weights are not finite, or do not compute what the adapter does.
    """
    folder = folder_of(adapter, task)
    if folder is None:
        raise ConfigError(
            f"lora: adapter: there is no folder '{adapter}', neither beside the task's file nor in '{Path.cwd()}'.",
            f"adapter: FOLDER, with {CONFIG} and {WEIGHTS} in it, as peft's save_pretrained writes it.",
        )
    _check_config(folder)
    shapes = _shapes(folder)
    module = copy.deepcopy(program.module)
    prefix = _prefix(module, shapes, folder.name)
    base = module.get_submodule(prefix)
    _check_base(module, prefix, shapes, folder.name)
    with peft() as library:
        config = library.LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = _loaded(library, base, config, folder)
        inputs, whole = probe(program, task), program.with_module(module)
        with without_fast_path():
            expected = whole.run(inputs)
        try:
            adapted.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise PassError(f"The adapter '{folder.name}' cannot be merged: {first_line(error)}") from error
    result = plain(program.module, module)
    apart = checked(program, result, inputs, expected)
    return Merged(result, len(shapes), int(config.r), float(config.lora_alpha), prefix, apart)


def _check_config(folder: Path) -> None:
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"lora: adapter: there is no {CONFIG} in '{folder}'.", "Name a folder that peft has written.")
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("peft_type")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"lora: adapter: '{path}' is no JSON of an adapter: {first_line(error)}") from error
    if kind != "LORA":
        raise ConfigError(f"lora: adapter: '{folder}' holds an adapter of the kind {kind!r}; this pass merges LORA.")


def _shapes(folder: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of an adapter's matrices, by layer and part."""
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / _PICKLE).is_file():
            raise ConfigError(
                f"lora: adapter: '{folder / _PICKLE}' is a pickle: reading it can run anything. It is not read.",
                "Where you trust it, write it anew: PeftModel.from_pretrained(base, FOLDER).save_pretrained(FOLDER).",
            )
        raise ConfigError(f"lora: adapter: there is no {WEIGHTS} in '{folder}'.")
    safetensors = require("safetensors", TORCH_EXTRA, "the pass lora")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:
        raise ConfigError(f"lora: adapter: '{path}' cannot be read: {first_line(error)}") from error
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        match = _KEY.fullmatch(key.removeprefix(_PREFIX))
        if match:
            found.setdefault(match["layer"], {})[match["part"]] = shape
    if not found:
        raise ConfigError(f"lora: adapter: '{path}' holds no matrix of an adapter.")
    return found


def _prefix(module: Any, layers: Iterable[str], name: str) -> str:
    """The path of the module that has all the adapter's layers: the model itself, or one that it is a wrapper around.

    Raises:
        ConfigError: There is none, or more than one.
    """
    known: set[str] = {path for path, _ in module.named_modules(remove_duplicate=False)}
    missing = {prefix: [one for one in layers if _below(prefix, one) not in known] for prefix in known}
    whole = sorted((prefix for prefix, lacking in missing.items() if not lacking), key=lambda p: (p.count("."), p))
    if not whole:
        best = min(missing, key=lambda prefix: (len(missing[prefix]), len(prefix)))
        lacking = missing[best]
        guess = nearest(_below(best, lacking[0]), known)
        raise ConfigError(
            f"lora: adapter: '{name}' was made for another model: this one has no {_listed(lacking)}."
            f"{f' The nearest is {guess!r}.' if guess else ''}",
            "Name the factory that builds the adapter's base.",
        )
    if "" not in whole and len(whole) > 1:
        raise ConfigError(
            f"lora: adapter: '{name}' fits {_listed(whole)} of this model alike.",
            "Merge it in the model's factory: PeftModel.from_pretrained(part, FOLDER).merge_and_unload().",
        )
    return whole[0]


def _below(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix else path


def _check_base(module: Any, prefix: str, shapes: Mapping[str, Mapping[str, tuple[int, ...]]], name: str) -> None:
    nn = torch_().nn
    tied = tied_parameters(module)
    for path in shapes:
        if f"{_below(prefix, path)}.weight" in tied:
            raise ConfigError(
                f"lora: adapter: '{name}' adapts '{path}', which shares its weight with another layer: merging would"
                " change both.",
                f"Untie them in the factory: {path}.weight = nn.Parameter({path}.weight.detach().clone())",
            )
    wrong = []
    for path, parts in shapes.items():
        layer = module.get_submodule(_below(prefix, path))
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) and {"A", "B"} <= parts.keys():
            has = int(layer.weight.shape[0]), int(layer.weight.shape[1])
            wants = int(parts["B"][0]), int(parts["A"][1])
            if has != wants:
                wrong.append(f"'{path}' ({wants[1]} → {wants[0]}; here {has[1]} → {has[0]})")
    if wrong:
        raise ConfigError(
            f"lora: adapter: '{name}' was made for a model of other sizes: {_joined(wrong)}.",
            "Name the factory that builds the adapter's base.",
        )


def _loaded(library: Any, base: Any, config: Any, folder: Path) -> Any:
    """The base with the adapter in it, in place.

    Raises:
        ConfigError: They do not fit together.
    """
    try:
        adapted = library.PeftModel(base, config)
        result = adapted.load_adapter(str(folder), "default", torch_device="cpu")
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"lora: adapter: peft cannot put '{folder.name}' into this model: {first_line(error)}",
            "Name the factory that builds the adapter's base.",
        ) from error
    missing = [key.removeprefix(_PREFIX).partition(".lora_")[0] for key in result.missing_keys if ".lora_" in key]
    if missing:
        raise ConfigError(
            f"lora: adapter: '{folder.name}' was made for a smaller model: it has no weights for"
            f" {_listed(list(dict.fromkeys(missing)))}.",
            "Name the factory that builds the adapter's base.",
        )
    return adapted.eval()


def _listed(names: list[str]) -> str:
    return _joined([f"'{name}'" for name in names])


def _joined(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
