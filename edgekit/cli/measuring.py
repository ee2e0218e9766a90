"""Options that say how to measure; `edgekit.flow.asked` reads what is typed."""

from __future__ import annotations

from typing import Annotated

import typer

Ci = Annotated[
    str | None,
    typer.Option("--ci", help="Time until half the median's 95 % interval is this share of it, such as 2%."),
]
MaxSeconds = Annotated[
    float | None,
    typer.Option("--max-seconds", help="Timing stops after this long, in each process; 10 by default.", min=0.1),
]
Governor = Annotated[
    str | None,
    typer.Option("--governor", help="Set this frequency governor while measuring; the one before is given back."),
]
CoolBelow = Annotated[
    float | None,
    typer.Option("--cool-below", help="Wait before each timed run until the processor is below so many °C."),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="threads=1,2,4", help="Measure throughput at each of these numbers of threads."),
]
Sustained = Annotated[
    str | None,
    typer.Option("--sustained", metavar="30m", help="Then run without a pause for so long: latency against time."),
]
