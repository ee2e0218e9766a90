"""Passes in their declared order, each verified, scored and kept: Model → Model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.core import schema
from edgekit.core.cost import cost_of
from edgekit.core.errors import BudgetError, ConfigError
from edgekit.core.extras import code_of_package, versions_of
from edgekit.core.files import sha256_file, sha256_text
from edgekit.core.grid import GRIDS
from edgekit.core.model import Model, PassRecord
from edgekit.core.progress import Progress
from edgekit.core.task import trainable
from edgekit.flow.cache import Cache
from edgekit.flow.checkpoint import WEIGHTS, replay, save_checkpoint
from edgekit.flow.data import DataSet
from edgekit.flow.evaluate import reference_outputs, split_inputs
from edgekit.flow.recipe import Budget, Recipe
from edgekit.flow.state import ModelInfo, ModelState, info_of
from edgekit.frontends.base import SourceRequest
from edgekit.passes.base import Pass, PassContext

SOURCE = "source"
"""The name of the stage before all passes."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Tools:
    """What every stage works with.

    Attributes:
        cache: Where results are kept.
        progress: Where it tells what it does.
        data: The task's data; None where there is no task.
        request: How the source is made.
    """

    cache: Cache
    progress: Progress
    data: DataSet | None
    request: SourceRequest


@dataclass(frozen=True)
class Stage:
    """A model on the way through a recipe.

    Attributes:
        name: The pass that left it, or `source`.
        state: The model; of a pass that was undone, what it would have been.
        record: The pass's record in the history; None for the source.
    """

    name: str
    state: ModelState
    record: PassRecord | None = None

    @property
    def kept(self) -> bool:
        """Whether the run went on with this model."""
        return self.record is None or self.record.kept


@dataclass(frozen=True)
class Compressed:
    """What a recipe's passes made.

    Attributes:
        state: The model after the last pass.
        stages: The source, then what each pass left, in order.
    """

    state: ModelState
    stages: tuple[Stage, ...]

    @property
    def source(self) -> ModelState:
        """The model as it came."""
        return self.stages[0].state


def metrics_of(state: ModelState, tools: Tools, split: str = "validation") -> dict[str, float]:
    """The task's metrics of a model in its own framework; empty where there is no task or the split is empty."""
    data = tools.data
    inputs = split_inputs(data, split) if data is not None else None
    if data is None or inputs is None:
        return {}
    outputs = reference_outputs(state.info.digest, state.live, inputs, tools.cache, tools.progress)
    return data.score(outputs, split)


def compress(source: ModelState, recipe: Recipe, tools: Tools) -> Compressed:
    """Run a recipe's passes; those whose result is kept already are not run again.

    A run that is killed goes on, next time, after the last pass that finished. A pass that breaks the budget ends the
    run, or is undone where the budget says so; either way the loss is counted from the source, not from the pass before.

    Raises:
        ConfigError: A pass trains, and the task cannot be trained with; said before any pass runs.
        UnsupportedModelError: A pass cannot take the model.
        PassError: A pass failed, or broke what it must keep.
        BudgetError: A pass lost more of the metric than the budget allows.
    """
    budget = recipe.budget
    if budget is not None and (tools.data is None or tools.data.split("validation") is None):
        tools.progress.warn("The recipe's budget limits nothing: there are no validation examples to judge a loss by.")
    for step in recipe.passes:
        if step.trains:
            # Said now: its turn may come after hours of other passes.
            trainable(tools.data.task if tools.data is not None else None, f"The pass '{step.name}'")
    state, key = source, source.info.digest
    stages = [Stage(SOURCE, source)]
    before = metrics_of(source, tools) if recipe.passes else {}
    for step in recipe.passes:
        planned = _Step(step, _step_key(key, step, tools.data, recipe.seed), recipe.seed)
        made = _kept(state, source, planned, tools) or _run_and_keep(state, planned, tools)
        record = made.info.history[-1]
        judged = budget if _is_judged(budget, step is recipe.passes[-1]) else None
        broken = _broken(judged, before, dict(record.metrics_after), f"the pass '{step.name}'", tools)
        if broken is None:
            stages.append(Stage(step.name, made, record))
            state, key = made, planned.key
        elif budget is not None and budget.on_break == "roll_back":
            tools.progress.warn(f"Rolled back: {broken.message}")
            stages.append(Stage(step.name, made, record.undone()))
            state = _with_record(state, record.undone())
        else:
            raise broken
    return Compressed(state, tuple(stages))


def _is_judged(budget: Budget | None, last: bool) -> bool:
    return budget is not None and (last or budget.judged == "after_each_pass")


def _with_record(state: ModelState, record: PassRecord) -> ModelState:
    """The same model with one more pass in its history."""
    history = (*state.info.history, record)
    return ModelState(replace(state.info, history=history), lambda: replace(state.live(), history=history))


def check_budget(budget: Budget, before: dict[str, float], after: dict[str, float], who: str, tools: Tools) -> None:
    """Judge a loss on the validation split.

    Raises:
        BudgetError: It is larger than the budget allows.
        ConfigError: The budget's metric is none of the task's.
    """
    broken = _broken(budget, before, after, who, tools)
    if broken is not None:
        raise broken


