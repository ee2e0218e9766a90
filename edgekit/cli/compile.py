"""`edgekit compile`: one verified artifact a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import ladders, options
from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.core.target import Target
    from edgekit.flow.build import Built
    from edgekit.flow.ladder import Made
    from edgekit.flow.project import Project


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(
        app,
        "compile",
        example="edgekit compile\nedgekit compile model.py:build --target linux-x86\n"
        "edgekit compile net.onnx --target intel-cpu --backend openvino --out build",
    )
    def compile_(
        screen: Screen,
        source: options.Source = None,
        target: options.Targets = None,
        backend: Annotated[
            list[str] | None,
            typer.Option("--backend", "-b", help="One of the target's backends; may be given several times, or `all`."),
        ] = None,
        recipe: options.Recipe = None,
        name: options.Name = None,
        task: options.Task = None,
        weights: options.Weights = None,
        seed: options.Seed = None,
        out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder that gets one folder a target.")] = None,
        fail_on: options.FailOn = None,
        no_verify: options.NoVerify = False,
        min_snr_db: options.MinSnr = None,
        timeout: options.Timeout = 1800.0,
        no_cache: options.NoCache = False,
    ) -> None:
        """Compress where the recipe says so, convert, verify; one artifact folder a target."""
        from edgekit.flow import ladder
        from edgekit.flow.export import export_artifact
        from edgekit.flow.fallback import require_delegated

        project = options.project_of(source, name, task, recipe, target, weights, seed)
        builder = options.builder_of(project, screen, timeout, no_cache, min_snr_db)
        wanted = [(chosen, name) for chosen in options.targets_of(project) for name in _backends(chosen, backend)]
        builder.prepare([(t, b) for t, b in wanted if not ladder.is_auto(builder, t)])
        made: list[tuple[Made, Path]] = []
        with ladders.shown_if_none_fits(screen):
            for chosen, chosen_backend in wanted:
                one = ladder.make(builder, chosen, chosen_backend, verify=not no_verify)
                if fail_on is not None:
                    require_delegated(one.built)
                made.append((one, export_artifact(one.built, artifact_folder(project, one.built, out))))
        run = _record(screen, project, [one.built for one, _ in made])
        screen.answer(
            {"schema_version": 1, "run": run, "artifacts": [_document(one, folder) for one, folder in made]},
            *ladders.tables(ladders.of([one for one, _ in made])),
            _table(made),
        )


def _backends(target: Target, asked: list[str] | None) -> list[str | None]:
    """The backends asked for of one target; None stands for its default."""
    from edgekit.core.registry import plugin_names

    if asked == ["all"]:
        return [name for name in target.backends if name in plugin_names("edgekit.backends")]
    return [*asked] if asked else [None]


def _record(screen: Screen, project: Project, made: list[Built]) -> str | None:
    """Keep what was found of artifacts that no device at hand can run: no deploy will tell of them later.

    Returns:
        The run they are kept as, or None where there is none.
    """
    from edgekit.cli.deploy import command_line
    from edgekit.flow.measure import new_run, reference_result

    judged = [built for built in made if built.host is not None and built.host.verification.by != "runtime"]
    if not judged:
        return None
    run = new_run()
    with options.store_of(project.root) as store:
        for built in judged:
            store.add(reference_result(built, run, command_line()))
    screen.note(f"reference-evaluated; kept as run {run} (edgekit report {run})")
    return run


def artifact_folder(project: Project, built: Built, out: Path | None) -> Path:
    """Where an artifact goes: `build/<name>/<target>-<backend>-<precision>` in the project, unless told otherwise."""
    manifest = built.artifact.manifest
    base = out if out is not None else project.root / "build" / project.name
    return base / f"{manifest.target}-{manifest.backend}-{manifest.lowering.precision}"


def _document(made: Made, folder: Path) -> dict[str, Any]:
    from edgekit.core import schema
    from edgekit.flow.accuracy import accuracies
    from edgekit.flow.rungs import document

    built = made.built
    manifest, build = built.artifact.manifest, built.artifact.build
    return {
        "path": str(folder),
        "target": manifest.target,
        "backend": manifest.backend,
        "precision": _computed(built),
        "lowering": schema.to_plain(manifest.lowering),
        "digest": built.artifact.digest,
        "artifact_bytes": built.artifact.bytes,
        "download_bytes": build.download_bytes if build else None,
        "cached": built.cached,
        "conversion": schema.to_plain(build) if build else None,
        "verification": schema.to_plain(built.host.verification) if built.host else None,
        "metrics": {"source": dict(built.source_metrics), "host": dict(built.host_metrics)},
        "accuracy": [schema.to_plain(accuracy) for accuracy in accuracies(built)],
        "ladder": document(made.ladder) if made.ladder else None,
        "changed": list(manifest.changed),
    }


def _table(made: list[tuple[Made, Path]]) -> Any:
    from rich.table import Table

    from edgekit.core.units import format_bytes, format_duration
    from edgekit.flow.accuracy import accuracy_of
    from edgekit.report.accuracy import agreement_text, metric_text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "target",
        "backend",
        "precision",
        "size",
        "made in",
        "peak RAM",
        "parity",
        "metric",
        "agreement",
        "folder",
    ):
        table.add_column(column, overflow="fold")
    for one, folder in made:
        built = one.built
        manifest, build = built.artifact.manifest, built.artifact.build
        parity = "not verified"
        if built.host is not None:
            worst = min((p for ps in built.host.verification.parity.values() for p in ps), key=lambda p: p.snr_db)
            parity = f"{worst.snr_db:.0f} dB" if worst.snr_db < 999 else "equal"
            if built.host.verification.by != "runtime":
                parity += " (reference-evaluated, not device-verified)"
        accuracy = accuracy_of(built, "validation") or accuracy_of(built, "test")
        table.add_row(
            manifest.target,
            manifest.backend,
            _computed(built),
            format_bytes(built.artifact.bytes),
            "cached" if built.cached else format_duration(build.seconds) if build else "–",
            f"{build.peak_rss_mib:.0f} MiB" if build else "–",
            parity,
            metric_text(accuracy),
            agreement_text(accuracy),
            _short(folder),
        )
    return table


def _computed(built: Built) -> str:
    """What the artifact computes in; Core ML computes a float32 model in float16 unless told otherwise."""
    from edgekit.backends.base import registry

    manifest = built.artifact.manifest
    return registry.create(manifest.backend).computed_precision(manifest.lowering, built.target)


def _short(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)
