"""`make bench-compression`: what compression by training costs in accuracy and gains in size and speed, alone and in chain.

Goals stand in benchmarks/_compression/goals.py since before anything was tuned; recipes are chosen on validation images,
numbers are of the test images, of three seeds: mean and deviation.

- **Chains**: ResNet-20 on Fashion-MNIST, an MLP on MNIST and Fashion-MNIST, pruned, distilled, quantized (chains.py).
- **Seeds**: distillation against training alone, 90 % zeros, int8 in four formats, LoRA (seeds.py).
- **Photos**: EfficientNet-Lite0 without ImageNet, beside NNCF's accuracy control (photos.py).
- **Sentences**: MiniLM's six layers to three (sentences.py).

Cells run two at a time, each on one processor; speeds are measured afterwards with nothing beside them. What is finished
is kept in benchmarks/results/compression-cells.json, artifacts, passes and the training's epochs in build/: a run that is
killed goes on where it was. Speeds anew, of the artifacts in build/: `--again --only speed`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import RESULTS, ROOT, Results, machine
from benchmarks.workshop import Cell, Found, Workshop
from edgekit.core.files import write_atomic

PACKAGE = "_compression"
NAMES = tuple(f"benchmarks.{PACKAGE}.{name}" for name in ("chains", "seeds", "photos", "sentences"))
PACKAGES = (
    "edgekit", "torch", "torch-pruning", "litert-torch", "ai-edge-litert", "ai-edge-quantizer", "openvino", "nncf", "onnxruntime",
)  # fmt: skip


def subjects() -> list[Any]:
    """The modules of cells that are here."""
    return [importlib.import_module(name) for name in NAMES if find_spec(name)]


def plan(modules: list[Any]) -> list[Cell]:
    """Every cell."""
    return [cell for module in modules for cell in module.cells()]


def table(modules: list[Any], cells: Mapping[str, Found]) -> str:
    """All sections, and the time that each cell took."""
    head = f"# Compression by training\n\n{machine()}. Goals: benchmarks/_compression/goals.py.\n"
    times = ["## Times", "", "| cell | s |", "|---|---|"]
    times += [f"| {key} | {found['took']:.0f} |" for key, found in sorted(cells.items()) if "took" in found]
    return "\n".join([head, *(section for module in modules if (section := module.table(cells))), *times]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="PATTERN", help="cells whose key has it: fashion_resnet/litert"
    )
    parser.add_argument("--again", action="store_true", help="make cells that are known already, too")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time (2), at most one a processor")
    parser.add_argument("--quick", action="store_true", help="a few examples: shows that it works, and no numbers")
    parser.add_argument("--list", action="store_true", help="only say which cells there are")
    options = parser.parse_args()
    modules = subjects()
    cells = plan(modules)
    if options.list:
        print("\n".join(cell.key for cell in cells))
        return 0
    work = ROOT / "build" / ("bench-compression-quick" if options.quick else "bench-compression")
    file = work / "cells.json" if options.quick else RESULTS / "compression-cells.json"
    shop = Workshop(work, file, options.quick, options.jobs)
    shop.run(cells, options.only, options.again)
    text = table(modules, shop.cells)
    if options.quick:
        print(text)
        return 1 if any("error" in found for found in shop.cells.values()) else 0
    results = Results("compression", *PACKAGES)
    for module in modules:
        module.rows(results, shop.cells)
    write_atomic(RESULTS / "compression.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
