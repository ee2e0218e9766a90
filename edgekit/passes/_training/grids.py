"""A module with its weights and activations on grids while it trains, and what is left of that afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekit.core.errors import PassError
from edgekit.core.extras import require
from edgekit.core.grid import Grid, Trained
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.task import Batch, TrainableTask
from edgekit.passes._training.examples import training_batches
from edgekit.passes._training.fake_quantize import activation_grid, weight_grid
from edgekit.passes._training.hooks import Hooks
from edgekit.passes._training.layers import Layer

_INPUT, _OUTPUT = "edgekit_input_grid", "edgekit_output_grid"
_FITTED_BATCHES = 8
"""Batches that the ranges of activations are fitted to."""


def install(
    module: Any, layers: Sequence[Layer], bits: Mapping[str, int], activation_bits: int | None
) -> dict[str, Any]:
    """Put weights on grids, and the activations of plain layers where they are to be rounded too.

    Args:
        module: The module; changed in place.
        layers: Its layers.
        bits: Bits of each layer's weights, by its key; others are left alone.
        activation_bits: Bits of the activations; None leaves them alone.

    Returns:
        The weights' grids by layer.
    """
    torch = require("torch", TORCH_EXTRA, "quantization-aware training")
    grids = {}
    for layer in layers:
        if layer.key not in bits:
            continue
        owner = module.get_submodule(layer.path)
        grids[layer.key] = weight_grid()(getattr(owner, layer.parameter), bits[layer.key], layer.axis)
        torch.nn.utils.parametrize.register_parametrization(owner, layer.parameter, grids[layer.key])
        if activation_bits is not None and layer.plain:
            owner.add_module(_INPUT, activation_grid()(activation_bits))
            owner.register_forward_pre_hook(_round_input)
            if not layer.fused:
                owner.add_module(_OUTPUT, activation_grid()(activation_bits))
                owner.register_forward_hook(_round_output)
    return grids


def _round_input(owner: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return (getattr(owner, _INPUT)(arguments[0]), *arguments[1:]) if arguments else None


def _round_output(owner: Any, _arguments: tuple[Any, ...], result: Any) -> Any:
    return getattr(owner, _OUTPUT)(result)


def fit_activations(program: TorchProgram, task: TrainableTask) -> None:
    """Set the ranges of activations by some batches of the calibration split, of the training split without one."""
    torch = require("torch", TORCH_EXTRA, "quantization-aware training")
    grids = [grid for grid in program.module.modules() if isinstance(grid, activation_grid())]
    if not grids:
        return
    program.flat.eval()
    for grid in grids:
        grid.observing = True
    with torch.no_grad():
        for inputs in itertools.islice(_some_inputs(program, task), _FITTED_BATCHES):
            program.flat(*program.tensors(inputs))
    for grid in grids:
        grid.observing = False
        grid.fit()


def _some_inputs(program: TorchProgram, task: TrainableTask) -> Iterator[Batch]:
    empty = True
    for inputs in task.examples("calibration"):
        empty = False
        yield inputs
    if empty:
        yield from (inputs for inputs, _ in training_batches(program, task))


def finished(trained: Any, fresh: Any, layers: Sequence[Layer], grids: Mapping[str, Any]) -> Trained:
    """Give a module of the original structure what was trained, its weights exactly on their grids.

    Not by taking the grids out of the module that was trained: parameters would come in another order, and the
    checkpoint would not be the model that was saved.

    Args:
        trained: The module with grids in it.
        fresh: A copy of the original; its state is changed in place.
        layers: The layers.
        grids: The weights' grids by layer.

    Returns:
        What backends need of the grids and ranges.

    Raises:
        PassError: A weight has no scale that float32 can hold.
    """
    torch = require("torch", TORCH_EXTRA, "quantization-aware training")
    state = {name: value for name, value in trained.state_dict().items() if name in fresh.state_dict()}
    found: dict[str, Grid] = {}
    ranges: dict[str, dict[str, tuple[float, float]]] = {}
    for layer in layers:
        if layer.key not in grids:
            continue
        owner, grid = trained.get_submodule(layer.path), grids[layer.key]
        levels, scale = grid.on_grid(owner.parametrizations[layer.parameter].original)
        if not bool((scale > 0).all() and scale.isfinite().all()):
            raise PassError(
                f"Training took the step size of '{layer.key}' out of what float32 can hold.", "Lower learning_rate."
            )
        state[f"{layer.path}.{layer.parameter}".lstrip(".")] = (levels * scale).contiguous()
        found[layer.key] = Grid(grid.bits, grid.levels, tuple(scale.flatten().tolist()), layer.axis)
        sides = {"input": getattr(owner, _INPUT, None), "output": getattr(owner, _OUTPUT, None)}
        if own := {side: span for side, quantizer in sides.items() if quantizer and (span := quantizer.range())}:
            ranges[layer.key] = own
    with torch.no_grad():
        fresh.load_state_dict(state)
    return Trained(found, ranges)


class GridHooks(Hooks):
    """Step sizes as parameters of their own, and the bits as a schedule lowers them.

    Args:
        grids: The weights' grids by layer.
        task: Where the ranges of activations are fitted.
        stages: Bits that no layer goes below, from the first epoch on; the last stage is each layer's own bits.
        epochs: All epochs.
    """

    def __init__(self, grids: Mapping[str, Any], task: TrainableTask, stages: Sequence[int], epochs: int) -> None:
        self._grids = grids
        self._task = task
        self._own = {key: grid.bits for key, grid in grids.items()}
        self._stages = (*stages, 0)
        self._epochs = epochs

    def groups(self, module: Any, weight_decay: float) -> list[dict[str, Any]]:
        """See `Hooks.groups`; a step's gradient says nothing of how far weights should move, so it is not clipped."""
        steps = [parameter for name, parameter in module.named_parameters() if name.endswith("log_step")]
        taken = {id(parameter) for parameter in steps}
        groups = []
        for group in super().groups(module, weight_decay):
            rest = [parameter for parameter in group["params"] if id(parameter) not in taken]
            groups += [{**group, "params": rest}] if rest else []
        return [*groups, {"params": steps, "weight_decay": 0.0, "clip": False}]

    def before_epoch(self, program: TorchProgram, epoch: int) -> None:
        """See `Hooks.before_epoch`."""
        floor = self._floor(epoch)
        for key, grid in self._grids.items():
            grid.bits = max(self._own[key], floor)
        if epoch == 1 or floor != self._floor(epoch - 1):
            refit(program.module)
        # Once more after the first epoch: weights of few bits have found their sizes only then.
        if epoch <= 2 or floor != self._floor(epoch - 1):
            fit_activations(program, self._task)

    def counts(self, epoch: int) -> bool:
        """See `Hooks.counts`; only weights that have their last number of bits."""
        return self._floor(max(epoch, 1)) == 0

    def _floor(self, epoch: int) -> int:
        """The bits that no layer is below in an epoch: half of all epochs are shared between the stages before the last."""
        before = len(self._stages) - 1
        stage = (epoch - 1) * 2 * before // self._epochs if before else 0
        return self._stages[min(stage, before)]


def refit(module: Any) -> None:
    """Set the steps of all weights anew, for the bits that they have now."""
    torch = require("torch", TORCH_EXTRA, "quantization-aware training")
    for owner in module.modules():
        if not torch.nn.utils.parametrize.is_parametrized(owner):
            continue
        for chain in owner.parametrizations.values():
            for grid in chain:
                if isinstance(grid, weight_grid()):
                    grid.refit(chain.original)
