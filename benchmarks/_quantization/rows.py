"""From cells to rows with goals, and to the table in which the library's default, edgekit and NNCF stand side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks._quantization.crops import DECIDED_ON, HALVES
from benchmarks._quantization.subjects import IMAGES
from benchmarks.common import Results
from edgekit.core.stats import paired_bootstrap

Cells = Mapping[str, Mapping[str, Any]]
NAMES = {
    "litert": "LiteRT",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "coreml": "Core ML (reference evaluation)",
}
STATIC, FOUR = "static_wi8_ai8", "weight_only_wi4_afp32"
MAKERS = {"library": "the library's default", "edgekit": "edgekit", "nncf-accuracy-control": "NNCF's accuracy control"}
SECONDS = 60
TIMES_LIBRARY = 1.5
INT8_POINTS, FOUR_BIT_POINTS, LOW_BIT_POINTS = 0.2, 0.5, 1.5
LOW_BIT_SMALLER = 12
SENTENCE_COSINE = 0.99
PHOTO_GOALS: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("litert", STATIC): {"confident": 0.97, "overall": 0.93, "cosine": 0.995, "speed": 2.0, "smaller": 3.4},
    ("openvino", STATIC): {"confident": 0.95, "overall": 0.91, "cosine": 0.975, "speed": 2.0, "smaller": 3.4},
    ("onnxruntime", STATIC): {"confident": 0.95, "overall": 0.91, "cosine": 0.975, "speed": 2.0, "smaller": 3.4},
    ("litert", FOUR): {"confident": 0.94, "overall": 0.80, "cosine": 0.96, "smaller": 5.5},
}
"""By backend and scheme, for edgekit's artifact. Those of OpenVINO and ONNX Runtime are LiteRT's less 0.02."""
SENTENCES = {"litert": "dynamic_wi8_afp32", "openvino": "weight_only_wi8_afp32", "onnxruntime": "dynamic_wi8_afp32"}
"""The scheme that the goal for sentences is about: matrix products in int8 where the runtime quantizes what they take
as it comes (LiteRT, ONNX Runtime); OpenVINO does not, and keeps them in float."""


def closeness(cells: Cells, key: str, without: Sequence[str] = ()) -> dict[str, float] | None:
    """Agreement overall, where confident, and cosine, each the mean of the two halves; None where one is missing.

    Args:
        cells: What was found.
        key: A cell's key after its subject: `litert/static_wi8_ai8/edgekit`.
        without: Photos to leave out.
    """
    halves = []
    for half in HALVES:
        photos = cells.get(f"photos-{half}/{key}", {}).get("photos")
        if photos is None:
            return None
        kept = [photo for name, photo in photos.items() if name not in without]
        total = {part: sum(photo[part] for photo in kept) for part in kept[0]}
        halves.append(
            {
                "overall": total["agree"] / total["crops"],
                "confident": total["confident_agree"] / max(total["confident"], 1),
                "cosine": total["cosine"] / total["crops"],
                "crops": total["crops"],
                "confident_crops": total["confident"],
            }
        )
    found = {part: statistics.fmean(half[part] for half in halves) for part in ("overall", "confident", "cosine")}
    return found | {part: sum(half[part] for half in halves) for part in ("crops", "confident_crops")}


def photo_keys(cells: Cells) -> list[str]:
    """Keys after the subject of every cell of photos but speeds, in a fixed order."""
    keys = {key.partition("/")[2] for key in cells if key.startswith("photos-")}
    return sorted(key for key in keys if not key.endswith("/speed"))


def speed(cells: Cells, key: str, subject: str = "photos-A") -> float | None:
    backend, _, rest = key.partition("/")
    found = cells.get(f"{subject}/{backend}/all/speed", {}).get(rest)
    return found["speed"] if found else None


def smaller(cells: Cells, key: str, subject: str = "photos-A") -> float | None:
    backend = key.partition("/")[0]
    now, float32 = (cells.get(f"{subject}/{k}", {}).get("bytes") for k in (key, f"{backend}/float32/library"))
    return float32 / now if now and float32 else None


def photos(results: Results, cells: Cells) -> None:
    """Rows about EfficientNet-Lite0."""
    unit = "share of crops"
    for kind, words in (("grey", "inputs ± 1 grey level"), ("bf16", "weights in bf16")):
        found = closeness(cells, f"-/{kind}/noise") or {}
        for part in ("confident", "overall", "cosine"):
            results.add(f"noise floor, {words}: {_said(part)}", found.get(part), "cosine" if part == "cosine" else unit)
    for (backend, scheme), goals in PHOTO_GOALS.items():
        for maker, words in MAKERS.items():
            key = f"{backend}/{scheme}/{maker}"
            if maker != "edgekit" and f"photos-A/{key}" not in cells:
                continue
            wanted = goals if maker == "edgekit" else {}
            _closeness_rows(results, cells, key, f"{NAMES[backend]} {scheme} by {words}", wanted)
    for backend in ("litert", "openvino", "onnxruntime"):
        timing = cells.get(f"photos-A/{backend}/all/speed", {}).get("A/A", {}).get("speed")
        results.add(f"{NAMES[backend]}: speed of float32 over itself, A/A", timing, "ratio")
    _seconds(results, cells)


def _closeness_rows(results: Results, cells: Cells, key: str, name: str, goals: Mapping[str, float]) -> None:
    found = closeness(cells, key) or {}
    note = f"{found['crops']} crops, {found['confident_crops']} confident" if found else _why(cells, f"photos-A/{key}")
    for part in ("confident", "overall", "cosine"):
        unit = "cosine" if part == "cosine" else "share of crops"
        results.add(f"{name}: {_said(part)}", found.get(part), unit, at_least=goals.get(part), note=note)
    refused = cells.get(f"photos-A/{key}", {}).get("refused", "")
    results.add(
        f"{name}: smaller than float32", smaller(cells, key), "times", at_least=goals.get("smaller"), note=refused
    )
    note = "process time, single-threaded, interleaved, float32 pinned"
    results.add(f"{name}: faster than float32", speed(cells, key), "times", at_least=goals.get("speed"), note=note)
    rest = closeness(cells, key, DECIDED_ON)
    if rest:
        note = f"{rest['crops']} crops of photos that nothing in edgekit was chosen on"
        results.add(
            f"{name}: {_said('overall')}, photos never decided on", rest["overall"], "share of crops", note=note
        )


def _said(part: str) -> str:
    return {
        "confident": "agreement with fp32 where it is > 0.3 confident",
        "overall": "agreement with fp32",
        "cosine": "mean cosine of logits",
    }[part]


def _seconds(results: Results, cells: Cells) -> None:
    spent = [cells.get(f"photos-{half}/litert/{STATIC}/edgekit", {}).get("cpu_seconds") for half in HALVES]
    results.add(
        "LiteRT static int8 of EfficientNet-Lite0: processor seconds, conversion included, the slower half",
        max(spent) if all(spent) else None,
        "s",
        at_most=SECONDS,
        note="processor time of the conversion's process on one thread: what other work beside it hardly changes",
    )
    for backend in ("litert", "openvino", "onnxruntime"):
        pairs = [
            [
                cells.get(f"photos-{half}/{backend}/{STATIC}/{maker}", {}).get("cpu_seconds")
                for maker in ("edgekit", "library")
            ]
            for half in HALVES
        ]
        times = [ours / library for ours, library in pairs if ours and library]
        results.add(
            f"{NAMES[backend]} static int8 of EfficientNet-Lite0: processor time over the library's own",
            statistics.fmean(times) if times else None,
            "times",
            at_most=None if backend == "litert" else TIMES_LIBRARY,
            note="both from the exported program to the file, in a fresh process, 128 examples; mean of the two halves",
        )


def images(results: Results, cells: Cells) -> None:
    """Rows about MNIST and Fashion-MNIST."""
    for subject in IMAGES:
        float_right = next(
            (c for k, c in cells.items() if k.startswith(f"{subject}/") and c.get("examples") == 10_000), None
        )
        accuracy = 100 * float_right["float_right"] / 10_000 if float_right else None
        results.add(f"{subject}: fp32 top-1 on the test images, in torch", accuracy, "%", note="10,000 images")
        for backend in NAMES:
            _drop_row(results, cells, f"{subject}/{backend}/{STATIC}/edgekit", INT8_POINTS)
        _four_bits(results, cells, subject)
        for recipe in ("qat_2", "qat_1"):
            key = f"{subject}/litert/{recipe}/edgekit"
            _drop_row(results, cells, key, LOW_BIT_POINTS)
            name = f"{_called(key)}: smaller than float32"
            ratio = smaller(cells, f"litert/{recipe}/edgekit", subject)
            results.add(name, ratio, "times", at_least=LOW_BIT_SMALLER, note=_why(cells, key))
            rate = speed(cells, f"litert/{recipe}/edgekit", subject)
            results.add(f"{_called(key)}: faster than float32", rate, "times", note="stated, not promised")


def _four_bits(results: Results, cells: Cells, subject: str) -> None:
    """The row of rounding alone; where that missed the goal on validation images, the row of training has the goal."""
    rounded, trained = f"{subject}/litert/{FOUR}/edgekit", f"{subject}/litert/qat_4/edgekit"
    by_training = trained in cells and "skipped" not in cells[trained]
    _drop_row(results, cells, rounded, None if by_training else FOUR_BIT_POINTS)
    if by_training:
        _drop_row(results, cells, trained, FOUR_BIT_POINTS)
    key = "litert/qat_4/edgekit" if by_training else f"litert/{FOUR}/edgekit"
    results.add(f"{_called(f'{subject}/{key}')}: smaller than float32", smaller(cells, key, subject), "times")


def _called(key: str) -> str:
    subject, backend, recipe, _ = key.split("/")
    return f"{subject}, {NAMES[backend]} {recipe}"


def _drop_row(results: Results, cells: Cells, key: str, at_most: float | None) -> None:
    found = cells.get(key, {})
    name = f"{_called(key)}: top-1 lost"
    if "right" not in found:
        results.add(name, None, "points", at_most=at_most, note=_why(cells, key))
        return
    drop, low, high = dropped(found)
    note = f"{found['examples']:,} test images; 95 % paired bootstrap interval {low:+.2f} to {high:+.2f} points"
    results.add(name, drop, "points", at_most=at_most, note=note)


def dropped(found: Mapping[str, Any]) -> tuple[float, float, float]:
    """Points of top-1 lost, and the 95 % interval of a paired bootstrap over the images."""
    kept = found["examples"] - found["lost"] - found["gained"]
    before = [1.0] * found["lost"] + [0.0] * found["gained"] + [0.0] * kept
    after = [0.0] * found["lost"] + [1.0] * found["gained"] + [0.0] * kept
    interval = paired_bootstrap(after, before)
    return 100 * (found["lost"] - found["gained"]) / found["examples"], 100 * interval.low, 100 * interval.high


def sentences(results: Results, cells: Cells) -> None:
    """Rows about MiniLM."""
    for backend, scheme in SENTENCES.items():
        kinds = sorted(
            {k.split("/")[2] for k in cells if k.startswith(f"minilm/{backend}/") and k.endswith("/edgekit")}
        )
        for kind in dict.fromkeys([scheme, *kinds]):
            key = f"minilm/{backend}/{kind}/edgekit"
            found = cells.get(key, {})
            goal = SENTENCE_COSINE if kind == scheme else None
            note = f"{found['examples']} sentences; the worst {found['min_cosine']:.4f}" if "examples" in found else ""
            results.add(
                f"MiniLM, {NAMES[backend]} {kind}: mean cosine of sentence embeddings",
                found.get("mean_cosine"),
                "cosine",
                at_least=goal,
                note=note or _why(cells, key),
            )


def _why(cells: Cells, key: str) -> str:
    return cells.get(key, {}).get("error", "") if key in cells else "not run"


def table(cells: Cells, machine: str) -> str:
    """Everything about photos side by side, as Markdown."""
    lines = [
        f"EfficientNet-Lite0 on {machine}: agreement with fp32 on all crops, where fp32 is more than 0.3 confident, cosine of",
        "logits; times smaller and faster than the library's float32 file (process time, one thread); processor seconds to make.",
        "",
        "| backend | scheme | by | overall | confident | cosine | smaller | faster | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    number: Callable[[float | None, str], str] = lambda value, form: "–" if value is None else format(value, form)  # noqa: E731
    for key in photo_keys(cells):
        backend, scheme, maker = key.split("/")
        found = closeness(cells, key) or {}
        seconds = cells.get(f"photos-A/{key}", {}).get("cpu_seconds")
        row = [NAMES.get(backend, "torch"), scheme, MAKERS.get(maker, maker)]
        row += [number(found.get(part), ".3f") for part in ("overall", "confident")] + [
            number(found.get("cosine"), ".4f")
        ]
        row += [number(smaller(cells, key), ".2f"), number(speed(cells, key), ".2f"), number(seconds, ".0f")]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"
