"""One run of prune_channels: what is found, chosen, checked and cut, step by step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgekit.core.cost import macs_of
from edgekit.core.layer_paths import fits_any, require_each_fits
from edgekit.core.program import TorchProgram
from edgekit.core.task import Task
from edgekit.passes._channels.check import wrong_groups
from edgekit.passes._channels.choose import ROUNDINGS, Initial, Wish, choose
from edgekit.passes._channels.cut import Removal, cut
from edgekit.passes._channels.groups import OUTPUT, Found, Group, Slice, find_groups
from edgekit.passes._channels.heads import find_heads
from edgekit.passes._channels.importance import scores_of
from edgekit.passes._channels.options import PruneChannelsOptions
from edgekit.passes._graph import shortened
from edgekit.passes._training.seeds import own_random_numbers, seed_epoch
from edgekit.passes.base import PassContext

_SHOWN = 3
_ABOVE, _BELOW = 0.02, 0.10
"""How far the multiplications may lie above and below those without rounding, as a share of all, for round_to: auto."""
Scored = Sequence[tuple[Group, Any]]


class Run:
    """The module as it is by now, and what was found and left.

    Args:
        program: The model as it came; it is left alone.
        task: Its task, where the importance needs one.
        options: What is asked for.
        context: The seed.
    """

    def __init__(
        self, program: TorchProgram, task: Task | None, options: PruneChannelsOptions, context: PassContext
    ) -> None:
        self.program, self.task, self.options, self.context = program, task, options, context
        self.module = copy.deepcopy(program.module).eval()
        self.initial: Initial = {}
        self.groups: dict[tuple[str, ...], Group] = {}
        self.kept: dict[tuple[str, ...], int] = {}
        self.stays: dict[str, str] = {}
        self.wrong: set[tuple[str, ...]] = set()
        self.rounding = options.round_to if isinstance(options.round_to, int) else 0

    @property
    def modified(self) -> bool:
        """Whether anything was removed so far."""
        return bool(self.kept)

    def step(self, part: float) -> bool:
        """Prune to a part of what was asked for; whether anything was removed.

        Raises:
            ConfigError: `layers` or `skip` name no layer, or the task yields nothing.
            PassError: The ratio would leave nothing of a layer, or the model's code counts on all channels of one.
        """
        current = self.program.with_module(self.module)
        scored = self._scored(current)
        if not self.modified:
            # What the last step cannot do is refused before the first one trains.
            self._choose(scored, 1.0, self.rounding or 1)
        scored = self._checked(current, scored, part, self.rounding or 1)
        if scored and not self.rounding:
            self.rounding = self._largest_rounding(current, scored)
            scored = self._checked(current, scored, part, self.rounding)
        removal = self._choose(scored, part, self.rounding)
        if not removal:
            return False
        self.module = cut(self.module, removal)
        for group, _, count in removal:
            self.kept[group.layers] = len(group.units) - count
        return True

    def _scored(self, current: TorchProgram) -> Scored:
        groups = self._groups(current)
        with own_random_numbers():
            seed_epoch(self.context.seed, 0)
            measured = scores_of(current, groups, self.options.importance, self.task, self.options.examples)
        for group, values in zip(groups, measured, strict=True):
            if values is None:
                self.stays.update(dict.fromkeys(group.layers, "it has no batch norm"))
        return [(group, values) for group, values in zip(groups, measured, strict=True) if values is not None]

    def _groups(self, current: TorchProgram) -> list[Group]:
        """What can be pruned now, of the layers asked for."""
        found = find_groups(current) if self.options.ratio else Found((), {})
        heads, staying = find_heads(current) if self.options.heads else ([], {})
        if not self.groups:
            layers = found.layers or find_groups(current).layers
            known = [*layers, *(path for group in heads for path in group.layers), *staying]
            require_each_fits("prune_channels", {"layers": self.options.layers, "skip": self.options.skip}, known)
            self.stays = {path: why for path, why in {**found.stays, **staying}.items() if self._is_wanted([path])}
        chosen = [
            group
            for group in [*found.groups, *heads]
            if len(group.units) > 1 and self._is_wanted(group.layers) and group.layers not in self.wrong
        ]
        for group in chosen:
            # For the notes only: the whole group would hold the traced copy of the module.
            self.groups.setdefault(group.layers, replace(group, slices=(), removal=_nothing))
            self.initial.setdefault(group.layers, len(group.units))
        return chosen

    def _is_wanted(self, layers: Sequence[str]) -> bool:
        options = self.options
        wanted = not options.layers or any(fits_any(path, options.layers) for path in layers)
        return wanted and not any(fits_any(path, options.skip) for path in layers)

    def _choose(self, scored: Scored, part: float, rounding: int) -> Removal:
        options = self.options
        adaptive = options.round_to == "auto"
        wish = Wish(options.ratio * part, options.heads * part, options.scope, rounding, adaptive, options.max_ratio)
        return choose([group for group, _ in scored], [values for _, values in scored], self.initial, wish)

    def _checked(self, current: TorchProgram, scored: Scored, part: float, rounding: int) -> Scored:
        """The groups without those whose cut gives a network that computes something else."""
        while removal := self._choose(scored, part, rounding):
            wrong = {removal[number][0].layers for number in wrong_groups(current, removal)}
            if not wrong:
                break
            why = "its channels are mixed in a way that the dependency graph does not follow"
            self.stays.update(dict.fromkeys((path for layers in wrong for path in layers), why))
            self.wrong |= wrong
            scored = [(group, values) for group, values in scored if group.layers not in wrong]
        return scored

    def _largest_rounding(self, current: TorchProgram, scored: Scored) -> int:
        """The largest rounding with which the multiplications are about those without any, for all steps together."""

        def macs(rounding: int) -> int:
            removal = self._choose(scored, 1.0, rounding)
            return macs_of(current.with_module(cut(copy.deepcopy(current.module), removal)))

        whole, exact = macs_of(current), macs(1)
        fitting = (one for one in ROUNDINGS if -_BELOW <= (macs(one) - exact) / max(whole, 1) <= _ABOVE)
        return next(fitting, 1)

    def notes(self, result: TorchProgram) -> list[str]:
        """What was done, for people.

        Args:
            result: The program around the smaller module.
        """
        was, now = self.program.parameter_count(), result.parameter_count()
        before, after = macs_of(self.program), macs_of(result)
        fewer = f"parameters {was:,} to {now:,} ({was / max(now, 1):.2f} times fewer)"
        cheaper = f"MACs {before:,} to {after:,} ({before / max(after, 1):.2f} times fewer)"
        narrow = " (less in narrow layers)" if self.options.round_to == "auto" and self.rounding > 1 else ""
        told = [f"{fewer}, {cheaper}, channels in multiples of {self.rounding}{narrow}"]
        if after >= before:
            told.append("the multiplications did not fall: what was removed takes no part in them")
        changed = [self._told(self.groups[layers], units) for layers, units in self.kept.items()]
        return [*told, *shortened(changed, _SHOWN, "became narrower"), *self._staying(outputs=False)]

    def _told(self, group: Group, left: int) -> str:
        had = self.initial[group.layers]
        if group.heads:
            return f"{group.label}: {had} to {left} heads"
        return f"{group.label}: {group.size} to {group.size // had * left} channels"

    def _staying(self, *, outputs: bool) -> list[str]:
        pruned = [path for layers in self.kept if self.groups[layers].heads for path in layers]
        told = [
            f"'{path}' stays: {why}"
            for path, why in self.stays.items()
            if (outputs or why != OUTPUT) and not fits_any(path, pruned)
        ]
        return shortened(told, _SHOWN, "stay")

    def nothing(self) -> str:
        """Why nothing was changed."""
        if any(path not in self.stays for layers in self.groups for path in layers):
            return (
                f"no layer can lose a share of {self.options.ratio:g} and keep a multiple of {self.rounding} channels:"
                " try a smaller round_to or a larger ratio"
            )
        return "; ".join(["there is no layer whose channels could be removed", *self._staying(outputs=True)])


def _nothing(_channels: Sequence[int]) -> tuple[Slice, ...]:
    return ()
