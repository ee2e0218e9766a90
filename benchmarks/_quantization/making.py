"""The kinds of cells: edgekit's artifact, a library's by its defaults, noise floors, and speeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks._quantization import crops
from benchmarks._quantization.defaults import OUT
from benchmarks._quantization.subjects import HERE, ROOT, SUBJECTS, Subject
from benchmarks.artifacts import answered, keep
from benchmarks.workshop import QUICK_EXAMPLES, Cell, CellError, Found, Workshop
from edgekit.core.files import write_atomic

CALIBRATION = 128
TARGETS = {"litert": "linux-x86", "openvino": "intel-cpu", "onnxruntime": "linux-x86", "coreml": "iphone15"}
TRAINED: Mapping[str, tuple[int, str]] = {
    "qat_4": (4, "weight_only_wi4_afp32"),
    "qat_2": (2, "palette_2"),
    "qat_1": (1, "palette_1"),
}
"""Recipes that train: bits, and the scheme that stores them."""
EPOCHS = 4
FOUR_BIT_DROP = 0.005
_QUICK_ROUNDS = 3
_ROUNDS = 41


def parts(key: str) -> tuple[str, str, str, str]:
    """Subject, backend, recipe and maker of a cell's key."""
    subject, backend, recipe, maker = key.split("/")
    return subject, backend, recipe, maker


def recipe_file(shop: Workshop, name: str) -> Path:
    """The recipe of that name, as a file: a scheme with its defaults, or trained bits and the scheme that stores them."""
    bits, scheme = TRAINED.get(name.removesuffix("_mlp"), (None, name))
    document: Found = {"schema_version": 1}
    if bits is not None:
        # An MLP has most of its weights in its first layer: at 8 bits it would be four times smaller, and no more.
        options = {"bits": bits, "keep_first_last": not name.endswith("_mlp"), "finetune": {"epochs": EPOCHS}}
        document["passes"] = [{"quantize_aware": options}]
    if scheme != "float32":
        count = QUICK_EXAMPLES if shop.quick else CALIBRATION
        document["lowering"] = {"quantize": {"scheme": scheme, "calibration": count}}
    path = shop.folder / "recipes" / f"{name}.yaml"
    # Whole or not at all: another cell may read it at the same time.
    write_atomic(path, json.dumps(document))
    return path


def edgekit(shop: Workshop, cell: Cell) -> Found:
    """`edgekit compile` with its verification; where that says no, the answer is kept, and so is the artifact."""
    subject, backend, recipe, _ = parts(cell.key)
    prepared, folder = shop.prepared(subject, "_quantization.subjects", subject), shop.artifacts(cell.key)
    own = f"{recipe}_mlp" if recipe in TRAINED and subject.endswith("_mlp") else recipe
    argv = ["compile", str(ROOT / SUBJECTS[subject].source)]
    argv += ["--task", str(HERE / SUBJECTS[subject].task), "--target", TARGETS[backend], "--backend", backend]
    argv += ["--recipe", str(recipe_file(shop, own)), "--name", subject, "--out", str(folder)]
    env = {"EDGEKIT_BENCH_TRAIN": "1000"} if shop.quick else {}
    document, refused = answered(shop, argv, folder, env)[0], None
    if document.get("error", {}).get("type") == "VerificationError":
        refused = document["error"]["message"]
        document = answered(shop, [*argv, "--no-verify"], folder, env)[0]
    if "error" in document:
        raise CellError(document["error"]["message"])
    artifact = document["artifacts"][0]
    path = Path(artifact["path"])
    build = json.loads((path / "build.json").read_text())
    keep(folder, path)
    found = {
        "bytes": artifact["artifact_bytes"],
        "seconds": build["seconds"],
        "cpu_seconds": build.get("cpu_seconds", 0.0),
        "changed": artifact["changed"],
        "validation": {side: artifact["metrics"][side].get("validation", {}) for side in ("source", "host")},
        **judged(shop, subject, cell.key, prepared),
    }
    return found | ({"refused": refused} if refused else {})


def edgekit_trained_if_needed(shop: Workshop, cell: Cell) -> Found:
    """4 bits by training, where rounding alone loses more than its goal on the validation images."""
    subject, backend, _, maker = parts(cell.key)
    rounded = shop.cells.get(f"{subject}/{backend}/weight_only_wi4_afp32/{maker}", {})
    if "error" in rounded or not rounded:
        raise CellError("4 bits without training are not known yet")
    before, after = (rounded["validation"][side]["top1"] for side in ("source", "host"))
    if before - after <= FOUR_BIT_DROP + 1e-9:
        return {"skipped": f"rounding alone takes validation top1 from {before:.4f} to {after:.4f}"}
    return edgekit(shop, cell)


