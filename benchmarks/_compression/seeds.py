"""The seeds that the project was asked to reproduce: a CNN distilled into an MLP, a pruned MLP, int8 in four formats, LoRA.

Every cell is a row of examples/compression/table.py, or a run of examples/mt5_lora/run.py, made by the command there.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._compression.goals import GOALS, SEEDS
from benchmarks.artifacts import keep, speeds
from benchmarks.common import ROOT, Results
from benchmarks.workshop import ALONE, Cell, CellError, Found, Workshop
from edgekit.core.user_code import load_module

EXAMPLE = ROOT / "examples" / "compression"
example: Any = load_module(EXAMPLE / "table.py")
LORA = ROOT / "examples" / "mt5_lora" / "run.py"
SUBJECTS = {"cnn": "mnist_student", "student": "mnist_student", "mlp": "mnist_mlp128"}
INT8_POINTS = 0.5
SPARSE = GOALS["mnist_mlp128/sparse"]
_training = threading.Lock()


def key_of(row: Any) -> str:
    """A row's key: subject, format, seed, recipe."""
    recipe = "teacher" if row.network == "cnn" else row.recipe
    return f"{SUBJECTS[row.network]}/{row.backend}/seed{row.seed}/{recipe}"


ROWS = {key_of(row): row for row in example.rows()}


def cells() -> list[Cell]:
    """Every row of the example, adapters by seed, and the speeds of the MLP's artifacts in LiteRT."""
    found = [Cell(key, _made) for key in ROWS]
    found += [Cell(f"mt5_lora/-/seed{seed}/lora", _adapted) for seed in SEEDS]
    return [*found, Cell("mnist_mlp128/litert/all/speed", _speed, phase=ALONE)]


def _made(shop: Workshop, cell: Cell) -> Found:
    row, folder = ROWS[cell.key], shop.artifacts(cell.key)
    with _training:
        if not load_module(EXAMPLE / "model.py").weights_file(row.weights).is_file():
            ended = shop.child([sys.executable, str(EXAMPLE / "train.py")])
            if ended.code != 0:
                raise CellError(ended.last_words())
    argv = [sys.executable, str(EXAMPLE / "table.py"), "--row", row.name, "--out", str(folder)]
    ended = shop.child(argv, cwd=EXAMPLE)
    found = ended.document()
    keep(folder, Path(found.pop("path")))
    return found | {"cpu_seconds": ended.cpu_seconds}


def _adapted(shop: Workshop, cell: Cell) -> Found:
    """One seed of the mT5; its artifacts are the first seed's."""
    seed = cell.key.split("/")[2].removeprefix("seed")
    compiled = [] if int(seed) == SEEDS[0] else ["--no-compile"]
    ended = shop.child([sys.executable, str(LORA), "--seed", seed, "--json", *compiled])
    if ended.code != 0:
        raise CellError(ended.last_words())
    found: Found = json.loads(ended.stdout)
    found.pop("notes")
    return found | {"cpu_seconds": ended.cpu_seconds}


def _speed(shop: Workshop, _cell: Cell) -> Found:
    recipes = ("float", "int8", "prune", "prune-int8")
    image = shop.folder / "inputs" / "mnist.npy"
    image.parent.mkdir(parents=True, exist_ok=True)
    load_module(EXAMPLE / "model.py")
    from mnist_data import load  # on the path since the model was loaded

    np.save(image, load("mnist", "test")[0][:1])
    keys = {recipe: f"mnist_mlp128/litert/seed{SEEDS[0]}/{recipe}" for recipe in recipes}
    return speeds(shop, keys, {"image": str(image)})


def by_row(cells: Mapping[str, Found]) -> dict[str, Found]:
    """What was found, by the names that the example has for it; empty as soon as one is missing."""
    known = {row.name: cells[key] for key, row in ROWS.items() if "top1" in cells.get(key, {})}
    return known if len(known) == len(ROWS) else {}


def adapted(cells: Mapping[str, Found]) -> list[Found]:
    """The runs of the mT5, where all are there."""
    found = [cells.get(f"mt5_lora/-/seed{seed}/lora", {}) for seed in SEEDS]
    return found if all("exact_after" in one for one in found) else []


