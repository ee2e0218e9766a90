"""A factory that builds an `nn.Module`: `model.py:build`.

The factory returns the module, or `(module, example_inputs)` with a tuple (matched to the arguments of `forward` in
order) or a dict of name → tensor (passed by keyword). A script with `get_model()` and `get_args()` works too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.model import Model
from edgekit.core.program import TORCH_EXTRA, TorchProgram, first_line, flatten
from edgekit.core.user_code import blame_user, load_module, load_name
from edgekit.frontends._state_dict import load_weights
from edgekit.frontends.base import Frontend, SourceRequest, checked_dtype, input_specs, output_specs, split_source

if TYPE_CHECKING:
    from edgekit.core.task import Array


class TorchModule(Frontend):
    """Reads a Python factory."""

    summary: ClassVar[str] = "a Python file with a factory that returns an nn.Module, as FILE.py:NAME"
    suffixes: ClassVar[tuple[str, ...]] = (".py",)
    extra: ClassVar[str] = TORCH_EXTRA

    def load(self, request: SourceRequest) -> Model:
        """See `Frontend.load`."""
        torch = require("torch", TORCH_EXTRA, f"the source {request.source}")
        module, given = _call_factory(request)
        if not isinstance(module, torch.nn.Module):
            raise ConfigError(
                f"{request.source} returned {type(module).__name__!r}, not an nn.Module.",
                "Return the module, or (module, example_inputs).",
            )
        if request.weights is not None:
            load_weights(module, request.folder / request.weights)
        module.eval()
        # Inputs that the person declares by forward's own names may come in any order.
        declared = {declaration.name for declaration in request.inputs}
        by_keyword = isinstance(given, Mapping) or (given is None and declared <= set(_keywords(module)))
        tensors = _example_tensors(request, module, given)
        for name, tensor in tensors.items():
            checked_dtype(str(tensor.dtype).removeprefix("torch."), f"input '{name}' of {request.source}")
        examples: dict[str, Array] = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        names = tuple(examples)
        inputs = input_specs(
            request, names, {n: a.shape for n, a in examples.items()}, {n: str(a.dtype) for n, a in examples.items()}
        )
        outputs = _run_once(request, module, tensors, by_keyword)
        output_names, values = flatten(outputs)
        specs = output_specs(
            request,
            output_names,
            [tuple(v.shape) for v in values],
            [str(v.dtype).removeprefix("torch.") for v in values],
        )
        program = TorchProgram(module, names, tuple(spec.name for spec in specs), by_keyword, examples)
        return Model(request.name, program, inputs, specs, examples, program.digest(), request.source)


def _call_factory(request: SourceRequest) -> tuple[Any, Any]:
    _, name = split_source(request.source)
    if name:
        factory = load_name(request.path, name)
        if not callable(factory):
            raise ConfigError(f"'{name}' in {request.path.name} cannot be called; it should be a function.")
        with blame_user(f"calling {request.source}()"):
            made = factory()
        return (made[0], made[1]) if isinstance(made, tuple) and len(made) == 2 else (made, None)
    user = load_module(request.path)
    if not hasattr(user, "get_model"):
        functions = [key for key, value in vars(user).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise ConfigError(
            f"{request.source} does not say which function builds the model. It defines: {', '.join(functions) or 'none'}.",
            f"Write {request.source}:{functions[0] if functions else 'build'}",
        )
    with blame_user(f"calling get_model() of {request.source}"):
        return user.get_model(), user.get_args() if hasattr(user, "get_args") else None


def _example_tensors(request: SourceRequest, module: Any, given: Any) -> dict[str, Any]:
    """Example inputs by name, in calling order; made up from the declared shapes where the factory gives none."""
    torch = require("torch", TORCH_EXTRA, f"the source {request.source}")
    if given is None:
        if not request.inputs:
            raise ConfigError(
                f"{request.source} gives no example inputs, and edgekit.yaml declares none.",
                "Return (module, example_inputs), or declare: inputs: [{name: image, shape: [1, 3, 224, 224]}]",
            )
        made = {}
        generator = torch.Generator().manual_seed(0)
        for declared in request.inputs:
            if declared.shape is None:
                raise ConfigError(f"The input '{declared.name}' in edgekit.yaml needs a `shape`.")
            dtype = getattr(torch, declared.dtype or "float32")
            if dtype.is_floating_point:
                low, high = declared.range or (0.0, 1.0)
                made[declared.name] = (torch.rand(declared.shape, generator=generator) * (high - low) + low).to(dtype)
            else:
                low, high = (int(bound) for bound in declared.range or (0, 1))
                made[declared.name] = torch.randint(low, high + 1, declared.shape, generator=generator).to(dtype)
        return made
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        values = list(given) if isinstance(given, tuple | list) else [given]
        pairs = list(zip(_argument_names(request, module, len(values)), values, strict=True))
    for name, value in pairs:
        if not isinstance(value, torch.Tensor):
            raise ConfigError(
                f"The example input '{name}' of {request.source} is a {type(value).__name__}, not a tensor."
            )
    return dict(pairs)


def _keywords(module: Any) -> list[str]:
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _argument_names(request: SourceRequest, module: Any, count: int) -> list[str]:
    parameters = inspect.signature(module.forward).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        positional += [f"input_{index}" for index in range(len(positional), count)]
    if len(positional) < count:
        raise ConfigError(
            f"{request.source} gives {count} example inputs, but the module's forward takes {len(positional)}:"
            f" {', '.join(positional) or 'none'}."
        )
    # Names in edgekit.yaml, given for all inputs in order, take the place of forward's own.
    if len(request.inputs) == count and not any(d.name in positional for d in request.inputs):
        return [declared.name for declared in request.inputs]
    return positional[:count]


def _run_once(request: SourceRequest, module: Any, tensors: Mapping[str, Any], by_keyword: bool) -> Any:
    torch = require("torch", TORCH_EXTRA, f"the source {request.source}")
    try:
        with torch.no_grad():
            return module(**tensors) if by_keyword else module(*tensors.values())
    except Exception as error:
        shapes = ", ".join(
            f"{name} {list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in tensors.items()
        )
        raise UnsupportedModelError(
            f"The model of {request.source} cannot be run with its example inputs ({shapes}): {first_line(error)}",
            "Check the shapes that the factory returns or that edgekit.yaml declares.",
        ) from error
