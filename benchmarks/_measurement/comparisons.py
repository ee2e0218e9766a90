"""Rows on comparisons: equal things called equal, a twentieth found; simulated on recorded noise, and real."""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence

from benchmarks._measurement import machine
from benchmarks.common import ROOT, Results
from edgekit.core.comparison import ALPHA, Difference, Processes, compare_samples

NOISE = ROOT / "benchmarks" / "data" / "latency-noise.json"
ROUNDS = 16
SHORT_ROUNDS = 8
SIMULATED = 1000
REAL_SAME = 100
REAL_PAIR = 20
EFFECT = 1.05


def record() -> None:
    """Record this machine's noise anew, into the file that the simulation draws from."""
    found = machine.recorded(processes=800, samples=40)
    lines = ",\n".join(json.dumps([float(f"{value:.5g}") for value in process]) for process in found)
    NOISE.write_text(f"[\n{lines}\n]\n")


def simulated(results: Results) -> None:
    noise = json.loads(NOISE.read_text())
    source = f"{len(noise)} fresh processes of one artifact, recorded one after the other on a shared 2-core machine"
    for rounds in (SHORT_ROUNDS, ROUNDS):
        same = _trials(noise, rounds, SIMULATED, _in_turns)
        results.add(
            f"A/A in turns, {rounds} rounds, simulated on recorded noise: no difference",
            _share(same, lambda found: not found.different),
            "share",
            at_least=0.97,
            note=f"{SIMULATED} comparisons at alpha {ALPHA}; {source}",
        )
    found = _trials(noise, ROUNDS, SIMULATED, _in_turns, EFFECT)
    results.add(
        f"5 % slower, in turns, {ROUNDS} rounds, simulated on recorded noise: found",
        _share(found, lambda one: one.different and one.ratio.estimate > 1),
        "share",
        at_least=0.90,
        note=f"{SIMULATED} comparisons; the interval holds the true ratio in"
        f" {_share(found, lambda one: one.ratio.low <= EFFECT <= one.ratio.high):.3f} of them",
    )
    apart = _trials(noise, ROUNDS, SIMULATED, _apart)
    results.add(
        f"A/A of two runs at different times, {ROUNDS} processes each, simulated on recorded noise: no difference",
        _share(apart, lambda one: not one.different),
        "share",
        at_least=0.97,
        note="the two runs lie anywhere in the record; Mann–Whitney alone, without an allowance for drift between runs:"
        f" {_share(apart, lambda one: one.p > ALPHA):.3f}",
    )


def real(results: Results) -> None:
    def tell(text: str) -> None:
        print(f"    {text}", file=sys.stderr, flush=True)

    twenty, more = machine.artifact("twenty"), machine.artifact("twenty_one")
    same = _decided(machine.comparisons("same", [twenty, twenty], REAL_SAME, SHORT_ROUNDS, tell))
    results.add(
        f"A/A in turns, real runs, {SHORT_ROUNDS} rounds: no difference",
        float(sum(not one.different for one in same)),
        f"of {REAL_SAME} runs",
        at_least=95,
        note="LiteRT, 1 thread, 0.7 ms an inference, about 60 of them in each fresh process",
    )
    pair = _decided(machine.comparisons("pair", [twenty, more], REAL_PAIR, ROUNDS, tell))
    ratios = [one.ratio.estimate for one in pair]
    results.add(
        f"20 convolutions against 21, real runs, {ROUNDS} rounds: the slower one found",
        _share(pair, lambda one: one.different and one.ratio.estimate > 1),
        "share",
        at_least=0.90,
        note=f"{REAL_PAIR} runs; ratios from {min(ratios):.3f} to {max(ratios):.3f}, median {statistics.median(ratios):.3f}",
    )


def _decided(made: Sequence[Sequence[Processes]]) -> list[Difference]:
    return [compare_samples(a, b, paired=True, seed=number) for number, (a, b) in enumerate(made)]


def _trials(
    noise: Processes,
    count: int,
    trials: int,
    drawn: Callable[[Processes, int, random.Random], tuple[Processes, Processes, bool]],
    effect: float = 1.0,
) -> list[Difference]:
    lot, found = random.Random(7), []
    for number in range(trials):
        a, b, paired = drawn(noise, count, lot)
        slowed = [[value * effect for value in process] for process in b]
        found.append(compare_samples(a, slowed, paired=paired, seed=number))
    return found


def _in_turns(noise: Processes, rounds: int, lot: random.Random) -> tuple[Processes, Processes, bool]:
    """A stretch of the record as it was, each round's two processes dealt out by lot."""
    start = lot.randrange(len(noise) - 2 * rounds + 1)
    pairs = [list(noise[start + 2 * i : start + 2 * i + 2]) for i in range(rounds)]
    for pair in pairs:
        lot.shuffle(pair)
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs], True


def _apart(noise: Processes, count: int, lot: random.Random) -> tuple[Processes, Processes, bool]:
    """Two stretches that do not overlap."""
    first = lot.randrange(len(noise) - 2 * count + 1)
    second = lot.randrange(first + count, len(noise) - count + 1)
    a, b = noise[first : first + count], noise[second : second + count]
    return (a, b, False) if lot.random() < 0.5 else (b, a, False)


def _share(found: Sequence[Difference], holds: Callable[[Difference], bool]) -> float:
    return sum(map(holds, found)) / len(found)
