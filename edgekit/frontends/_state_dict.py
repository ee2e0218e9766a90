"""A state dict from a file, loaded into a module: tensors only, nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.core.errors import ConfigError, nearest
from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA, first_line

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN = 5


def load_weights(module: Any, path: Path) -> None:
    """Load a `.pt`, `.pth` or `.safetensors` file into a module.

    Checkpoints of training loops are understood: a state dict under a key such as `state_dict`, and names that a
    wrapper (DataParallel, torch.compile, Lightning) has put a prefix before.

    Raises:
        ConfigError: The file is missing, holds more than tensors, or its names or shapes are not the module's.
    """
    if not path.is_file():
        raise ConfigError(f"There is no file '{path}'.", "Check `weights:` in edgekit.yaml, or --weights.")
    state = _unprefixed(_unwrapped(_read(path)), module.state_dict())
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        parts = []
        if missing:
            guesses = [f"{name} (nearest there: {nearest(name, unknown) or 'none'})" for name in missing[:_SHOWN]]
            parts.append(f"it lacks {len(missing)}: {', '.join(guesses)}")
        if unknown:
            parts.append(f"the module does not know {len(unknown)} of it: {', '.join(unknown[:_SHOWN])}")
        raise ConfigError(f"The weights in '{path.name}' are not those of this module: {'; '.join(parts)}.")
    for name, tensor in own.items():
        if tuple(tensor.shape) != tuple(state[name].shape):
            raise ConfigError(
                f"In '{path.name}' the tensor '{name}' has the shape {list(state[name].shape)}; the module's has"
                f" {list(tensor.shape)}.",
                "Check the sizes that the factory builds with.",
            )
    module.load_state_dict(state)


def _read(path: Path) -> Any:
    torch = require("torch", TORCH_EXTRA, f"the weights '{path.name}'")
    try:
        if path.suffix == ".safetensors":
            return require("safetensors.torch", TORCH_EXTRA, f"the weights '{path.name}'").load_file(str(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(
            f"'{path.name}' cannot be read as a file of tensors alone: {first_line(error)}",
            "Save it anew: torch.save(module.state_dict(), 'net.pt')",
        ) from error


def _unwrapped(loaded: Any) -> Mapping[str, Any]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(hasattr(value, "shape") for value in loaded.values()):
        raise ConfigError(
            "The weights file holds no state dict: a mapping of names to tensors.",
            "Save it anew: torch.save(module.state_dict(), 'net.pt')",
        )
    return loaded


def _unprefixed(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The state with a prefix removed that all of its names share and that the module's names do not."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state) and not all(n.startswith(prefix) for n in own):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)