def _broken(
    budget: Budget | None, before: dict[str, float], after: dict[str, float], who: str, tools: Tools
) -> BudgetError | None:
    data = tools.data
    if budget is None or data is None or not before or not after:
        return None
    metric = budget.metric or data.metric
    if metric not in before or metric not in after:
        raise ConfigError(
            f"The recipe's budget is about '{metric}', which the task's score does not give; it gives"
            f" {', '.join(sorted(before))}."
        )
    drop, allowed = _lost(before[metric], after[metric], data), budget.allowed_drop(before[metric])
    # Scores are means of a few hundred examples: a rounding error must not decide.
    if drop <= allowed + _ROUNDING:
        return None
    return BudgetError(
        f"{who} takes {metric} from {before[metric]:.4g} to {after[metric]:.4g} on the validation split; the budget"
        f" allows a drop of {allowed:.4g}.",
        "Raise budget.max_drop in the recipe, or use a milder one.",
    )


def _lost(before: float, after: float, data: DataSet) -> float:
    return before - after if data.direction == "larger" else after - before


@dataclass(frozen=True)
class _Step:
    """A pass to run: where its result is kept, and the seed of its random choices."""

    run: Pass
    key: str
    seed: int


def _step_key(key: str, step: Pass, data: DataSet | None, seed: int) -> str:
    parts = {
        "after": key,
        "pass": step.name,
        "options": schema.to_plain(step.options),
        "code": sha256_text(code_of_package(step)),
        "files": [sha256_file(path) for path in step.own_files(data.task if data else None)],
        "data": [data.reference, data.folder.name] if data else None,
        "torch": versions_of(("torch",)),
        "seed": seed,
    }
    return sha256_text(schema.canonical_json(parts).decode())


def _kept(state: ModelState, source: ModelState, step: _Step, tools: Tools) -> ModelState | None:
    """What an earlier run of the step left, or None."""
    folder = tools.cache.folder("models", step.key)
    info = tools.cache.record("models", step.key, ModelInfo)
    if folder is None or info is None:
        return None
    # The same model may have come here by another way: after a pass that was undone, or without it.
    info = replace(info, history=(*state.info.history, info.history[-1]))
    return ModelState(info, _rebuilder(source, info, folder))


def _run_and_keep(state: ModelState, step: _Step, tools: Tools) -> ModelState:
    made = _run(state, step, tools)

    def fill(staging: Path) -> None:
        save_checkpoint(made, tools.request, staging)

    tools.cache.make("models", step.key, fill)
    # What a pass kept to go on from is of no use once its result is there: training states are four times the weights.
    shutil.rmtree(_work(step.key, tools), ignore_errors=True)
    tools.cache.put_record("models", step.key, info_of(made))
    return ModelState(info_of(made), lambda: made)


def _work(key: str, tools: Tools) -> Path:
    return tools.cache.root / "work" / key


def _rebuilder(source: ModelState, info: ModelInfo, folder: Path) -> Callable[[], Model]:
    def rebuild() -> Model:
        import copy

        original = source.live()
        # Replaying changes the module in place; the source has to stay what it is.
        program = original.program.with_module(copy.deepcopy(original.program.module))  # type: ignore[attr-defined]
        done = len(source.info.history)
        model = replay(replace(original, program=program), info.history[done:], folder / WEIGHTS)
        return replace(model, history=info.history)

    return rebuild


def _run(state: ModelState, planned: _Step, tools: Tools) -> Model:
    model, step = state.live(), planned.run
    step.requires(model)
    before = metrics_of(state, tools)
    work = _work(planned.key, tools)
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tools.progress.step(f"pass {step.name}"):
        task = tools.data.task if tools.data else None
        result = step.apply(model, task, PassContext(work, planned.seed, tools.progress))
    seconds = time.monotonic() - started
    step.ensures(model, result.model)
    after = metrics_of(ModelState(info_of(result.model), lambda: result.model), tools) if result.modified else before
    cost = cost_of(model.program)
    now = cost_of(result.model.program) if result.modified else cost
    record = PassRecord(
        name=step.name,
        options=schema.to_plain(step.options),
        modified=result.modified,
        notes=result.notes,
        structure=result.structure,
        metrics_before=before,
        metrics_after=after,
        parameters_before=cost.parameters,
        parameters_after=now.parameters,
        macs_before=cost.macs,
        macs_after=now.macs,
        weight_bytes_before=cost.weight_bytes,
        weight_bytes_after=now.weight_bytes,
        zeros_before=cost.zeros,
        zeros_after=now.zeros,
        seconds=round(seconds, 3),
    )
    record = replace(record, notes=(*result.notes, *_unpaid(record, tools.data)))
    if not result.modified:
        tools.progress.warn(f"The pass '{step.name}' changed nothing: {'; '.join(result.notes)}.")
    return replace(result.model, history=(*model.history, record))


def _unpaid(record: PassRecord, data: DataSet | None) -> tuple[str, ...]:
    """Where a pass changed the model for nothing, or for worse. Weights on a grid pay in the artifact, not here."""
    if not record.modified or GRIDS in record.structure:
        return ()
    grown = [
        f"{what} rose"
        for what, before, after in (
            ("MACs", record.macs_before, record.macs_after),
            ("bytes", record.weight_bytes_before, record.weight_bytes_after),
        )
        if after > before
    ]
    if grown:
        return (" and ".join(grown),)
    smaller = (
        record.macs_after < record.macs_before
        or record.weight_bytes_after < record.weight_bytes_before
        or record.zeros_after > record.zeros_before
    )
    metric = data.metric if data is not None else ""
    if smaller or data is None or metric not in record.metrics_before:
        return () if smaller else ("parameters and MACs are as before",)
    gained = -_lost(record.metrics_before[metric], record.metrics_after[metric], data)
    return () if gained > _ROUNDING else (f"did not pay: parameters and MACs are as before, {metric} is no better",)
