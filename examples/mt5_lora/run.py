"""The whole example in one command: base, adapters, merged model, and a verified artifact for each backend.

python examples/mt5_lora/run.py                                  # seed 0, four backends: a few minutes on one core
python examples/mt5_lora/run.py --seed 1 --no-compile --json     # its numbers alone, as one JSON document
python examples/mt5_lora/run.py --table                          # three seeds and four backends: README's tables
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
BACKENDS = {"litert": "linux-x86", "onnxruntime": "linux-x86", "openvino": "linux-x86", "coreml": "iphone15"}
"""Each with a target that has it."""
SEEDS = (0, 1, 2)
_TRAINED = re.compile(r"trainable parameters: (?P<trained>[\d,]+) of (?P<all>[\d,]+) ")
_APART = re.compile(r"merged and adapted outputs differ by (?P<share>\S+) of the largest")


def scores(program: Any) -> dict[str, float]:
    """Share of unseen numbers (the test split) that are written without a mistake, by wording."""
    from task import English, French

    return {
        task.wording: task.score([program.run(batch) for batch in task.examples("test")], "test")["exact"]
        for task in (French(), English())
    }


def outcome_of(seed: int, compiled: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """One seed's numbers: of base and adapted model, and of the artifacts."""
    import torch
    from model import base, weights_file

    import edgekit
    from edgekit.core.program import TorchProgram

    torch.set_num_threads(1)
    if not weights_file(seed).is_file():
        say(f"training the base of seed {seed}")
        subprocess.run([sys.executable, str(FOLDER / "train.py"), "--seed", str(seed)], check=True, stdout=sys.stderr)
    project = replace(edgekit.load(FOLDER, seed=seed), source=f"model.py:build_{seed}" if seed else "model.py:build")
    say("training and merging the adapters")
    model = edgekit.compress(project)
    record = model.history[0]
    notes = "; ".join(record.notes)
    trained, apart = _TRAINED.search(notes), _APART.search(notes)
    if trained is None or apart is None or not isinstance(model.program, TorchProgram):
        raise SystemExit(f"The pass lora changed nothing: {notes}")
    found: dict[str, Any] = {
        "seed": seed,
        "trainable_parameters": int(trained["trained"].replace(",", "")),
        "parameters": int(trained["all"].replace(",", "")),
        "parameters_merged": model.program.parameter_count(),
        "merged_apart": float(apart["share"]),
        "exact_before": scores(model.program.with_module(base(seed)[0])),
        "exact_after": scores(model.program),
        "notes": list(record.notes),
        "artifacts": [],
    }
    for backend, target in BACKENDS.items() if compiled else ():
        say(f"compiling with {backend}")
        with tempfile.TemporaryDirectory() as folder:
            made = edgekit.compile(project, target=target, backend=backend, out=Path(folder) / backend)
            found["artifacts"].append(artifact_of(made))
    return found


def artifact_of(artifact: Any) -> dict[str, Any]:
    """Size and parity of an artifact: the worst of its sets of inputs."""
    verification = json.loads((artifact.path / "verification.json").read_text(encoding="utf-8"))
    parities = [parity for found in verification["parity"].values() for parity in found]
    return {
        "backend": artifact.manifest.backend,
        "bytes": artifact.bytes,
        "snr_db": min(parity["snr_db"] for parity in parities),
        "max_abs": max(parity["max_abs"] for parity in parities),
        "agreement": min((p["agreement"] for p in parities if p.get("agreement") is not None), default=None),
        "examples": sum(parity["examples"] for parity in parities),
    }


def tables(outcomes: Sequence[dict[str, Any]]) -> str:
    """README's tables."""

    def spread(when: str, wording: str) -> str:
        values = [100 * outcome[when][wording] for outcome in outcomes]
        deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{deviation}"

    one = outcomes[0]
    share = one["trainable_parameters"] / one["parameters"]
    sizes = f"{one['trainable_parameters']:,} of {one['parameters']:,} ({share:.1%})"
    after = f"{spread('exact_after', 'french')} % | {spread('exact_after', 'english')} %"
    lines = [
        "| | trainable parameters | French (new) | plain English (learned before) |",
        "|---|---|---|---|",
        f"| base | | {spread('exact_before', 'french')} % | {spread('exact_before', 'english')} % |",
        f"| with adapters, merged | {sizes} | {after} |",
    ]
    artifacts = [artifact for outcome in outcomes for artifact in outcome["artifacts"]]
    if artifacts:
        lines += ["", "| artifact | kB | parity, least | largest difference | same digits |", "|---|---|---|---|---|"]
    for made in artifacts:
        agreement = "" if made["agreement"] is None else f"{made['agreement']:.1%} of {made['examples']:,}"
        lines.append(
            f"| {made['backend']} | {made['bytes'] / 1000:.0f} | {made['snr_db']:.0f} dB | {made['max_abs']:.1g} |"
            f" {agreement} |"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    """Tell what is being done, beside the answer."""
    print(text, file=sys.stderr)


def main() -> int:
    """Run, and print tables or JSON."""
    parser = argparse.ArgumentParser(description="LoRA on a small mT5: train, merge, compile, verify.")
    parser.add_argument("--seed", type=int, choices=SEEDS, default=0, help="of the base and of the adapters (0)")
    parser.add_argument("--no-compile", action="store_true", help="leave the artifacts out")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.add_argument("--table", action="store_true", help=f"seeds {SEEDS}, artifacts of the first")
    chosen = parser.parse_args()
    if not chosen.table:
        outcomes = [outcome_of(chosen.seed, not chosen.no_compile, say)]
    else:
        outcomes = [outcome_of(seed, not chosen.no_compile and seed == SEEDS[0], say) for seed in SEEDS]
    if chosen.json:
        print(json.dumps(outcomes if chosen.table else outcomes[0], indent=2))
    else:
        print(tables(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
