"""`edgekit verify`: does an artifact still compute what its model computes?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.common import verb
from edgekit.cli.screen import Screen

if TYPE_CHECKING:
    from edgekit.flow.verify import Verification


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @verb(app, "verify", example="edgekit verify build/digits/linux-x86-litert-float32")
    def verify(
        screen: Screen,
        artifact: Annotated[
            Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder, as `edgekit compile` wrote it.")
        ],
    ) -> int:
        """Check every file's hash, run the artifact here on its golden inputs, compare."""
        from edgekit.core import schema
        from edgekit.core.errors import ConfigError
        from edgekit.flow.cache import Cache
        from edgekit.flow.export import GOLDEN, open_artifact
        from edgekit.flow.verify import run_on_host

        built = open_artifact(artifact, Path.cwd())
        if built.host is None:
            raise ConfigError(
                f"'{artifact}' was compiled with --no-verify: it has no golden inputs to compare with.",
                "edgekit compile makes it anew, verified.",
            )
        references = {GOLDEN: built.host.outputs[GOLDEN]}
        again = run_on_host(built.artifact, built.target, built.sets, references, Cache(enabled=False), screen)
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
