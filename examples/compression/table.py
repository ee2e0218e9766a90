"""Run every recipe with three seeds, and write the table of before and after: RESULTS.md.

    python examples/compression/table.py            # an hour on one processor the first time; a killed run goes on
    python examples/compression/table.py --list     # the rows, by name
    python examples/compression/table.py --row mlp/seed0/litert/prune-int8

Each row is one `edgekit compile` with one recipe; accuracy is that of the artifact in its runtime, on all 10,000 test
images. Core ML has no runtime outside Apple's systems: its artifact is evaluated by reference, on the first 2,000.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
TARGETS = {"litert": "linux-x86", "openvino": "intel-cpu", "onnxruntime": "linux-x86", "coreml": "iphone15"}
REFERENCE_EVALUATED = ("coreml",)
HEAD = """# Before and after

Written by `python table.py`: means and sample standard deviations over three seeds, all 10,000 test images.
"""
Found = dict[str, Any]


class Row(NamedTuple):
    """One artifact.

    Attributes:
        network: The factory in model.py.
        weights: What of train.py's it starts from.
        seed: Of weights and recipe.
        backend: The artifact's format.
        recipe: The file in recipes/.
    """

    network: str
    weights: str
    seed: int
    backend: str
    recipe: str

    @property
    def name(self) -> str:
        """Its name, from wide to narrow."""
        return f"{self.network}/seed{self.seed}/{self.backend}/{self.recipe}"


def rows() -> list[Row]:
    """All of them."""
    found = [Row("cnn", "cnn", 0, "litert", "float")]
    for seed in SEEDS:
        found += [Row("student", f"student-seed{seed}", seed, "litert", recipe) for recipe in ("alone", "distill")]
        mlp = ("mlp", f"mlp-seed{seed}", seed)
        found += [Row(*mlp, backend, recipe) for backend in TARGETS for recipe in ("float", "int8")]
        found += [Row(*mlp, "litert", recipe) for recipe in ("prune", "prune-int8")]
    return found


def argv_of(row: Row, weights: Path, out: Path) -> list[str]:
    """The command of a row."""
    task = "task.py:ReferenceEvaluated" if row.backend in REFERENCE_EVALUATED else "task.py:Mnist"
    said = {
        "--weights": weights,
        "--task": task,
        "--recipe": f"recipes/{row.recipe}.yaml",
        "--seed": row.seed,
        "--target": TARGETS[row.backend],
        "--backend": row.backend,
        "--name": row.network,
        "--out": out,
    }
    options = [str(part) for pair in said.items() for part in pair]
    return [sys.executable, "-m", "edgekit", "compile", f"model.py:{row.network}", *options, "--json"]


def made(row: Row, out: Path) -> Found:
    """Compile a row, and what is told of it.

    Raises:
        SystemExit: It cannot be compiled; the error is shown.
    """
    from model import weights_file

    argv = argv_of(row, weights_file(row.weights), out)
    done = subprocess.run(argv, cwd=HERE, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout) if done.stdout.strip() else {}
    if done.returncode != 0:
        sys.exit(f"{' '.join(argv)}\n{document.get('error', {}).get('message') or done.stderr}")
    artifact = document["artifacts"][0]
    host = artifact["metrics"]["host"]
    return {
        "top1": host["test"]["top1"],
        "validation": host["validation"]["top1"],
        "bytes": artifact["artifact_bytes"],
        "precision": artifact["precision"],
        "by": artifact["verification"]["by"],
        "changed": artifact["changed"],
        "path": artifact["path"],
    }


def told(values: Sequence[float], unit: float = 100, digits: int = 2) -> str:
    """Mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{unit * statistics.mean(values):.{digits}f} ± {unit * deviation:.{digits}f}"


def differences(found: Mapping[str, Found], network: str, backend: str, first: str, second: str) -> list[float]:
    """By how much the second recipe is better than the first, seed by seed."""
    at = [f"{network}/seed{seed}/{backend}" for seed in SEEDS]
    return [found[f"{name}/{second}"]["top1"] - found[f"{name}/{first}"]["top1"] for name in at]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean."""
    return statistics.stdev(values) / len(values) ** 0.5


def table(found: Mapping[str, Found]) -> str:
    """The rows in Markdown: mean and deviation over the seeds."""
    lines = [
        "| network | recipe | format | test top-1 (%) | change (points) | bytes | smaller |",
        "|---|---|---|---|---|---|---|",
    ]
    teacher = found["cnn/seed0/litert/float"]
    lines.append(f"| CNN (teacher) | float | litert | {100 * teacher['top1']:.2f} | | {teacher['bytes']:,} | |")
    pairs = [("student", "litert", "alone", ("alone", "distill"))]
    pairs += [("mlp", backend, "float", ("float", "int8")) for backend in TARGETS]
    pairs += [("mlp", "litert", "float", ("prune", "prune-int8"))]
    for network, backend, before, recipes in pairs:
        for recipe in recipes:
            here = [found[f"{network}/seed{seed}/{backend}/{recipe}"] for seed in SEEDS]
            size = statistics.mean(one["bytes"] for one in here)
            first = statistics.mean(found[f"{network}/seed{seed}/{backend}/{before}"]["bytes"] for seed in SEEDS)
            changed = recipe != before
            lost = told(differences(found, network, backend, before, recipe)) if changed else ""
            smaller = f"{first / size:.2f}×" if changed and network == "mlp" else ""
            label = f"{backend} (reference-evaluated, 2,000 images)" if backend in REFERENCE_EVALUATED else backend
            lines.append(
                f"| {network} | {recipe} | {label} | {told([one['top1'] for one in here])} | {lost} | {size:,.0f} |"
                f" {smaller} |"
            )
    gain = differences(found, "student", "litert", "alone", "distill")
    mean, error = 100 * statistics.mean(gain), 100 * standard_error(gain)
    verdict = "more than" if mean > error else "not more than"
    lines += [
        "",
        f"Distillation gains {mean:.2f} points, {verdict} its standard error of {error:.2f} (paired, by seed).",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(description="Every recipe of this example, with three seeds.")
    parser.add_argument("--list", action="store_true", help="say the rows' names")
    parser.add_argument("--row", help="make this one alone, and print what was found as JSON")
    parser.add_argument("--out", type=Path, help="where artifacts go, with --row")
    chosen = parser.parse_args()
    os.environ.setdefault("CI", "true")
    if chosen.list:
        print("\n".join(row.name for row in rows()))
        return 0
    if chosen.row:
        wanted = [row for row in rows() if row.name == chosen.row]
        if not wanted:
            sys.exit(f"There is no row '{chosen.row}'; --list says which there are.")
        print(json.dumps(made(wanted[0], chosen.out or Path(tempfile.mkdtemp()))))
        return 0
    subprocess.run([sys.executable, str(HERE / "train.py")], check=True)
    build = HERE / "build"
    kept = build / "rows.json"
    found: dict[str, Found] = json.loads(kept.read_text()) if kept.is_file() else {}
    for row in rows():
        if row.name not in found:
            found[row.name] = made(row, build / row.name)
            kept.write_text(json.dumps(found, indent=1))
            print(f"{row.name}: top1 {found[row.name]['top1']:.4f}, {found[row.name]['bytes']:,} bytes", flush=True)
    (HERE / "RESULTS.md").write_text(f"{HEAD}\n{table(found)}")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
