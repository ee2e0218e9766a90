"""`edgekit verify`: does an artifact still compute what its model computes?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import options
from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.core.errors import ConfigError
    from edgekit.flow.divergence import Bisection
    from edgekit.flow.verify import Verification


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(
        app,
        "verify",
        example="edgekit verify build/digits/linux-x86-litert-float32\n"
        "edgekit verify build/digits/linux-x86-litert-float32 --bisect",
    )
    def verify(
        screen: Screen,
        artifact: Annotated[
            Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder, as `edgekit compile` wrote it.")
        ],
        bisect: Annotated[
            bool, typer.Option("--bisect", help="Name the first layer at which the artifact leaves its source model.")
        ] = False,
        source: Annotated[
            str | None,
            typer.Option("--source", help="With --bisect: what it was made from; edgekit.yaml's by default."),
        ] = None,
        recipe: options.Recipe = None,
    ) -> int:
        """Check every file's hash, run the artifact here on its golden inputs, compare."""
        from edgekit.core import schema
        from edgekit.core.errors import ConfigError
        from edgekit.flow.cache import Cache
        from edgekit.flow.export import GOLDEN, open_artifact
        from edgekit.flow.verify import run_on_host

        if bisect:
            return _bisect(screen, artifact, source, recipe)
        if source is not None or recipe is not None:
            raise ConfigError("--source and --recipe say what to compare with layer by layer.", "Add --bisect.")
        built = open_artifact(artifact, Path.cwd())
        if built.host is None:
            raise _no_golden(artifact)
        references = {GOLDEN: built.host.outputs[GOLDEN]}
        again = run_on_host(
            built.artifact,
            built.target,
            built.sets,
            references,
            Cache(enabled=False),
            screen,
            built.host.verification.tolerance,
        )
        found = again.verification
        failures = [*built.host.verification.failures(), *found.failures()]
        screen.answer(
            {
                "schema_version": 1,
                "artifact": str(artifact),
                "ok": not failures,
                "at_compile": schema.to_plain(built.host.verification),
                "now": schema.to_plain(found),
                "failures": failures,
            },
            "Outputs against the source model, when it was compiled:",
            _table(built.host.verification),
            "Outputs here and now, against those of then:",
            _table(found),
        )
        return 1 if failures else 0


def _no_golden(artifact: Path) -> ConfigError:
    from edgekit.core.errors import ConfigError

    return ConfigError(
        f"'{artifact}' was compiled with --no-verify: it has no golden inputs to compare with.",
        "edgekit compile makes it anew, verified.",
    )


def _bisect(screen: Screen, path: Path, source: str | None, recipe: str | None) -> int:
    from edgekit.core import schema
    from edgekit.core.artifact import load_artifact
    from edgekit.core.errors import ConfigError
    from edgekit.core.target import load_target
    from edgekit.flow.bisect import bisect_artifact, source_of
    from edgekit.flow.export import golden_of, verification_of

    artifact = load_artifact(path)
    golden, recorded = golden_of(artifact), verification_of(artifact)
    if golden is None or recorded is None:
        raise _no_golden(path)
    damage = ""
    try:
        artifact.verify_files()
    except ConfigError as error:
        # A damaged file is looked into all the same: which layer it hits is what the person asks.
        damage = error.message
        screen.warn(damage)
    builder = options.builder_of(options.project_of(source, None, None, recipe, None), screen)
    target = load_target(artifact.manifest.target, builder.project.root)
    model = source_of(artifact, builder, target)
    found = bisect_artifact(artifact, target, golden, model, recorded.tolerance, screen)
    ok = found.first is None and not damage
    screen.answer(
        {"schema_version": 1, "artifact": str(path), "ok": ok, "damage": damage, "bisection": schema.to_plain(found)},
        _layers(found),
        *_said(found),
    )
    return 0 if ok else 1


def _said(found: Bisection) -> list[str]:
    tolerance, first = found.tolerance, found.first
    bounds = f"(tolerance: {tolerance.min_snr_db:g} dB, cosine {tolerance.min_cosine:g})"
    if first is None:
        lines = [f"No layer diverges {bounds}."]
    else:
        good = "the inputs" if first.last_good is None else _named(*first.last_good)
        before = "" if first.snr_before_db is None else f" at {_decibel(first.snr_before_db)}"
        closest = "the artifact has nothing of its size"
        if first.tensor is not None:
            closest = f"{_decibel(first.snr_db)} at the artifact's '{_short(first.tensor)}'"
        lines = [
            f"First layer that diverges: {_named(first.path, first.operator)} {bounds}",
            f"  {closest}; the last good one before it is {good}{before}.",
        ]
        lines += [f"  Diverges as well, on another branch: {_named(*other)}" for other in found.others]
    loss = found.largest_loss
    if loss is not None:
        before = "the inputs" if loss.snr_before_db is None else _decibel(loss.snr_before_db)
        start, end = _named(loss.path, loss.operator), _named(*loss.until)
        where = f"at {start}" if start == end else f"from {start} to {end}"
        lines.append(
            f"Within the tolerance, most is lost {where}: {before} before it, {_decibel(loss.snr_db)} after it."
        )
    return lines


def _layers(found: Bisection) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "operator", "SNR", "tensor in the artifact"):
        table.add_column(column, overflow="fold")
    for layer in found.layers:
        snr = layer.status if layer.snr_db is None else _decibel(layer.snr_db)
        wrong = " (diverged)" if layer.status == "diverged" and layer.snr_db is not None else ""
        table.add_row(layer.path or "(the model)", layer.operator, snr + wrong, _short(layer.tensor or ""))
    return table


def _named(path: str, operator: str) -> str:
    return f"{path or 'the model itself'} ({operator})"


def _decibel(snr_db: float | None) -> str:
    if snr_db is None:
        return "–"
    return "equal" if snr_db >= 999 else "not finite" if snr_db <= -999 else f"{snr_db:.1f} dB"


def _short(tensor: str) -> str:
    """The last of the names that a converter has strung together, no longer than a table's column."""
    name = tensor.rpartition(";;")[2]
    return name if len(name) <= 60 else f"…{name[-59:]}"


def _table(verification: Verification) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("inputs", "output", "examples", "SNR", "cosine", "max abs", "max rel", "agreement"):
        table.add_column(column)
    for name, parities in verification.parity.items():
        for p in parities:
            table.add_row(
                name,
                p.output,
                str(p.examples),
                "equal" if p.snr_db >= 999 else f"{p.snr_db:.1f} dB",
                f"{p.cosine:.6f}",
                f"{p.max_abs:.3g}",
                f"{p.max_rel:.3g}",
                "–" if p.agreement is None else f"{p.agreement:.3f}",
            )
    return table
