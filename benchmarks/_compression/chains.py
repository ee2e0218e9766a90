"""Passes and quantization in a chain: ResNet-20 on Fashion-MNIST, an MLP on MNIST and on Fashion-MNIST, three seeds.

A seed is that of the float network's training (examples/mnist/train.py) and of the chain's recipe. Each recipe stands in
examples/mnist, chosen on the validation images of seed 0. What is judged is the artifact, in its own runtime, image by
image; beside it the float network's artifact by the same backend.
"""

from __future__ import annotations

import re
import statistics
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._compression.goals import GOALS, SEEDS, WANTED_RESNET_LITERT
from benchmarks.artifacts import compiled, keep, speeds
from benchmarks.common import ROOT, Results
from benchmarks.workshop import ALONE, QUICK_EXAMPLES, Cell, CellError, Found, Workshop
from edgekit.core.artifact import load_artifact
from edgekit.core.files import write_atomic
from edgekit.core.user_code import load_module

EXAMPLE = ROOT / "examples" / "mnist"
TASKS = {"fashion_resnet": "FashionMnist", "mnist_mlp": "Mnist", "fashion_mlp": "MirroredFashionMnist"}
TARGETS = {"litert": "linux-x86", "openvino": "intel-cpu"}
SUBJECTS = {"fashion_resnet": ("litert", "openvino"), "mnist_mlp": ("litert",), "fashion_mlp": ("litert",)}
QUICK_TRAINED = "1000"
_training = threading.Lock()


def cells() -> list[Cell]:
    """Of each network, backend and seed the float artifact and the chain's; and speeds."""
    found = []
    for subject, backends in SUBJECTS.items():
        for backend in backends:
            for seed in SEEDS:
                found.append(Cell(f"{subject}/{backend}/seed{seed}/float32", _made))
                # The second backend finds the passes of the first in the cache: not at the same time.
                phase = 0 if backend == backends[0] else 1
                found.append(Cell(f"{subject}/{backend}/seed{seed}/chain", _made, phase))
            found.append(Cell(f"{subject}/{backend}/all/speed", _speed, phase=ALONE))
    return found


def _made(shop: Workshop, cell: Cell) -> Found:
    """`edgekit compile` with its verification, and how many test images the artifact names rightly."""
    subject, backend, seed_, kind = cell.key.split("/")
    dataset, _, network = subject.partition("_")
    seed, folder = int(seed_.removeprefix("seed")), shop.artifacts(cell.key)
    _train(shop, dataset, network, seed)
    recipe = _recipe(shop, subject, seed) if kind == "chain" else EXAMPLE / "recipe-float.yaml"
    argv = ["compile", f"{EXAMPLE / 'networks.py'}:{subject}_{seed}", "--name", subject, "--out", str(folder)]
    argv += ["--task", f"{Path(__file__).parent / 'images.py'}:{TASKS[subject]}", "--recipe", str(recipe)]
    argv += ["--target", TARGETS[backend], "--backend", backend]
    env = {"EDGEKIT_BENCH_TRAIN": QUICK_TRAINED} if shop.quick else None
    # With so few examples the budget says no, as it should.
    artifact = compiled(shop, [*argv, *(["--no-verify"] if shop.quick else [])], folder, env)
    path = Path(artifact["path"])
    keep(folder, path)
    sizes = {file.path: file.bytes for file in load_artifact(path).manifest.files}
    return {
        "bytes": artifact["artifact_bytes"],
        "files": sizes,
        "passes": _passes(path),
        "validation": {side: artifact["metrics"][side].get("validation", {}) for side in ("source", "host")},
        **_judged(shop, cell.key, dataset),
    }


def _train(shop: Workshop, dataset: str, network: str, seed: int) -> None:
    """The float network's weights; nothing is done where they are there."""
    with _training:
        if load_module(EXAMPLE / "networks.py").weights_file(dataset, network, seed).is_file():
            return
        argv = [sys.executable, str(EXAMPLE / "train.py"), "--dataset", dataset, "--network", network]
        ended = shop.child([*argv, "--seed", str(seed)])
        if ended.code != 0:
            raise CellError(ended.last_words())


