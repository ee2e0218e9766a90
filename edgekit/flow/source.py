"""The source, read: from what is remembered of it where nothing that it depends on changed, else by running it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.core import schema
from edgekit.core.errors import ConfigError, EdgekitError
from edgekit.core.files import sha256_text
from edgekit.core.model import Model
from edgekit.core.program import TorchProgram
from edgekit.core.progress import Progress
from edgekit.core.user_code import fresh_modules
from edgekit.flow.cache import Cache
from edgekit.flow.checkpoint import CHECKPOINT, is_checkpoint, load_checkpoint
from edgekit.flow.project import Project
from edgekit.flow.state import ModelInfo, ModelState, info_of
from edgekit.flow.tracing import Dependencies, tracing
from edgekit.frontends.base import frontend_for, split_source


@dataclass(frozen=True)
class _SourceRecord:
    dependencies: Dependencies
    info: ModelInfo


def load_source(project: Project, cache: Cache, progress: Progress) -> ModelState:
    """The model that a project's source gives.

    Raises:
        ConfigError: The source is missing, or its code raises.
        UnsupportedModelError: It cannot be taken.
    """
    path = project.root / split_source(project.source)[0]
    key = sha256_text(schema.canonical_json(_identity(project, path)).decode())
    known = cache.record("sources", key, _SourceRecord)
    if known is not None and known.dependencies.unchanged():
        return ModelState(known.info, lambda: _remembered(project, path, known.info))
    beside = path / CHECKPOINT if is_checkpoint(path) else path
    if not is_checkpoint(path):
        frontend_for(project.source)  # an unreadable kind of file is said before torch is imported
    with progress.step(f"loading {project.source}"):
        with fresh_modules(), tracing(beside) as traced:
            model = _load(project, path)
        deterministic = _repeats(project, path, model)
    info = info_of(model, deterministic)
    if deterministic:
        cache.put_record("sources", key, _SourceRecord(traced[0], info))
    else:
        progress.warn(
            f"{project.source} gives other weights each time it is called: two calls in a row differed, so every run"
            " converts anew. Load the weights from a file, or seed with torch.manual_seed(0)."
        )
    state = ModelState(info, lambda: model)
    state.live()
    return state


def _identity(project: Project, path: Path) -> dict[str, object]:
    return {
        "source": str(path.resolve()),
        "factory": split_source(project.source)[1],
        "name": project.name,
        "weights": project.weights,
        "inputs": [schema.to_plain(declared) for declared in project.inputs],
        "outputs": [schema.to_plain(declared) for declared in project.outputs],
    }


def _load(project: Project, path: Path) -> Model:
    if is_checkpoint(path):
        return load_checkpoint(path, project.name)
    return frontend_for(project.source).load(project.source_request)


def _remembered(project: Project, path: Path, info: ModelInfo) -> Model:
    """The live model of what is remembered.

    Raises:
        ConfigError: It is another one: it depends on something that no trace shows.
    """
    with fresh_modules():
        model = _load(project, path)
    if model.digest != info.digest:
        raise ConfigError(
            f"{project.source} gives another model than it gave before, though no file that it reads has changed: it"
            " depends on something else, such as an environment variable or the time.",
            "Run with --no-cache, or load what it depends on from a file.",
        )
    return model


def _repeats(project: Project, path: Path, model: Model) -> bool:
    """Whether the factory, imported and called a second time, gives the same; files give the same by nature."""
    if not isinstance(model.program, TorchProgram) or is_checkpoint(path):
        return True
    try:
        with fresh_modules():
            again = frontend_for(project.source).load(project.source_request)
    except EdgekitError:
        # A factory that works only once is as little repeatable as one that draws random weights.
        return False
    return again.digest == model.digest
