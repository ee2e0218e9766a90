"""EfficientNet-Lite0 pruned and factorized without ImageNet, mended by its own answers; beside int8 alone and NNCF.

The smaller network learns from crops of one half of the photos and is judged on 500 crops of the other, as in the
quantization benchmark, whose rows of int8 and of NNCF's accuracy control on the same crops stand in the same table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._quantization import crops
from benchmarks.artifacts import compiled, keep, said, speeds
from benchmarks.common import RESULTS, ROOT, Results
from benchmarks.workshop import ALONE, Cell, Found, Workshop

HERE = Path(__file__).resolve().parent
EXAMPLE = ROOT / "examples" / "efficientnet_lite0"
HALF = "A"
SUBJECT = f"photos-{HALF}"
TARGETS = {"litert": "linux-x86", "openvino": "intel-cpu"}
NAMES = {"litert": "LiteRT", "openvino": "OpenVINO"}
RECIPES = {"float32": "recipe-float", "pruned": "recipe-pruned", "pruned-int8": "recipe-pruned-int8"}
WORDS = {
    "pruned": "pruned 30 %, low rank, float32",
    "pruned-int8": "the same, static int8",
    "static_wi8_ai8/edgekit": "static int8 alone",
    "static_wi8_ai8/library": "static int8 by the library's default",
    "static_wi8_ai8/nncf-accuracy-control": "NNCF's accuracy control",
}
_QUICK_CROPS = "32"


def cells() -> list[Cell]:
    """The passes once, then an artifact a recipe and runtime, then speeds."""
    made = [Cell(f"{SUBJECT}/-/-/passes", _passes)]
    made += [Cell(f"{SUBJECT}/{backend}/-/{recipe}", _made, phase=1) for backend in TARGETS for recipe in RECIPES]
    return made + [Cell(f"{SUBJECT}/{backend}/all/speed", _speed, phase=ALONE) for backend in TARGETS]


def _argv(verb: str, recipe: str) -> list[str]:
    task = f"{HERE / 'halves.py'}:LearntFrom{HALF}"
    return [verb, "--task", task, "--recipe", str(EXAMPLE / f"{recipe}.yaml"), "--name", SUBJECT]


def _limits(shop: Workshop) -> dict[str, str]:
    return {"EDGEKIT_BENCH_TRAIN": _QUICK_CROPS} if shop.quick else {}


def _passes(shop: Workshop, cell: Cell) -> Found:
    argv = [*_argv("compress", RECIPES["pruned"]), "--out", str(shop.artifacts(cell.key))]
    document, ended = said(shop, argv, EXAMPLE, _limits(shop))
    steps = [
        {
            "pass": step["name"],
            "parameters": step["parameters_after"],
            "validation": step["metrics_after"],
            "notes": step["notes"],
        }
        for step in document["history"]
    ]
    return {
        "parameters": document["history"][0]["parameters_before"],
        "passes": steps,
        "cpu_seconds": ended.cpu_seconds,
    }


def _made(shop: Workshop, cell: Cell) -> Found:
    _, backend, _, recipe = cell.key.split("/")
    folder, prepared = shop.artifacts(cell.key), _prepared(shop)
    argv = [
        *_argv("compile", RECIPES[recipe]),
        "--target",
        TARGETS[backend],
        "--backend",
        backend,
        "--out",
        str(folder),
    ]
    artifact = compiled(shop, argv, EXAMPLE, _limits(shop))
    keep(folder, Path(artifact["path"]))
    out = folder / "outputs.npy"
    request = {"model": shop.model(cell.key), "inputs": {"image": str(prepared / "image.npy")}, "out": str(out)}
    shop.asked("runtime", ("outputs",), request).document()
    names = json.loads((prepared / "names.json").read_text())
    closeness = crops.closeness(np.load(prepared / "reference.npy"), np.load(out), names)
    return {"bytes": artifact["artifact_bytes"], "changed": artifact["changed"], "photos": closeness}


def _prepared(shop: Workshop) -> Path:
    return shop.prepared(SUBJECT, "_compression.halves", HALF)


def _speed(shop: Workshop, cell: Cell) -> Found:
    backend = cell.key.split("/")[1]
    keys = {recipe: f"{SUBJECT}/{backend}/-/{recipe}" for recipe in RECIPES}
    return speeds(shop, keys, {"image": str(_prepared(shop) / "image.npy")})


def _quantized() -> Mapping[str, Found]:
    """The quantization benchmark's cells: int8 alone and NNCF on the same crops."""
    path = RESULTS / "quantization-cells.json"
    found: Mapping[str, Found] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def entries(cells: Mapping[str, Found]) -> dict[tuple[str, str], Found]:
    """By runtime and way: agreement, agreement where the whole is confident, cosine, times smaller and faster."""
    known, found = _quantized(), {}
    for backend in TARGETS:
        ways: list[tuple[str, str, str, Mapping[str, Found]]] = [
            (recipe, f"{SUBJECT}/{backend}/-/{recipe}", f"{SUBJECT}/{backend}/-/float32", cells)
            for recipe in ("pruned", "pruned-int8")
        ]
        ways += [
            (way, f"{SUBJECT}/{backend}/{way}", f"{SUBJECT}/{backend}/float32/library", known)
            for way in WORDS
            if way.startswith("static")
        ]
        for way, key, whole, source in ways:
            if "photos" in source.get(key, {}) and "bytes" in source.get(whole, {}):
                timing = source.get(f"{SUBJECT}/{backend}/all/speed", {}).get(way, {})
                found[backend, way] = {
                    **_overall(source[key]["photos"]),
                    "bytes": source[key]["bytes"],
                    "smaller": source[whole]["bytes"] / source[key]["bytes"],
                    "faster": timing.get("speed"),
                }
    return found


