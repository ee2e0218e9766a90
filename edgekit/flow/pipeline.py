"""Passes in their declared order, each verified, scored and kept: Model → Model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.core import schema
from edgekit.core.errors import BudgetError, ConfigError
from edgekit.core.extras import code_of_package, versions_of
from edgekit.core.files import sha256_file, sha256_text
from edgekit.core.model import Model, PassRecord
from edgekit.core.progress import Progress
from edgekit.flow.cache import Cache
from edgekit.flow.checkpoint import WEIGHTS, replay, save_checkpoint
from edgekit.flow.data import DataSet
from edgekit.flow.evaluate import reference_outputs, split_inputs
from edgekit.flow.recipe import Budget, Recipe
from edgekit.flow.state import ModelInfo, ModelState, info_of
from edgekit.frontends.base import SourceRequest
from edgekit.passes.base import Pass, PassContext


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


def metrics_of(state: ModelState, tools: Tools, split: str = "validation") -> dict[str, float]:
    """The task's metrics of a model in its own framework; empty where there is no task or the split is empty."""
    data = tools.data
    inputs = split_inputs(data, split) if data is not None else None
    if data is None or inputs is None:
        return {}
    outputs = reference_outputs(state.info.digest, state.live, inputs, tools.cache, tools.progress)
    return data.score(outputs, split)


def compress(source: ModelState, recipe: Recipe, tools: Tools) -> ModelState:
    """Run a recipe's passes; those whose result is kept already are not run again.

    A run that is killed goes on, next time, after the last pass that finished.

    Raises:
        UnsupportedModelError: A pass cannot take the model.
        PassError: A pass failed, or broke what it must keep.
        BudgetError: A pass lost more of the metric than the budget allows.
    """
    if recipe.budget is not None and (tools.data is None or tools.data.split("validation") is None):
        tools.progress.warn("The recipe's budget limits nothing: there are no validation examples to judge a loss by.")
    state, key = source, source.info.digest
    before = metrics_of(source, tools) if recipe.passes else {}
    for step in recipe.passes:
        key = _step_key(key, step, tools.data, recipe.seed)
        state = _run_or_reuse(state, source, _Step(step, key, recipe.seed), tools)
        if recipe.budget is not None and before:
            check_budget(
                recipe.budget, before, dict(state.info.history[-1].metrics_after), f"the pass '{step.name}'", tools
            )
    return state


def check_budget(budget: Budget, before: dict[str, float], after: dict[str, float], who: str, tools: Tools) -> None:
    """Judge a loss on the validation split.

    Raises:
        BudgetError: It is larger than the budget allows.
        ConfigError: The budget's metric is none of the task's.
    """
    data = tools.data
    metric = budget.metric or (data.metric if data else "")
    if data is None or not before or not after:
        return
    if metric not in before or metric not in after:
        raise ConfigError(
            f"The recipe's budget is about '{metric}', which the task's score does not give; it gives"
            f" {', '.join(sorted(before))}."
        )
    sign = 1.0 if data.direction == "larger" else -1.0
    drop, allowed = sign * (before[metric] - after[metric]), budget.allowed_drop(before[metric])
    # Scores are means of a few hundred examples: a rounding error must not decide.
    if drop > allowed + 1e-9:
        raise BudgetError(
            f"{who} takes {metric} from {before[metric]:.4g} to {after[metric]:.4g} on the validation split; the budget"
            f" allows a drop of {allowed:.4g}.",
            "Raise budget.max_drop in the recipe, or use a milder one.",
        )


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


def _run_or_reuse(state: ModelState, source: ModelState, step: _Step, tools: Tools) -> ModelState:
    key = step.key
    folder = tools.cache.folder("models", key)
    info = tools.cache.record("models", key, ModelInfo)
    if folder is not None and info is not None:
        return ModelState(info, _rebuilder(source, info, folder))
    made = _run(state, step, tools)

    def fill(staging: Path) -> None:
        save_checkpoint(made, tools.request, staging)

    tools.cache.make("models", key, fill)
    # What a pass kept to go on from is of no use once its result is there: training states are four times the weights.
    shutil.rmtree(_work(key, tools), ignore_errors=True)
    tools.cache.put_record("models", key, info_of(made))
    result = ModelState(info_of(made), lambda: made)
    result.live()
    return result


def _work(key: str, tools: Tools) -> Path:
    return tools.cache.root / "work" / key


def _rebuilder(source: ModelState, info: ModelInfo, folder: Path) -> Callable[[], Model]:
    def rebuild() -> Model:
        import copy

        original = source.live()
        # Replaying changes the module in place; the source has to stay what it is.
        program = original.program.with_module(copy.deepcopy(original.program.module))  # type: ignore[attr-defined]
        return replay(replace(original, program=program), info.history, folder / WEIGHTS)

    return rebuild


def _run(state: ModelState, planned: _Step, tools: Tools) -> Model:
    model, step = state.live(), planned.run
    step.requires(model)
    before = metrics_of(state, tools)
    work = _work(planned.key, tools)
    work.mkdir(parents=True, exist_ok=True)
    with tools.progress.step(f"pass {step.name}"):
        task = tools.data.task if tools.data else None
        result = step.apply(model, task, PassContext(work, planned.seed, tools.progress))
    step.ensures(model, result.model)
    after = metrics_of(ModelState(info_of(result.model), lambda: result.model), tools) if result.modified else before
    record = PassRecord(
        name=step.name,
        options=schema.to_plain(step.options),
        modified=result.modified,
        notes=result.notes,
        structure=result.structure,
        metrics_before=before,
        metrics_after=after,
        parameters_before=model.program.parameter_count(),
        parameters_after=result.model.program.parameter_count(),
    )
    if not result.modified:
        tools.progress.warn(f"The pass '{step.name}' changed nothing: {'; '.join(result.notes)}.")
    return replace(result.model, history=(*model.history, record))