def defaults(shop: Workshop, cell: Cell) -> Found:
    """A library's own conversion and quantization, in a process of its own."""
    subject, backend, kind, maker = parts(cell.key)
    prepared, folder = shop.prepared(subject, "_quantization.subjects", subject), shop.artifacts(cell.key)
    request = {
        "backend": backend,
        "kind": "accuracy_control" if maker == "nncf-accuracy-control" else kind,
        "program": str(prepared / "program.pt2"),
        "calibration": inputs_of(prepared, "calibration"),
        "validation": inputs_of(prepared, "validation"),
        "validation_reference": str(prepared / "validation_reference.npy"),
        "examples": QUICK_EXAMPLES if shop.quick else CALIBRATION,
        "out": str(folder),
    }
    ended = shop.asked("_quantization.defaults", (), request)
    if ended.code != 0:
        raise CellError(ended.last_words())
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    (folder / "run.json").write_text(json.dumps({"backend": backend, "main": str(folder / OUT[backend])}))
    return {
        "bytes": size,
        "seconds": ended.seconds,
        "cpu_seconds": ended.cpu_seconds,
        **judged(shop, subject, cell.key, prepared),
    }


def inputs_of(prepared: Path, part: str) -> dict[str, str]:
    """Files of a prepared network's inputs, in its own order."""
    names = json.loads((prepared / "subject.json").read_text())["inputs"]
    return {name: str(path) for name in names if (path := prepared / part / f"{name}.npy").is_file()}


def reference_evaluated(shop: Workshop, cell: Cell) -> Found:
    """Core ML: built by the product, evaluated by its reference evaluator, never by Apple's runtime."""
    subject, backend, recipe, _ = parts(cell.key)
    prepared, folder = shop.prepared(subject, "_quantization.subjects", subject), shop.artifacts(cell.key)
    out = folder / "outputs.npy"
    request = {
        "source": str(ROOT / SUBJECTS[subject].source),
        "task": str(HERE / SUBJECTS[subject].reference_task),
        "recipe": str(recipe_file(shop, recipe)),
        "name": subject,
        "folder": str(folder),
        "target": TARGETS[backend],
        "backend": backend,
        "out": str(out),
    }
    found = shop.asked("runtime", ("evaluated",), request).document()
    found.pop("path")
    return found | verdict(SUBJECTS[subject], prepared, np.load(out)[: QUICK_EXAMPLES if shop.quick else None])


def judged(shop: Workshop, subject: str, key: str, prepared: Path) -> Found:
    """Run an artifact on the tested inputs and compare with the float network."""
    model = shop.model(key)
    if model is None:
        raise CellError(f"{key} left no artifact")
    out = shop.folder / "artifacts" / key.replace("/", "--") / "outputs.npy"
    request = {"model": model, "inputs": inputs_of(prepared, "tested"), "out": str(out)}
    shop.asked("runtime", ("outputs",), request).document()
    return verdict(SUBJECTS[subject], prepared, np.load(out))


def verdict(subject: Subject, prepared: Path, got: np.ndarray) -> Found:
    """What the answers are worth beside the float network's, for the first examples where not all were asked for."""
    reference = np.load(prepared / "reference.npy")[: len(got)]
    if got.shape != reference.shape or not np.isfinite(got).all():
        raise CellError(f"outputs of the shape {got.shape}, finite: {np.isfinite(got).all()}; wanted {reference.shape}")
    if subject.kind == "photos":
        return {
            "photos": crops.closeness(reference, got, json.loads((prepared / "names.json").read_text())[: len(got)])
        }
    if subject.kind == "images":
        labels = np.load(prepared / "labels.npy")[: len(got)]
        before, after = reference.argmax(1) == labels, got.argmax(1) == labels
        return {
            "examples": len(got),
            "float_right": int(before.sum()),
            "right": int(after.sum()),
            "lost": int((before & ~after).sum()),
            "gained": int((~before & after).sum()),
        }
    want, have = reference.astype(np.float64), got.astype(np.float64)
    cosines = (want * have).sum(1) / (np.linalg.norm(want, axis=1) * np.linalg.norm(have, axis=1))
    return {"examples": len(got), "mean_cosine": float(cosines.mean()), "min_cosine": float(cosines.min())}


def noise(shop: Workshop, cell: Cell) -> Found:
    """How far the float network is from itself: one grey level of noise in the input, or weights rounded to bf16."""
    subject, _, kind, _ = parts(cell.key)
    prepared = shop.prepared(subject, "_quantization.subjects", subject)
    return verdict(SUBJECTS[subject], prepared, np.load(prepared / f"{kind}.npy"))


def speed(shop: Workshop, cell: Cell) -> Found:
    """Process time of one inference of a network's artifacts on one backend, against its float32."""
    subject, backend, _, _ = parts(cell.key)
    prefix = f"{subject}/{backend}/"
    baseline = f"{prefix}float32/library"
    keys = [baseline, *sorted(key for key in shop.cells if key.startswith(prefix) and key not in (baseline, cell.key))]
    models = {key.removeprefix(prefix): model for key in keys if (model := shop.model(key)) is not None}
    if "float32/library" not in models:
        raise CellError(f"{baseline} is not here: make it with --again --only {baseline}")
    request = {
        "models": models,
        "inputs": inputs_of(shop.prepared(subject, "_quantization.subjects", subject), "tested"),
        "rounds": _QUICK_ROUNDS if shop.quick else _ROUNDS,
    }
    return shop.asked("runtime", ("speed",), request).document()
