"""Build: frontend → passes → backend → verified Artifact, with nothing done that was done before."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit._version import __version__
from edgekit.backends._quantize.modules import schemes_by_module
from edgekit.backends.base import Backend, CompileRequest
from edgekit.backends.base import registry as backends
from edgekit.core import schema
from edgekit.core.artifact import BUILD, Artifact, load_artifact
from edgekit.core.errors import ConfigError, MissingExtraError, UnsupportedModelError
from edgekit.core.extras import code_of_package
from edgekit.core.files import sha256_text, write_atomic
from edgekit.core.lowering import AUTO, Lowering
from edgekit.core.progress import Progress
from edgekit.core.target import Target
from edgekit.core.task import SPLITS, Split
from edgekit.flow.cache import Cache
from edgekit.flow.convert import DEFAULT_TIMEOUT_SECONDS, convert
from edgekit.flow.data import DataSet, load_data
from edgekit.flow.evaluate import InputFiles, as_taken, golden_inputs, random_inputs, reference_outputs, split_inputs
from edgekit.flow.imported import as_torch
from edgekit.flow.pipeline import Compressed, Tools, check_budget, compress, metrics_of
from edgekit.flow.project import Project
from edgekit.flow.recipe import Recipe, Verify
from edgekit.flow.sensitivity import layers_of
from edgekit.flow.sidebyside import side_by_side
from edgekit.flow.source import load_source
from edgekit.flow.state import ModelInfo, ModelState
from edgekit.flow.verify import HostRun, Tolerance, require_parity, run_on_host, tolerance_of
from edgekit.frontends.base import split_source

if TYPE_CHECKING:
    from edgekit.core.task import Array


_CALIBRATED = ("static", "weight_only", "dynamic", "palette")
"""Schemes that examples make better: they set ranges, or say which rounding of a weight costs least."""


@dataclass(frozen=True)
class Built:
    """An artifact and what is known of it.

    Attributes:
        artifact: The artifact, in the cache.
        target: What it was compiled for.
        cached: Whether it was there already.
        sets: The inputs that it was run on: `golden`, and the splits of the task.
        host: Its run on this host; None where that was not asked for.
        source_outputs: Outputs of the source model, by set and output name.
        source_metrics: The task's metrics of the source model, by split.
        host_metrics: The same of the artifact on this host.
        data: The task's data.
    """

    artifact: Artifact
    target: Target
    cached: bool
    sets: tuple[InputFiles, ...]
    host: HostRun | None
    source_outputs: Mapping[str, Mapping[str, Path]]
    source_metrics: Mapping[str, Mapping[str, float]]
    host_metrics: Mapping[str, Mapping[str, float]]
    data: DataSet | None


@dataclass(frozen=True)
class _Plan:
    """One artifact that is wanted: from what, by what, and under which key."""

    backend: Backend
    state: ModelState
    lowering: Lowering
    target: Target
    calibration: Path | None
    key: str
    cached: bool


class Builder:
    """Builds the artifacts of one project.

    Args:
        project: What is built.
        progress: Where it tells what it does.
        cache: Where results are kept.
        timeout_seconds: One conversion is stopped after this long.
        verify: What outputs must keep of the model's, in place of what the recipe says.
    """

    def __init__(
        self,
        project: Project,
        progress: Progress,
        cache: Cache | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        verify: Verify | None = None,
    ) -> None:
        self.project = project
        self.progress = progress
        self.cache = cache or Cache()
        self.timeout_seconds = timeout_seconds
        self.verify = verify or Verify()
        self._converted: set[str] = set()
        # Asked for once an artifact: what it has to warn of is said once.
        self._compressed: dict[str, Compressed] = {}

    @functools.cached_property
    def source(self) -> ModelState:
        """The source model."""
        state = load_source(self.project, self.cache, self.progress)
        if self.data is not None:
            self.data.check_inputs(state.info.inputs)
        return state

    @functools.cached_property
    def data(self) -> DataSet | None:
        """The task's data; None where the project has no task."""
        if self.project.task is None:
            return None
        reference = self.project.task
        if not Path(reference).is_absolute():
            reference = str(self.project.root / reference)
        return load_data(reference, self.cache, self.progress)

    @functools.cached_property
    def tools(self) -> Tools:
        """What every stage works with."""
        return Tools(self.cache, self.progress, self.data, self.project.source_request)

    def compressed(self, recipe: Recipe) -> ModelState:
        """The model after a recipe's passes; a foreign format is imported into torch where there are any."""
        return self.compression(recipe).state

    def compression(self, recipe: Recipe) -> Compressed:
        """A recipe's passes run, or found in the cache: the model after each of them.

        Raises:
            BudgetError: A pass lost more of the metric than the budget allows, and the budget does not undo it.
        """
        steps = [(step.name, schema.to_plain(step.options)) for step in recipe.passes]
        key = sha256_text(schema.canonical_json([steps, recipe.budget, recipe.seed]).decode())
        if key not in self._compressed:
            source = as_torch(self.source, self.tools) if recipe.passes else self.source
            self._compressed[key] = compress(source, recipe, self.tools)
        return self._compressed[key]

    def build(self, target: Target, backend_name: str | None = None, *, verify: bool = True) -> Built:
        """The artifact for a target, made unless it is there, and verified.

        Raises:
            ConfigError: The backend is none of the target's, or calibration data are needed and missing.
            UnsupportedModelError: The backend cannot do it; said before any work where it can be known.
            VerificationError: The artifact does not compute what the model computes.
            BudgetError: It loses more of the metric than the recipe allows.
        """
        built = self.made(target, backend_name, verify=verify)
        if built.host is not None:
            require_parity(built.artifact, built.host.verification)
        budget = self.project.recipe_for(target).budget
        if budget is not None and "validation" in built.host_metrics:
            check_budget(
                budget,
                dict(built.source_metrics["validation"]),
                dict(built.host_metrics["validation"]),
                f"{built.artifact.manifest.lowering.precision} on {built.artifact.manifest.backend}",
                self.tools,
            )
        return built

    def made(
        self,
        target: Target,
        backend_name: str | None = None,
        lowering: Lowering | None = None,
        *,
        verify: bool = True,
    ) -> Built:
        """The artifact for a target, compared with the model and not yet judged; see `build`.

        Args:
            target: What it is for.
            backend_name: One of the target's backends; its first where None.
            lowering: In place of the recipe's.
            verify: Whether it is run on this host.
        """
        plan = self._plan(target, backend_name, lowering)
        artifact = self._made(plan, self.progress)
        cached = plan.cached and plan.key not in self._converted
        if not verify:
            return self._unverified(artifact, target, cached)
        return self._compared(artifact, target, cached, plan.state)

    def stage(
        self, state: ModelState, lowering: Lowering, target: Target, backend_name: str | None = None
    ) -> tuple[Artifact, InputFiles]:
        """The artifact of a model on its way through a recipe, proven on the golden inputs; these too.

        Raises:
            UnsupportedModelError: The backend cannot do it.
            VerificationError: It does not compute what the model computes.
        """
        plan = self._plan(target, backend_name, lowering, state)
        artifact = self._made(plan, self.progress)
        golden = self._golden()
        reference = reference_outputs(plan.state.info.digest, plan.state.live, golden, self.cache, self.progress)
        taken = as_taken(golden, artifact.manifest.inputs, self.cache)
        tolerance = self._tolerance(plan.backend, lowering, target)
        host = run_on_host(artifact, target, [taken], {taken.name: reference}, self.cache, self.progress, tolerance)
        require_parity(artifact, host.verification)
        return artifact, taken

    def state_for(self, target: Target, backend: Backend) -> ModelState:
        """The model after the recipe's passes, in a form that the backend reads."""
        return self._readable(self.compressed(self.project.recipe_for(target)), backend)

    def _readable(self, state: ModelState, backend: Backend) -> ModelState:
        return state if state.info.format in backend.reads else as_torch(state, self.tools)

    def prepare(self, wanted: Sequence[tuple[Target, str | None]]) -> None:
        """Make the artifacts of several targets and backends side by side, as far as memory allows.

        `build` finds them afterwards. Each conversion is a process of its own; what happens in this one (passes, the
        export) is done before, one after the other.

        Raises:
            EdgekitError: The first failure; conversions under way are stopped.
        """
        plans = {plan.key: plan for target, name in wanted if not (plan := self._plan(target, name)).cached}
        if len(plans) < 2:
            return
        for plan in plans.values():
            self._program(plan.state)
        with self.progress.step(f"converting {len(plans)} artifacts side by side"):
            side_by_side([functools.partial(self._made, plan) for plan in plans.values()], self.progress)
        self._converted |= plans.keys()

    def _plan(
        self,
        target: Target,
        backend_name: str | None,
        lowering: Lowering | None = None,
        state: ModelState | None = None,
    ) -> _Plan:
        """What has to be made, with everything refused that can be refused before it is."""
        lowering = lowering or self.project.recipe_for(target).lowering
        if lowering.precision == AUTO:
            raise ConfigError(
                f"The scheme {AUTO} stands for several: only `compile` and `deploy` climb its ladder.",
                "Name one scheme in the recipe's lowering.quantize.",
            )
        backend = choose_backend(target, backend_name)
        source = self.project.root / split_source(self.project.source)[0]
        if not source.exists():
            raise ConfigError(f"There is no file '{source}'.", "Check `source:` in edgekit.yaml, or the path as typed.")
        backend.refuse_unsupported(backend.reads[0], (), lowering, target)
        state = self.state_for(target, backend) if state is None else self._readable(state, backend)
        backend.refuse_unsupported(state.info.format, state.info.outputs, lowering, target)
        calibration = self._calibration(lowering)
        key = self._artifact_key(backend, state, lowering, target, calibration)
        cached = self.cache.folder("artifacts", key) is not None
        if not cached and not backend.can_convert():
            raise MissingExtraError(
                f"Converting with the backend '{backend.name}' needs a package that is not installed.",
                f"pip install 'edgekit[{backend.extra}]'",
            )
        if lowering.overrides and not cached and state.info.format == "pt2":
            # A path that fits nothing is said before minutes are spent on a conversion.
            schemes_by_module([layer.path for layer in layers_of(state, self.tools)], lowering.overrides, "")
        return _Plan(backend, state, lowering, target, calibration, key, cached)

    def _made(self, plan: _Plan, progress: Progress) -> Artifact:
        def fill(staging: Path) -> None:
            self._convert(plan, staging, progress)

        return load_artifact(self.cache.make("artifacts", plan.key, fill))

    def _convert(self, plan: _Plan, staging: Path, progress: Progress) -> None:
        info = _timeless(plan.state.info)
        request = CompileRequest(
            program=self._program(plan.state),
            name=self.project.name,
            inputs=info.inputs,
            outputs=info.outputs,
            lowering=plan.lowering,
            target=plan.target,
            source=self.source_label,
            source_digest=info.digest,
            history=info.history,
            calibration=plan.calibration,
        )
        # One folder down: what a killed child leaves half-written beside its result goes with the staging folder.
        artifact = convert(plan.backend.name, request, staging / "made", progress, self.timeout_seconds)
        build = artifact.build
        for entry in artifact.path.iterdir():
            entry.rename(staging / entry.name)
        artifact.path.rmdir()
        if build is not None:
            compressed = sum(len(zlib.compress((staging / f.path).read_bytes(), 9)) for f in artifact.manifest.files)
            write_atomic(staging / BUILD, schema.to_json(replace(build, download_bytes=compressed)))

    @property
    def source_label(self) -> str:
        """The source as people know it: relative to the project where it lies in it."""
        path = Path(self.project.source)
        root = self.project.root
        return str(path.relative_to(root)) if path.is_absolute() and path.is_relative_to(root) else self.project.source

    def _program(self, state: ModelState) -> Path:
        """The program on disk, for the conversion's child process."""
        name = f"program.{state.info.format}"

        def fill(staging: Path) -> None:
            with self.progress.step("exporting the program"):
                state.live().program.save(staging / name)

        return self.cache.make("models", sha256_text(f"program:{state.info.digest}"), fill) / name

    def _calibration(self, lowering: Lowering) -> Path | None:
        """The calibration examples where the scheme has a use for them; static schemes cannot do without."""
        quantize = lowering.quantize
        if quantize is None or not quantize.scheme.startswith(_CALIBRATED):
            return None
        if self.data is not None and self.data.split("calibration") is not None:
            if quantize.scheme.startswith("static"):
                self._refuse_constant(self.data, quantize.calibration)
            return self.data.folder / "calibration"
        if not quantize.scheme.startswith("static"):
            return None
        lacking = "the project has no task" if self.data is None else "the task's calibration split is empty"
        raise ConfigError(
            f"The scheme {quantize.scheme} needs calibration examples, and {lacking}.",
            "In edgekit.yaml: task: task.py:NAME, with examples('calibration') yielding batches of inputs.",
        )

    def _refuse_constant(self, data: DataSet, count: int) -> None:
        """Examples that are all the same value set no range: one such input is told, nothing but such inputs refused."""
        import numpy as np

        floats = {spec.name for spec in self.source.info.inputs if spec.dtype.startswith("float")}
        constant = {}
        for name, path in data.inputs("calibration").items():
            values = np.load(path, mmap_mode="r")[:count]
            if name in floats and values.size and values.min() == values.max():
                constant[name] = float(values.flat[0])
        said = ", ".join(f"'{name}' is {value:g}" for name, value in constant.items())
        if floats and constant.keys() == floats:
            raise ConfigError(
                f"The calibration examples are all the same: {said} throughout. No range of activations can be read off"
                " them.",
                f"Let examples('calibration') of {data.label} yield inputs as the model will see them.",
            )
        if constant:
            self.progress.warn(f"In the calibration examples {said} throughout: its range is that one value.")

    def _artifact_key(
        self, backend: Backend, state: ModelState, lowering: Lowering, target: Target, calibration: Path | None
    ) -> str:
        parts = {
            "edgekit": __version__,
            "code": sha256_text(code_of_package(backend)),
            "backend": backend.name,
            "name": self.project.name,
            "source": self.source_label,
            "model": schema.to_plain(_timeless(state.info)),
            "lowering": schema.to_plain(lowering),
            "target": schema.to_plain(target),
            "calibration": self.data.key("calibration") if calibration and self.data else None,
            "toolchain": backend.toolchain_versions(),
        }
        return sha256_text(schema.canonical_json(parts).decode())

    def _tolerance(self, backend: Backend, lowering: Lowering, target: Target) -> Tolerance:
        said = (self.project.recipe_for(target).verify, self.verify)
        return tolerance_of(backend.computed_precision(lowering, target), *said)

    def _golden(self) -> InputFiles:
        def examples() -> Mapping[str, Array]:
            return self.source.live().example_inputs

        return golden_inputs(self.source.info.inputs, examples, self.source.info.digest, self.data, self.cache)

    def _sets(self) -> tuple[InputFiles, ...]:
        splits: tuple[Split, ...] = tuple(s for s in SPLITS if s in ("validation", "test"))
        found = [split_inputs(self.data, split) for split in splits] if self.data is not None else []
        golden = self._golden()
        # Without a task the golden inputs are made up already.
        made_up = () if self.data is None else (random_inputs(self.source.info.inputs, golden, self.cache),)
        return (golden, *made_up, *(s for s in found if s is not None))

    def _unverified(self, artifact: Artifact, target: Target, cached: bool) -> Built:
        self.progress.warn("Not verified: nobody has checked that this artifact computes what the model computes.")
        sets = tuple(as_taken(s, artifact.manifest.inputs, self.cache) for s in self._sets())
        return Built(artifact, target, cached, sets, None, {}, {}, {}, self.data)

    def _compared(self, artifact: Artifact, target: Target, cached: bool, state: ModelState) -> Built:
        sets = self._sets()

        def outputs_of(model: ModelState) -> dict[str, dict[str, Path]]:
            return {
                s.name: reference_outputs(model.info.digest, model.live, s, self.cache, self.progress) for s in sets
            }

        references = outputs_of(state)
        taken = tuple(as_taken(s, artifact.manifest.inputs, self.cache) for s in sets)
        manifest = artifact.manifest
        tolerance = self._tolerance(backends.create(manifest.backend), manifest.lowering, target)
        host = run_on_host(artifact, target, taken, references, self.cache, self.progress, tolerance)
        splits = [s.name for s in sets if s.name in SPLITS]
        data = self.data
        return Built(
            artifact=artifact,
            target=target,
            cached=cached,
            sets=taken,
            host=host,
            source_outputs=outputs_of(self.source),
            source_metrics={split: metrics_of(self.source, self.tools, split) for split in splits},
            host_metrics={split: data.score(host.outputs[split], split) for split in splits if data is not None},
            data=data,
        )


def _timeless(info: ModelInfo) -> ModelInfo:
    """What makes an artifact: how long a pass took does not, and would give each run another digest."""
    return replace(info, history=tuple(record.timeless() for record in info.history))


def choose_backend(target: Target, name: str | None) -> Backend:
    """The backend asked for, else the target's first that edgekit has.

    Raises:
        ConfigError: The target does not run that backend's artifacts.
        UnsupportedModelError: None of the target's backends is built yet.
    """
    if name is not None:
        backend = backends.create(name)
        if name not in target.backends:
            raise ConfigError(
                f"The target '{target.name}' does not run {name} artifacts; it runs {', '.join(target.backends)}.",
                f"--backend {target.backends[0]}",
            )
        return backend
    for candidate in target.backends:
        if candidate in backends:
            return backends.create(candidate)
    raise UnsupportedModelError(
        f"The target '{target.name}' needs the backend {' or '.join(target.backends)}, which this edgekit does not have"
        " yet.",
        "edgekit targets",
    )
