"""MiniLM's six layers distilled into three: how like the teacher's its embeddings are, and how much faster it is.

    python -m benchmarks._compression.sentences prepare FOLDER [EXAMPLES]   # inputs, sources and the teacher's answers
    python -m benchmarks._compression.sentences answers CHECKPOINT OUT.npy  # of a student, in torch; `-`: untrained

Judged on 2,000 sentences of two sources: articles that no student has seen others of, and news, of which it has seen none.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._compression.goals import SEEDS, SENTENCES, STUDENT_COSINE, STUDENT_FASTER
from benchmarks.artifacts import compiled, keep, said, speeds
from benchmarks.common import ROOT, Results
from benchmarks.workshop import ALONE, Cell, CellError, Found, Workshop
from edgekit.core.user_code import load_module

EXAMPLE = ROOT / "examples" / "minilm_distill"
TARGETS = {"litert": "linux-x86", "onnxruntime": "linux-x86", "openvino": "intel-cpu"}
NAMES = {"litert": "LiteRT", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
WHOLE, STUDENT = "whole", "distilled"
UNTRAINED = "minilm/torch/-/untrained"
PARTS = ("cosine", "spearman", "nearest")


def cells() -> list[Cell]:
    """The passes of each seed, then an artifact a runtime, then speeds."""
    found = [Cell(UNTRAINED, _untrained)]
    found += [Cell(f"minilm/torch/seed{seed}/{STUDENT}", _passes) for seed in SEEDS]
    for backend in TARGETS:
        found.append(Cell(f"minilm/{backend}/-/{WHOLE}", _made))
        found += [Cell(f"minilm/{backend}/seed{seed}/{STUDENT}", _made, phase=1) for seed in SEEDS]
    return found + [Cell(f"minilm/{backend}/all/speed", _speed, phase=ALONE) for backend in TARGETS]


def _recipe(cell: Cell) -> list[str]:
    _, _, seed, kind = cell.key.split("/")
    recipe = "recipe.yaml" if kind == STUDENT else "recipe-float.yaml"
    number = seed.removeprefix("seed")
    # Seed 0 is the recipe's own.
    return ["--recipe", recipe, *(["--seed", number] if number not in ("-", "0") else [])]


def _untrained(shop: Workshop, cell: Cell) -> Found:
    return _in_torch(shop, cell, "-")


def _passes(shop: Workshop, cell: Cell) -> Found:
    folder = shop.artifacts(cell.key) / "checkpoint"
    argv = ["compress", *_recipe(cell), "--out", str(folder)]
    document, ended = said(shop, argv, EXAMPLE)
    (step,) = document["history"]
    return {
        "parameters": [step["parameters_before"], step["parameters_after"]],
        "validation": step["metrics_after"],
        "notes": step["notes"],
        "cpu_seconds": ended.cpu_seconds,
        **_in_torch(shop, cell, str(folder)),
    }


def _in_torch(shop: Workshop, cell: Cell, checkpoint: str) -> Found:
    prepared, out = _prepared(shop), shop.folder / "artifacts" / f"{cell.key.replace('/', '--')}.npy"
    out.parent.mkdir(parents=True, exist_ok=True)
    ended = shop.python("_compression.sentences", "answers", checkpoint, str(prepared / "input_ids.npy"), str(out))
    if ended.code != 0:
        raise CellError(ended.last_words())
    return {"likeness": _judged(prepared, np.load(out))}


def _made(shop: Workshop, cell: Cell) -> Found:
    backend = cell.key.split("/")[1]
    folder, prepared = shop.artifacts(cell.key), _prepared(shop)
    argv = ["compile", *_recipe(cell), "--target", TARGETS[backend], "--backend", backend, "--out", str(folder)]
    artifact = compiled(shop, argv, EXAMPLE)
    keep(folder, Path(artifact["path"]))
    out = folder / "outputs.npy"
    request = {"model": shop.model(cell.key), "inputs": _inputs(prepared), "out": str(out)}
    shop.asked("runtime", ("outputs",), request).document()
    return {"bytes": artifact["artifact_bytes"], "likeness": _judged(prepared, np.load(out))}


def _speed(shop: Workshop, cell: Cell) -> Found:
    backend = cell.key.split("/")[1]
    keys = {WHOLE: f"minilm/{backend}/-/{WHOLE}"}
    keys |= {f"seed{seed}": f"minilm/{backend}/seed{seed}/{STUDENT}" for seed in SEEDS}
    return speeds(shop, keys, _inputs(_prepared(shop)))


def _inputs(prepared: Path) -> dict[str, str]:
    return {name: str(prepared / f"{name}.npy") for name in ("input_ids", "attention_mask")}


def _prepared(shop: Workshop) -> Path:
    return shop.prepared("minilm", "_compression.sentences", "prepare")


def _judged(prepared: Path, found: np.ndarray) -> dict[str, dict[str, float]]:
    wanted = np.load(prepared / "reference.npy")
    if found.shape != wanted.shape or not np.isfinite(found).all():
        raise CellError(
            f"outputs of the shape {found.shape}, finite: {np.isfinite(found).all()}; wanted {wanted.shape}"
        )
    likeness = load_module(EXAMPLE / "task.py").likeness
    sources = np.array(json.loads((prepared / "sources.json").read_text()))
    rows = {"all": np.ones(len(found), bool), **{str(name): sources == name for name in np.unique(sources)}}
    return {name: likeness(found[chosen], wanted[chosen]) for name, chosen in rows.items()}


def prepare(folder: Path, limit: int | None = None) -> None:
    """Write the tested inputs, where each sentence is from, and the teacher's answers."""
    task: Any = load_module(EXAMPLE / "task.py")
    for name, array in task.inputs_of(task.token_ids("test")[:limit]).items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "reference.npy", task.answers("test")[:limit])
    (folder / "sources.json").write_text(json.dumps(task.load("test").sources[:limit]))