def _recipe(shop: Workshop, subject: str, seed: int) -> Path:
    """The example's recipe with a seed, and the networks of that seed by their whole path: the task is not beside them."""
    text = (EXAMPLE / f"recipe-{subject}.yaml").read_text(encoding="utf-8")
    if text.count("\nseed: 0\n") != 1 or "networks.py:" not in text:
        raise CellError(f"recipe-{subject}.yaml has no line `seed: 0`, or names no network")
    text = text.replace("\nseed: 0\n", f"\nseed: {seed}\n")
    text = re.sub(r"networks\.py:(\w+)", lambda found: f"{EXAMPLE / found[0]}_{seed}", text)
    if shop.quick:
        text = text.replace("calibration: 512", f"calibration: {QUICK_EXAMPLES}")
    path = shop.folder / "recipes" / f"{subject}-seed{seed}.yaml"
    write_atomic(path, text)
    return path


def _passes(path: Path) -> list[Found]:
    """What each pass left."""
    return [
        {
            "name": record.name,
            "parameters": [record.parameters_before, record.parameters_after],
            "macs": [record.macs_before, record.macs_after],
            "validation": [record.metrics_before.get("top1"), record.metrics_after.get("top1")],
            "notes": list(record.notes),
        }
        for record in load_artifact(path).manifest.history
    ]


def _judged(shop: Workshop, key: str, dataset: str) -> Found:
    images, labels = _tested(shop, dataset)
    out = shop.folder / "artifacts" / key.replace("/", "--") / "outputs.npy"
    request = {"model": shop.model(key), "inputs": {"image": str(images)}, "out": str(out)}
    shop.asked("runtime", ("outputs",), request).document()
    answers = np.load(out)
    if answers.shape != (len(labels), 10) or not np.isfinite(answers).all():
        raise CellError(f"answers of the shape {answers.shape}, finite: {np.isfinite(answers).all()}")
    return {"examples": len(labels), "right": int((answers.argmax(1) == labels).sum())}


def _tested(shop: Workshop, dataset: str) -> tuple[Path, Any]:
    """A file of all test images, and their classes."""
    load_module(EXAMPLE / "networks.py")
    from mnist_data import load  # on the path since the networks were loaded

    images, labels = (part[: QUICK_EXAMPLES if shop.quick else None] for part in load(dataset, "test"))
    path = shop.folder / "inputs" / f"{dataset}-test.npy"
    with _training:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            staging = path.with_suffix(".part.npy")
            np.save(staging, images)
            staging.replace(path)
    return path, labels


def _speed(shop: Workshop, cell: Cell) -> Found:
    """Process time of the three chains' artifacts beside the float one of the first seed."""
    subject, backend, _, _ = cell.key.split("/")
    prefix = f"{subject}/{backend}"
    keys = {"float32": f"{prefix}/seed{SEEDS[0]}/float32"}
    keys |= {f"seed{seed}": f"{prefix}/seed{seed}/chain" for seed in SEEDS}
    images, _ = _tested(shop, subject.partition("_")[0])
    return speeds(shop, keys, {"image": str(images)})


def gains(cells: Mapping[str, Found], group: str) -> dict[str, list[float]]:
    """Of a network and backend, one number a seed: times smaller and faster, points lost, top-1 before and after.

    Args:
        cells: What was found.
        group: `fashion_resnet/litert`.
    """
    timing = cells.get(f"{group}/all/speed", {})
    found: dict[str, list[float]] = {"smaller": [], "faster": [], "lost": [], "before": [], "after": []}
    for seed in SEEDS:
        float_, chain = (cells.get(f"{group}/seed{seed}/{kind}", {}) for kind in ("float32", "chain"))
        if "right" not in float_ or "right" not in chain:
            continue
        before, after = (100 * one["right"] / one["examples"] for one in (float_, chain))
        found["before"].append(before)
        found["after"].append(after)
        found["lost"].append(before - after)
        found["smaller"].append(float_["bytes"] / chain["bytes"])
        if f"seed{seed}" in timing:
            found["faster"].append(timing[f"seed{seed}"]["speed"])
    return found


