"""Channels that can only go together: a group is the outputs of one or more layers and everything that reads them.

torch-pruning's dependency graph follows them through residuals, concatenation, depthwise convolutions and reshapes
(Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023). It is only asked what hangs together; what is
kept, and the cut itself, are decided here, because its own pruner empties or skips narrow layers when it rounds.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edgekit.core.errors import PassError
from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA, TorchProgram, first_line
from edgekit.passes._graph import tied_parameters

WHY = "the pass prune_channels"
Role = Literal["out", "in", "norm", "parameter"]
_INNER = "inner."
OUTPUT = "its channels are an output of the model"
_INPUT = "its channels meet those of an input"
_MULTIHEAD = "nn.MultiheadAttention computes with all of them"
_RECURRENT = "a recurrent layer reads or makes them"
_PRODUCTS = ("Bmm", "Baddbmm", "ScaledDotProduct")
_FUNCTIONAL = ("Mm", "Addmm", "Convolution", "MkldnnConvolution", "MkldnnRnn")
"""Operators with weights that no module of torch's own calls: nothing says which axis of which weight is meant."""


def torch_() -> Any:
    """The torch module."""
    return require("torch", TORCH_EXTRA, WHY)


@dataclass(frozen=True)
class Slice:
    """One end of a group: channels of one module or parameter.

    Attributes:
        path: The module's path; the parameter's or buffer's where the role is `parameter`.
        role: What the channels are to it. A depthwise convolution and a norm hand channels on: both are `norm`.
        indices: The channels, in its own counting.
        roots: For each, the channel of the group that it belongs to.
        axis: The axis that counts them, of a parameter.
    """

    path: str
    role: Role
    indices: tuple[int, ...]
    roots: tuple[int, ...]
    axis: int = 0


@dataclass(frozen=True)
class Group:
    """Channels that go together.

    Attributes:
        layers: Paths of the layers whose outputs they are.
        size: How many channels the first of them has.
        units: What can be removed: each unit is the channels that only go together (of grouped convolutions, one of
            each of their groups; of attention, a head).
        slices: All that has these channels.
        removal: What removing some channels takes away.
        attributes: Numbers of modules that shrink with each unit: path → name → by how much.
        heads: Whether the units are heads of attention.
    """

    layers: tuple[str, ...]
    size: int
    units: tuple[tuple[int, ...], ...]
    slices: tuple[Slice, ...]
    removal: Callable[[Sequence[int]], tuple[Slice, ...]] = field(compare=False)
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    heads: bool = False

    @property
    def label(self) -> str:
        """What people call it."""
        return self.layers[0] if len(self.layers) == 1 else f"{self.layers[0]} and {len(self.layers) - 1} with it"


