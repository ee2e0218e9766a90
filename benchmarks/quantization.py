"""`make bench-quantization`: what each scheme costs in accuracy and gains in size and speed, beside the libraries' defaults.

Three subjects; goals and splits stand here and in benchmarks/_quantization/ since before anything was tuned on them.

- **Photos**: EfficientNet-Lite0 with its ImageNet weights on crops of the twenty photos in crops.py, two halves that
  share no photo: calibrated on one, judged on 500 crops of the other, swapped, averaged. Agreement with fp32, agreement
  where fp32 is more than 0.3 confident, cosine of logits; beside two noise floors. Goals: PHOTO_GOALS in rows.py.
- **Images**: CNN, MLP and small ViT on MNIST and Fashion-MNIST (examples/mnist), judged on all 10,000 test images (Core
  ML by its reference evaluator, on the first 2,000). int8 loses at most 0.2 points, 4 bits 0.5, 2 and 1 bit by training
  1.5, their LiteRT file at least 12 times smaller than float32. Each with the 95 % interval of a paired bootstrap.
- **Sentences**: MiniLM in int8, mean cosine of embeddings at least 0.99 on 300 sentences.

`ours` is always `edgekit compile` with its verification; the library's default is its own calls, in defaults.py. Cells run
two at a time, each on one processor; speeds are measured afterwards with nothing beside them. What is finished is kept
in benchmarks/results/quantization-cells.json, and artifacts in build/: a run that is killed goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._quantization import making, rows
from benchmarks._quantization.subjects import IMAGES
from benchmarks.common import RESULTS, ROOT, Results, machine, wall
from benchmarks.workshop import ALONE, Cell, Workshop
from edgekit.core.files import write_atomic
from edgekit.core.user_code import load_module

HALVES = ("photos-A", "photos-B")
RUNTIMES = ("litert", "openvino", "onnxruntime")
PACKAGES = (
    "edgekit", "torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer", "openvino", "nncf", "onnxruntime", "coremltools",
)  # fmt: skip


def plan() -> list[Cell]:
    """Every cell, the important ones first."""
    cells = [Cell(f"{half}/-/{kind}/noise", making.noise) for half in HALVES for kind in ("grey", "bf16")]
    for backend in RUNTIMES:
        cells.append(Cell(f"photos-A/{backend}/float32/library", making.defaults))
        for half in HALVES:
            cells += both(f"{half}/{backend}/{rows.STATIC}")
    for half in HALVES:
        cells += both(f"{half}/litert/{rows.FOUR}")
    for subject in IMAGES:
        cells.append(Cell(f"{subject}/litert/float32/library", making.defaults))
        cells += [Cell(f"{subject}/{backend}/{rows.STATIC}/edgekit", making.edgekit) for backend in RUNTIMES]
        cells.append(Cell(f"{subject}/litert/{rows.FOUR}/edgekit", making.edgekit))
    for recipe in ("qat_2", "qat_1"):
        cells += [Cell(f"{subject}/litert/{recipe}/edgekit", making.edgekit) for subject in IMAGES]
    cells += [Cell(f"{subject}/coreml/{rows.STATIC}/edgekit", making.reference_evaluated) for subject in IMAGES]
    cells += [Cell(f"minilm/{backend}/{scheme}/edgekit", making.edgekit) for backend, scheme in rows.SENTENCES.items()]
    cells += [Cell(f"minilm/{backend}/{rows.STATIC}/edgekit", making.edgekit) for backend in RUNTIMES]
    cells += [Cell(f"{half}/openvino/{rows.STATIC}/nncf-accuracy-control", making.defaults) for half in HALVES]
    cells += [Cell(f"{s}/litert/qat_4/edgekit", making.edgekit_trained_if_needed, phase=1) for s in IMAGES]
    cells += [Cell(f"photos-A/{backend}/all/speed", making.speed, phase=ALONE) for backend in RUNTIMES]
    cells += [Cell(f"{subject}/litert/all/speed", making.speed, phase=ALONE) for subject in IMAGES]
    return cells


def both(prefix: str) -> list[Cell]:
    """edgekit's and the library's default, next to each other, so that the machine is the same for both."""
    return [Cell(f"{prefix}/edgekit", making.edgekit), Cell(f"{prefix}/library", making.defaults)]


def trained(subjects: set[str]) -> None:
    """Weights of the networks of examples/mnist that are asked for; nothing is done where they are there."""
    folder = ROOT / "examples" / "mnist"
    sys.path.insert(0, str(folder))
    weights_file = load_module(folder / "networks.py").weights_file
    for subject in sorted(subjects & set(IMAGES)):
        dataset, _, network = subject.partition("_")
        if not weights_file(dataset, network).is_file():
            print(f"training {subject}: some minutes, once", flush=True)
            argv = [sys.executable, str(folder / "train.py"), "--dataset", dataset, "--network", network]
            wall(argv, env={"PYTHONPATH": str(ROOT)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="PATTERN", help="cells whose key has it: photos-A/litert"
    )
    parser.add_argument("--again", action="store_true", help="make cells that are known already, too")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time (2), at most one a processor")
    parser.add_argument("--quick", action="store_true", help="a few examples: shows that it works, and no numbers")
    parser.add_argument("--list", action="store_true", help="only say which cells there are")
    options = parser.parse_args()
    cells = plan()
    if options.list:
        print("\n".join(cell.key for cell in cells))
        return 0
    work = ROOT / "build" / ("bench-quantization-quick" if options.quick else "bench-quantization")
    file = work / "cells.json" if options.quick else RESULTS / "quantization-cells.json"
    shop = Workshop(work, file, options.quick, options.jobs)
    trained({cell.key.partition("/")[0] for cell in shop.wanted(cells, options.only)})
    shop.run(cells, options.only, options.again)
    if options.quick:
        failed = [key for key, found in shop.cells.items() if "error" in found]
        print(rows.table(shop.cells, machine()))
        return 1 if failed else 0
    results = Results("quantization", *PACKAGES)
    rows.photos(results, shop.cells)
    rows.images(results, shop.cells)
    rows.sentences(results, shop.cells)
    write_atomic(RESULTS / "quantization.md", rows.table(shop.cells, machine()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