def _overall(photos: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    total = {part: sum(photo[part] for photo in photos.values()) for part in next(iter(photos.values()))}
    return {
        "agreement": total["agree"] / total["crops"],
        "confident": total["confident_agree"] / max(total["confident"], 1),
        "cosine": total["cosine"] / total["crops"],
    }


def rows(results: Results, cells: Mapping[str, Found]) -> None:
    """What was reached; no goal but honesty was set for it."""
    units = {"agreement": "share of crops", "cosine": "cosine", "smaller": "times", "faster": "times"}
    found = entries(cells)
    for (backend, way), values in found.items():
        if way.startswith("pruned"):
            for part, unit in units.items():
                note = "500 crops of photos that it did not learn from" if part in ("agreement", "cosine") else ""
                results.add(
                    f"EfficientNet-Lite0, {NAMES[backend]}, {WORDS[way]}: {part}", values[part], unit, note=note
                )
    if not any(way.startswith("pruned") for _, way in found):
        results.add("EfficientNet-Lite0, pruned: agreement", None, "share of crops", note="not made yet")


def table(cells: Mapping[str, Found]) -> str:
    """All ways beside each other, for each runtime."""
    found = entries(cells)
    if not found:
        return ""
    lines = [
        "## EfficientNet-Lite0 without ImageNet: 500 crops of photos that nothing was learnt from",
        "",
        "| runtime | how | same class as float32 | where that is confident | cosine | MB | smaller | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (backend, way), one in found.items():
        faster = f"{one['faster']:.2f}×" if one["faster"] else "–"
        lines.append(
            f"| {NAMES[backend]} | {WORDS[way]} | {one['agreement']:.3f} | {one['confident']:.3f} | {one['cosine']:.4f} |"
            f" {one['bytes'] / 1e6:.1f} | {one['smaller']:.2f}× | {faster} |"
        )
    steps: list[Any] = cells.get(f"{SUBJECT}/-/-/passes", {}).get("passes", [])
    told = "; ".join(
        f"{step['pass']}: {step['parameters']:,} parameters, agreement {step['validation'].get('agreement', 0):.3f}"
        for step in steps
    )
    return "\n".join(lines) + (f"\n\nOn 48 crops that decided, after each pass: {told}.\n" if told else "\n")