def told(values: Sequence[float], digits: int = 2) -> str:
    """Mean and sample standard deviation."""
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def rows(results: Results, cells: Mapping[str, Found]) -> None:
    """Rows with their goals."""
    for group in _groups():
        found, goal = gains(cells, group), GOALS[group]
        name = group.replace("_", " ").replace("/", ", ")
        note = f"{len(found['lost'])} seeds"
        _row(results, f"{name}: top-1 lost", found["lost"], "points", note, at_most=goal.lost)
        _row(results, f"{name}: smaller than float32", found["smaller"], "times", note, at_least=goal.smaller)
        again = cells.get(f"{group}/all/speed", {}).get("A/A", {}).get("speed")
        timed = f"{note}; process time, 1 thread, interleaved" + (f"; A/A {again:.3f}" if again else "")
        _row(results, f"{name}: faster than float32", found["faster"], "times", timed, at_least=goal.faster)
        if group == "fashion_resnet/litert":
            wanted = WANTED_RESNET_LITERT
            _row(results, f"{name}: smaller, wanted", found["smaller"], "times", note, at_least=wanted.smaller)
            _row(results, f"{name}: faster, wanted", found["faster"], "times", timed, at_least=wanted.faster)


def _row(results: Results, name: str, values: Sequence[float], unit: str, note: str, **goal: float | None) -> None:
    reached = statistics.fmean(values) if values else None
    results.add(name, reached, unit, note=f"{told(values)}, {note}" if values else "not made", **goal)


def _groups() -> list[str]:
    return [f"{subject}/{backend}" for subject, backends in SUBJECTS.items() for backend in backends]


def table(cells: Mapping[str, Found]) -> str:
    """A Markdown section: what the chains gain, and what each pass did."""
    lines = [
        "## In chain: three seeds, all 10,000 test images",
        "",
        "| network, backend | float32 top-1 | chain | points lost | kB | × smaller | × faster | A/A |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in _groups():
        found = gains(cells, group)
        if not found["lost"]:
            continue
        sizes = [
            statistics.fmean(cells[key]["bytes"] for seed in SEEDS if "bytes" in cells.get(key := f"{group}/seed{seed}/{kind}", {}))
            for kind in ("float32", "chain")
        ]  # fmt: skip
        again = cells.get(f"{group}/all/speed", {}).get("A/A", {}).get("speed")
        lines.append(
            f"| {group.replace('/', ', ')} | {told(found['before'])} | {told(found['after'])} | {told(found['lost'])} |"
            f" {sizes[0] / 1000:.0f} → {sizes[1] / 1000:.1f} | {told(found['smaller'], 1)} | {told(found['faster'], 1)} |"
            f" {f'{again:.3f}' if again else '–'} |"
        )
    return "\n".join([*lines, "", *_of_passes(cells)]) + "\n"


def _of_passes(cells: Mapping[str, Found]) -> list[str]:
    lines = [
        "| network, seed | pass | parameters | MACs | validation top-1 |",
        "|---|---|---|---|---|",
    ]
    for subject, backends in SUBJECTS.items():
        for seed in SEEDS:
            for one in cells.get(f"{subject}/{backends[0]}/seed{seed}/chain", {}).get("passes", []):
                sizes = [f"{one[what][0]:,} → {one[what][1]:,}" for what in ("parameters", "macs")]
                scores = " → ".join(f"{100 * value:.2f}" for value in one["validation"] if value is not None)
                lines.append(f"| {subject}, {seed} | {one['name']} | {' | '.join(sizes)} | {scores} |")
    return lines