def answers(checkpoint: str, inputs: str, out: str) -> None:
    """Write what a student says: that of a checkpoint, or one of which layers were only left out."""
    import torch

    torch.set_num_threads(1)
    ids = torch.from_numpy(np.load(inputs))
    said = _untrained_student() if checkpoint == "-" else _kept_student(Path(checkpoint))
    with torch.inference_mode():
        np.save(out, np.concatenate([said(row, (row > 0).long()) for row in ids.split(1)]))


def _untrained_student() -> Callable[[Any, Any], np.ndarray]:
    module, _ = load_module(EXAMPLE / "model.py").shallow()
    return lambda ids, mask: np.asarray(module(ids, mask)["embedding"])


def _kept_student(checkpoint: Path) -> Callable[[Any, Any], np.ndarray]:
    from edgekit.flow.checkpoint import load_checkpoint

    program = load_checkpoint(checkpoint).program
    return lambda ids, mask: program.run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["embedding"]


def _over_seeds(cells: Mapping[str, Found], backend: str, value: Callable[[Found], float]) -> list[float]:
    keys = [f"minilm/{backend}/seed{seed}/{STUDENT}" for seed in SEEDS]
    return [value(cells[key]) for key in keys if "likeness" in cells.get(key, {})]


def _told(values: list[float], form: str = ".4f") -> str:
    """Mean and, of several, the sample standard deviation."""
    mean = format(statistics.fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form)}"


def rows(results: Results, cells: Mapping[str, Found]) -> None:
    """Rows with their goals."""
    for backend in ("torch", *TARGETS):
        for part in PARTS:
            values = _over_seeds(cells, backend, lambda cell, part=part: cell["likeness"]["all"][part])  # type: ignore[misc]
            results.add(
                f"MiniLM in 3 layers, {NAMES.get(backend, 'torch')}: {_WORDS[part]}",
                statistics.fmean(values) if values else None,
                "share of sentences" if part == "nearest" else "cosine" if part == "cosine" else "rank correlation",
                at_least=None if part == "nearest" else STUDENT_COSINE,
                note=_note(values),
            )
    for backend, name in NAMES.items():
        timing = cells.get(f"minilm/{backend}/all/speed", {})
        faster = [timing[f"seed{seed}"]["speed"] for seed in SEEDS if f"seed{seed}" in timing]
        same = f", the same file twice {timing['A/A']['speed']:.3f}" if "A/A" in timing else ""
        results.add(
            f"MiniLM in 3 layers, {name}: faster than 6",
            statistics.fmean(faster) if faster else None,
            "times",
            at_least=STUDENT_FASTER,
            note=f"process time of one sentence, one thread, interleaved{same}",
        )
        smaller = _smaller(cells, backend)
        results.add(f"MiniLM in 3 layers, {name}: smaller than 6", smaller, "times")


_WORDS = {
    "cosine": "mean cosine with the teacher",
    "spearman": "Spearman's correlation of the similarities of all pairs",
    "nearest": "sentences whose nearest other is the teacher's",
}


def _note(values: list[float]) -> str:
    if not values:
        return "not made yet"
    spread = f", deviation {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    seeds = "one seed" if len(values) == 1 else f"{len(values)} seeds"
    return f"2,000 sentences (at least {SENTENCES:,} wanted) not trained on, {seeds}{spread}"


def _smaller(cells: Mapping[str, Found], backend: str) -> float | None:
    whole = cells.get(f"minilm/{backend}/-/{WHOLE}", {}).get("bytes")
    sizes = _over_seeds(cells, backend, lambda cell: float(cell.get("bytes", 0)))
    return whole / statistics.fmean(sizes) if whole and sizes else None


def table(cells: Mapping[str, Found]) -> str:
    """The student in torch and in each runtime, by source of the sentences."""
    if not any(_over_seeds(cells, backend, lambda _: 0.0) for backend in ("torch", *TARGETS)):
        return ""
    lines = [
        "## MiniLM, six layers into three: 2,000 sentences that no student was trained on",
        "",
        "| runtime | sentences | cosine | Spearman | same nearest | MB | smaller | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    untrained = cells.get(UNTRAINED, {}).get("likeness", {})
    for source, found in untrained.items():
        told = " | ".join(f"{found[part]:.4f}" for part in PARTS)
        lines.append(f"| torch, three layers left out, not trained | {source} | {told} | | | |")
    for backend in ("torch", *TARGETS):
        for source in untrained or ("all",):
            values = [
                _over_seeds(cells, backend, lambda cell, s=source, p=part: cell["likeness"][s][p])  # type: ignore[misc]
                for part in PARTS
            ]
            if values[0]:
                told = " | ".join(_told(one) for one in values)
                size = _size(cells, backend) if source == "all" else "| |"
                lines.append(f"| {NAMES.get(backend, 'torch')} | {source} | {told} | {size} |")
    return "\n".join(lines) + "\n"


def _size(cells: Mapping[str, Found], backend: str) -> str:
    smaller = _smaller(cells, backend)
    timing = cells.get(f"minilm/{backend}/all/speed", {})
    faster = [timing[f"seed{seed}"]["speed"] for seed in SEEDS if f"seed{seed}" in timing]
    sizes = _over_seeds(cells, backend, lambda cell: cell.get("bytes", 0) / 1e6)
    if smaller is None:
        return "| |"
    return f"{statistics.fmean(sizes):.1f} | {smaller:.2f}× | {_told(faster, '.2f') + '×' if faster else '–'}"


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
    else:
        answers(*sys.argv[2:5])