def _lora_rows(results: Results, cells: Mapping[str, Found]) -> None:
    found = adapted(cells)
    if not found:
        results.add(
            "mT5, LoRA merged: numbers rightly written in the new way", None, "%", note="not all cells are made"
        )
        return
    for when, words in (("exact_before", "before"), ("exact_after", "LoRA merged")):
        values = [100 * one[when]["french"] for one in found]
        note = f"three seeds, {example.told(values, 1)}; {found[0]['trainable_parameters']:,} trainable parameters"
        name = f"mT5, {words}: numbers rightly written in the new way"
        results.add(name, statistics.fmean(values), "%", note=f"{note} of {found[0]['parameters']:,}")


def rows(results: Results, cells: Mapping[str, Found]) -> None:
    """Rows with their goals."""
    _lora_rows(results, cells)
    found = by_row(cells)
    if not found:
        results.add(
            "CNN into MLP, pruned MLP and int8 of it", None, "points", at_least=0, note="not all cells are made"
        )
        return
    gain = example.differences(found, "student", "litert", "alone", "distill")
    note = f"three seeds, {_told(gain)}; the goal is its standard error"
    error = 100 * example.standard_error(gain)
    name = "MNIST CNN into an MLP of one hidden layer: gain of distillation over training alone"
    results.add(name, 100 * statistics.fmean(gain), "points", at_least=error, note=note)
    for recipe, words in (("prune", "90 % zeros, stored sparse"), ("prune-int8", "90 % zeros, int8, stored sparse")):
        _pair(results, found, cells, ("litert", recipe, f"MNIST MLP 128-64, {words}"), SPARSE.lost, SPARSE.smaller)
    for backend in example.TARGETS:
        _pair(results, found, cells, (backend, "int8", f"MNIST MLP 128-64, int8, {backend}"), INT8_POINTS, None)


def _pair(
    results: Results,
    found: Mapping[str, Found],
    cells: Mapping[str, Found],
    what: tuple[str, str, str],
    lost: float,
    smaller: float | None,
) -> None:
    backend, recipe, name = what
    gain = example.differences(found, "mlp", backend, "float", recipe)
    note = f"three seeds, change {_told(gain)} points"
    if backend in example.REFERENCE_EVALUATED:
        note += "; by the reference evaluator, on the first 2,000 test images, never by Apple's runtime"
    results.add(f"{name}: top-1 lost", -100 * statistics.fmean(gain), "points", at_most=lost, note=note)
    sizes = [
        found[f"mlp/seed{seed}/{backend}/float"]["bytes"] / found[f"mlp/seed{seed}/{backend}/{recipe}"]["bytes"]
        for seed in SEEDS
    ]
    results.add(f"{name}: smaller than float32", statistics.fmean(sizes), "times", at_least=smaller)
    timing = cells.get("mnist_mlp128/litert/all/speed", {}).get(recipe)
    if backend == "litert" and timing:
        note = "process time, single-threaded, interleaved; seed 0"
        results.add(f"{name}: faster than float32", timing["speed"], "times", note=note)


def _told(values: list[float]) -> str:
    return example.told(values)


def table(cells: Mapping[str, Found]) -> str:
    """The examples' own tables, with speeds below."""
    runs = adapted(cells)
    lora = f"## LoRA: a small mT5, three seeds\n\n{load_module(LORA).tables(runs)}\n" if runs else ""
    found = by_row(cells)
    if not found:
        return lora
    text = f"## The seeds: MNIST, three seeds, all 10,000 test images\n\n{example.table(found)}"
    timing = cells.get("mnist_mlp128/litert/all/speed", {})
    speeds_ = ", ".join(
        f"{name} {value['speed']:.2f}×" for name, value in timing.items() if isinstance(value, dict) and name != "float"
    )
    text += f"\nSpeed of the MLP in LiteRT beside its float32, seed 0: {speeds_}.\n" if speeds_ else ""
    return f"{text}\n{lora}"