@dataclass(frozen=True)
class Found:
    """What a model has to prune.

    Attributes:
        groups: The groups that can be.
        stays: Layers that cannot, by path, with the reason.
    """

    groups: tuple[Group, ...]
    stays: Mapping[str, str]

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of all layers."""
        return tuple(dict.fromkeys([*(path for group in self.groups for path in group.layers), *self.stays]))


def find_groups(program: TorchProgram) -> Found:
    """The groups of a model, in the order in which their first layers run.

    Raises:
        PassError: torch-pruning cannot follow the model.
    """
    traced = _Traced(program)
    order = {name: place for place, (name, _) in enumerate(program.module.named_modules())}
    groups: list[Group] = []
    stays: dict[str, str] = {}
    for raw in traced.raw_groups():
        layers = tuple(sorted(traced.producers(raw), key=lambda path: order.get(path, 0)))
        if not layers:
            continue
        reason = traced.obstacle(raw)
        if reason:
            stays.update(dict.fromkeys(layers, reason))
        else:
            groups.append(traced.group(raw, layers))
    return Found(tuple(sorted(groups, key=lambda group: order.get(group.layers[0], 0))), stays)


class _Traced:
    """A copy of the module that torch-pruning has followed."""

    def __init__(self, program: TorchProgram) -> None:
        torch = torch_()
        pruning = require("torch_pruning", "compression", WHY)
        self.nn, self.pruning = torch.nn, pruning
        self.tied = tied_parameters(program.module)
        module = copy.deepcopy(program.module).eval()
        _show_tensors(module)
        flat = program.with_module(module).flat
        self.paths = {one: name.removeprefix(_INNER) for name, one in flat.named_modules()}
        self.names = {id(one): name.removeprefix(_INNER) for name, one in flat.named_parameters()}
        self.inputs: list[Any] = []
        self.graph = pruning.DependencyGraph()

        # Inputs as parameters: so the graph knows that they have channels, and how many.
        values = program.tensors(program.example_inputs)
        shown = [torch.nn.Parameter(one) if one.is_floating_point() else one for one in values]
        # With three axes the graph takes a parameter for a class token, and no longer follows concatenations.
        sized = [(one, 1) for one in shown if isinstance(one, torch.nn.Parameter) and one.dim() in (2, 4, 5)]

        def forward(model: Any, tensors: Sequence[Any]) -> Any:
            given = [one * 1 if one.requires_grad else one for one in tensors]
            self.inputs.extend(one.grad_fn for one in given if one.grad_fn is not None)
            return model(*given)

        made: list[Any] = []
        layers = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
        hooks = [
            one.register_forward_hook(lambda _module, _inputs, output: made.append(output))
            for one in module.modules()
            if isinstance(one, layers)
        ]

        def outputs(values: Sequence[Any]) -> list[Any]:
            # Layers that run for nothing, as unused heads do, have to fit all the same: they count as outputs.
            reached = _ancestors(values)
            ends = [*values, *(one for one in made if one.grad_fn not in reached)]
            # An operator on each, so that each has a node of its own even where a layer computes it.
            return [one * 1 for one in ends if one.grad_fn is not None]

        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.graph.build_dependency(
                    flat,
                    shown,
                    forward_fn=forward,
                    output_transform=outputs,
                    unwrapped_parameters=sized,
                    verbose=False,
                )
        except Exception as error:
            raise PassError(f"torch-pruning cannot follow this model: {first_line(error)}") from error
        finally:
            for hook in hooks:
                hook.remove()

    def raw_groups(self) -> Iterable[Any]:
        types = [self.nn.modules.conv._ConvNd, self.nn.Linear]
        try:
            yield from self.graph.get_all_groups(root_module_types=types)
        except (AssertionError, IndexError, KeyError, ValueError, RuntimeError) as error:
            raise PassError(f"torch-pruning cannot follow this model: {first_line(error)}") from error

    def producers(self, raw: Any) -> list[str]:
        """Paths of the layers whose outputs a group is, depthwise convolutions left out."""
        nn = self.nn
        found = []
        for dep, _ in raw.items:
            module = dep.target.module
            made = isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and not _is_depthwise(module)
            if made and self.graph.is_out_channel_pruning_fn(dep.handler):
                found.append(self.paths[module])
        return list(dict.fromkeys(found))

    def obstacle(self, raw: Any) -> str:
        """Why a group has to stay; empty where it need not."""
        for dep, indices in raw.items:
            reason = self._obstacle_of(dep, indices)
            if reason:
                return reason
        size = len(raw[0].idxs)
        groups = self._channel_groups(raw)
        if size % groups:
            return f"its {size} channels do not fall into {groups} groups of channels"
        return next((reason for item in raw.items if (reason := self._crossing(item, size // groups))), "")

    def _crossing(self, item: Any, step: int) -> str:
        """Whether a grouped layer has what goes together at different places of its groups, as after a concatenation."""
        module = item.dep.target.module
        count = getattr(module, "num_groups", getattr(module, "groups", 1))
        if module not in self.paths or count == 1 or _is_depthwise(module):
            return ""
        width = self._width(item.dep) // count
        units: dict[int, list[int]] = {}
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            units.setdefault(int(root) % step, []).append(int(index))
        for members in units.values():
            places = {index % width for index in members}
            if len(members) != count * len(places) or len({index // width for index in members}) != count:
                return f"the groups of '{self.paths[module]}' would not stay equal"
        return ""

    def _width(self, dep: Any) -> int:
        """How many channels a module has at the end of a group."""
        outward = self.graph.is_out_channel_pruning_fn(dep.handler)
        module = dep.target.module
        return int(self.graph.get_out_channels(module) if outward else self.graph.get_in_channels(module))

    def _obstacle_of(self, dep: Any, indices: Sequence[int]) -> str:
        node, module = dep.target, dep.target.module
        kinds = self.pruning.ops.OPTYPE
        if node.type == kinds.ELEMENTWISE:
            return self._obstacle_at_operator(node)
        if node.type == kinds.PARAMETER:
            return self._obstacle_at_parameter(module, indices)
        if node.type in (kinds.OUTPUT, kinds.MHA, kinds.LSTM):
            return {kinds.OUTPUT: OUTPUT, kinds.MHA: _MULTIHEAD, kinds.LSTM: _RECURRENT}[node.type]
        return self._obstacle_at_module(module, self.paths[module]) if module in self.paths else ""

    def _obstacle_at_operator(self, node: Any) -> str:
        if node.grad_fn in self.inputs:
            return _INPUT
        name = node.grad_fn.name() if hasattr(node.grad_fn, "name") else ""
        if name.startswith(_PRODUCTS):
            return "its channels are multiplied with one another, as attention does; `heads` removes whole heads"
        # A linear layer on more than two axes is such an operator between two reshapes.
        own = any(isinstance(after.module, self.nn.Linear) for after in node.outputs)
        return "a weight is used past its module's forward" if name.startswith(_FUNCTIONAL) and not own else ""

    def _obstacle_at_parameter(self, parameter: Any, indices: Sequence[int]) -> str:
        if id(parameter) not in self.names:
            return _INPUT
        name = self.names[id(parameter)]
        fits = self._axis(parameter, indices) is not None and name not in self.tied
        return "" if fits else f"'{name}' has no axis of these channels of its own"

    def _obstacle_at_module(self, module: Any, path: str) -> str:
        nn = self.nn
        if any(f"{path}.{name}" in self.tied for name, _ in module.named_parameters()):
            return f"the weight of '{path}' is shared"
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
            return f"'{path}' normalizes over more than one axis"
        if not isinstance(module, nn.modules.conv._ConvNd) or module.groups == 1 or _is_depthwise(module):
            return ""
        if module.transposed:
            return f"'{path}' is a grouped transposed convolution"
        # torch-pruning takes it for a depthwise one.
        return f"'{path}' has a group for each output" if module.groups == module.out_channels else ""

    def _axis(self, parameter: Any, indices: Sequence[int]) -> int | None:
        """The axis of a parameter that counts the channels: torch-pruning's guess where it fits, else the only one."""
        count = len(indices)
        node = self.graph.module2node[parameter]
        shape = tuple(parameter.shape)
        if shape[node.pruning_dim] == count:
            return int(node.pruning_dim) % len(shape)
        fitting = [axis for axis, size in enumerate(shape) if size == count]
        return fitting[0] if len(fitting) == 1 else None

    def _channel_groups(self, raw: Any) -> int:
        found = 1
        for dep, _ in raw.items:
            module = dep.target.module
            if isinstance(module, self.nn.modules.conv._ConvNd) and not _is_depthwise(module):
                found = math.lcm(found, module.groups)
            elif isinstance(module, self.nn.GroupNorm):
                found = math.lcm(found, module.num_groups)
        return found

    def group(self, raw: Any, layers: tuple[str, ...]) -> Group:
        root, handler, size = raw[0].dep.target.module, raw[0].dep.handler, len(raw[0].idxs)

        def removal(channels: Sequence[int]) -> tuple[Slice, ...]:
            return self._slices(self.graph.get_pruning_group(root, handler, sorted(channels)), full=raw)

        units = self._units(root, handler, size, self._channel_groups(raw))
        return Group(layers, size, units, self._slices(raw, full=raw), removal)

    def _slices(self, raw: Any, full: Any) -> tuple[Slice, ...]:
        axes = {
            id(dep.target.module): self._axis(dep.target.module, indices) or 0
            for dep, indices in full.items
            if isinstance(dep.target.module, self.nn.Parameter)
        }
        found = []
        for item in raw.items:
            dep, module = item.dep, item.dep.target.module
            where = tuple(map(int, item.idxs)), tuple(map(int, item.root_idxs))
            if id(module) in axes:
                found.append(Slice(self.names[id(module)], "parameter", *where, axes[id(module)]))
            elif module in self.paths:
                found.append(Slice(self.paths[module], self._role(dep), *where))
        return tuple(found)

    def _role(self, dep: Any) -> Role:
        nn, module = self.nn, dep.target.module
        if isinstance(module, nn.Embedding):
            return "out"
        if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear) or _is_depthwise(module):
            return "norm"
        return "out" if self.graph.is_out_channel_pruning_fn(dep.handler) else "in"

    def _units(self, root: Any, handler: Any, size: int, groups: int) -> tuple[tuple[int, ...], ...]:
        """The channels that only go together: those that share a place in each group, or that something adds up."""
        step = size // groups
        units = [{place + step * number for number in range(groups)} for place in range(step)]

        def partners(channel: int) -> set[int]:
            raw = self.graph.get_pruning_group(root, handler, [channel])
            return set(map(int, raw[0].idxs))

        # Where two halves of the same channels are multiplied (gates), one draws the other with it.
        if any(partners(channel) != {channel} for channel in {0, size // 2, size - 1}):
            for channel in range(size):
                joined = partners(channel) | {channel}
                touched = [unit for unit in units if unit & joined]
                units = [unit for unit in units if not unit & joined] + [set().union(*touched)]
        return tuple(tuple(sorted(unit)) for unit in sorted(units, key=min))


def _is_depthwise(module: Any) -> bool:
    groups = getattr(module, "groups", 1)
    return bool(groups > 1 and groups == module.out_channels == module.in_channels)


def _ancestors(values: Sequence[Any]) -> set[Any]:
    """All nodes of the gradient's graph that some tensors come from."""
    waiting = [one.grad_fn for one in values if one.grad_fn is not None]
    found: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [before for before, _ in node.next_functions if before is not None]
    return found


def _show_tensors(module: Any) -> None:
    """Let every weight and every buffer take part in the graph: what has no gradient is not seen."""
    nn = torch_().nn
    for one in module.modules():
        if not isinstance(one, nn.modules.batchnorm._NormBase):
            for name, buffer in list(one._buffers.items()):
                if buffer is not None and buffer.is_floating_point() and buffer.dim():
                    del one._buffers[name]
                    one.register_parameter(name, nn.Parameter(buffer.detach().clone()))
        for parameter in one.parameters(recurse=False):
            parameter.requires_grad_(parameter.is_floating_point())
