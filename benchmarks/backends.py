"""`make bench-backends`: ten networks on every backend: size, conversion, parity and latency against the plain recipe.

For each network and backend, in fresh processes: the library's plain recipe on the module; the library's bare call on
the exported program, edgekit's conversion of the same, and, where it is short, the bare call again (A/A). Conversions are compared by the
processor time of their processes, which other work on the machine hardly changes. Then the plain recipe's artifact and
edgekit's run in one process, single-threaded, in short interleaved rounds, with a second copy of the plain one as A/A.
What is finished is kept in benchmarks/results/backends-cells.json: a run that is killed goes on where it was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import RESULTS, ROOT, Results, machine

PYTHON = sys.executable
NETWORKS = ROOT / "examples" / "networks"
CELLS = RESULTS / "backends-cells.json"
TABLE = ROOT / "docs" / "networks.md"
TARGETS = {"litert": "linux-x86", "openvino": "intel-cpu", "onnxruntime": "linux-x86", "coreml": "iphone15"}
LONG = 15.0
"""Bare calls of fewer processor seconds are made twice."""
NAMES = (
    "efficientnet_lite0", "mobilenet_v2", "resnet18", "vit_tiny", "minilm", "lstm", "gru", "unet", "detector", "audio_cnn",
)  # fmt: skip

PLAIN = {
    "litert": """
import litert_torch
litert_torch.convert(module, inputs).export(out + "/model.tflite")
""",
    "openvino": """
import openvino as ov
model = ov.convert_model(module, example_input=inputs, input=[list(t.shape) for t in inputs])
ov.save_model(model, out + "/model.xml", compress_to_fp16=False)
""",
    "onnxruntime": """
torch.onnx.export(module, inputs, out + "/model.onnx", dynamo=True, external_data=False)
""",
    "coreml": """
import coremltools as ct
exported = torch.export.export(module, inputs).run_decompositions()
ct.convert(exported, minimum_deployment_target=ct.target.iOS17).save(out + "/model.mlpackage")
""",
}
PROLOGUE = """
import sys
sys.path.insert(0, {folder!r})
out = {out!r}
import torch
import networks
module, named = getattr(networks, {name!r})()
inputs = tuple(named.values())
"""
EXPORT = """
torch.export.save(torch.export.export(module, inputs), out + "/program.pt2")
print(sum(t.numel() * t.element_size() for t in module.state_dict().values()))
"""
BARE = {
    "litert": """
import litert_torch
litert_torch.convert(exported.module(), exported.example_inputs[0]).export(out + "/model.tflite")
""",
    "openvino": """
import openvino as ov
ov.save_model(ov.convert_model(exported), out + "/model.xml", compress_to_fp16=False)
""",
    "onnxruntime": """
torch.onnx.export(exported, (), out + "/model.onnx", dynamo=True, external_data=False)
""",
    "coreml": """
import coremltools as ct
ct.convert(exported.run_decompositions(), minimum_deployment_target=ct.target.iOS17).save(out + "/model.mlpackage")
""",
}
LOAD = """
import torch
out = {out!r}
exported = torch.export.load({program!r})
"""


def run(argv: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "CI": "true", "ORT_DISABLE_TELEMETRY": "1", **options.pop("env", {})}  # type: ignore[dict-item]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env, **options)  # type: ignore[call-overload]


def why(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process left."""
    return done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else f"ended with {done.returncode}"


def exported(name: str, out: Path) -> tuple[Path, int]:
    """The network as an exported program, and the bytes of its weights."""
    out.mkdir(parents=True)
    done = run([PYTHON, "-c", PROLOGUE.format(folder=str(NETWORKS), out=str(out), name=name) + EXPORT])
    if done.returncode != 0:
        sys.exit(f"{name} cannot be exported: {done.stderr[-2000:]}")
    return out / "program.pt2", int(done.stdout.split()[-1])


def timed(script: str) -> dict:
    """A script in a fresh process: wall and processor seconds, or why it failed."""
    before, started = os.times(), time.perf_counter()
    done = run([PYTHON, "-c", script])
    seconds, after = time.perf_counter() - started, os.times()
    if done.returncode != 0:
        return {"seconds": None, "error": why(done)}
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "cpu_seconds": spent}


def plain(name: str, backend: str, out: Path) -> dict:
    """The library's plain recipe on the module."""
    out.mkdir(parents=True)
    return timed(PROLOGUE.format(folder=str(NETWORKS), out=str(out), name=name) + PLAIN[backend])


def bare(program: Path, backend: str, out: Path) -> dict:
    """The library's bare call on the exported program."""
    out.mkdir(parents=True)
    return timed(LOAD.format(out=str(out), program=str(program)) + BARE[backend])


def ours(name: str, backend: str, out: Path, cache: Path) -> dict:
    """`edgekit compile` with an empty cache: the conversion's own process, parity on the host."""
    # From the module, as a person has it: the artifact may depend on what the source says of its inputs.
    argv = [PYTHON, "-m", "edgekit", "compile", f"{NETWORKS / 'networks.py'}:{name}", "--target", TARGETS[backend]]
    argv += ["--backend", backend, "--name", name, "--out", str(out), "--json"]
    done = run(argv, cwd=out.parent, env={"EDGEKIT_CACHE_DIR": str(cache)})
    try:
        document = json.loads(done.stdout)
    except ValueError:
        return {"error": done.stderr.strip()[-300:]}
    if "error" in document:
        return {"error": document["error"]["message"][:300]}
    artifact = document["artifacts"][0]
    parity = [p for ps in artifact["verification"]["parity"].values() for p in ps]
    build = json.loads((Path(artifact["path"]) / "build.json").read_text())
    return {
        "path": artifact["path"],
        "bytes": artifact["artifact_bytes"],
        "seconds": build["seconds"],
        "cpu_seconds": build["cpu_seconds"],
        "peak_rss_mib": build["peak_rss_mib"],
        "snr_db": min(p["snr_db"] for p in parity),
        "max_abs": max(p["max_abs"] for p in parity),
        "precision": artifact["precision"],
    }


LATENCY = """
import importlib, json, statistics, sys, time
import numpy as np
sys.path.insert(0, {agent!r})
Driver = importlib.import_module({driver!r}).Driver
def made(path, bindings):
    driver = Driver(path, 1, bindings, {{}})
    driver.load()
    arrays = {{}}
    random = np.random.default_rng(0)
    for spec in driver.inputs:
        dtype = np.dtype(spec["dtype"])
        values = random.normal(size=spec["shape"]) if dtype.kind == "f" else random.integers(0, 2, spec["shape"])
        arrays[spec["name"]] = values.astype(dtype)
    driver.prepare(arrays)
    for _ in range(3):
        driver.invoke()
    return driver
drivers = [made(path, bindings) for path, bindings in {models!r}]
started = time.process_time(); drivers[0].invoke(); once = max(time.process_time() - started, 1e-6)
count = max(1, int(0.03 / once))
rounds = []
deadline = time.monotonic() + {seconds!r}
while time.monotonic() < deadline or len(rounds) < 10:
    order = list(range(len(drivers)))
    if len(rounds) % 2: order.reverse()
    row = [0.0] * len(drivers)
    for index in order:
        started = time.process_time()
        for _ in range(count):
            drivers[index].invoke()
        row[index] = (time.process_time() - started) / count
    rounds.append(row)
print(json.dumps({{"ms": [1000 * statistics.median(r[i] for r in rounds) for i in range(len(drivers))],
  "ratio": statistics.median(r[2] / r[0] for r in rounds), "aa": statistics.median(r[1] / r[0] for r in rounds)}}))
"""


def latency(backend: str, plain_main: Path, artifact: Path, seconds: float) -> dict:
    """Process time of ours over the plain recipe's, single-threaded, interleaved; and the plain one over itself."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    models = [
        (str(plain_main), {}),
        (str(plain_main), {}),
        (str(artifact / manifest["main"]), manifest.get("bindings", {})),
    ]
    script = LATENCY.format(
        agent=str(ROOT / "edgekit" / "agent"), driver=f"device_{backend}", models=models, seconds=seconds
    )
    done = run([PYTHON, "-c", script])
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def cell(name: str, backend: str, seconds: float, cache: Path) -> dict:
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as work:
        folder = Path(work)
        program, weights = exported(name, folder / "program")
        # Core ML has no latency here, and its plain recipe is the bare call.
        first = {"seconds": None} if backend == "coreml" else plain(name, backend, folder / "plain")
        found: dict = {"weights_bytes": weights, "plain": first, "bare": bare(program, backend, folder / "bare")}
        found["ours"] = ours(name, backend, folder / "ours", cache)
        if (found["bare"].get("cpu_seconds") or LONG) < LONG:
            found["bare_again"] = bare(program, backend, folder / "again")
        mains = {"litert": "model.tflite", "openvino": "model.xml", "onnxruntime": "model.onnx"}
        if backend in mains and found["plain"]["seconds"] and "path" in found["ours"]:
            found["latency"] = latency(backend, folder / "plain" / mains[backend], Path(found["ours"]["path"]), seconds)
        found["ours"].pop("path", None)
        return found


def conversion_ratio(cell: dict) -> float | None:
    """Processor time of edgekit's conversion over the bare call's, the mean of the two around it."""
    around = [seconds for one in ("bare", "bare_again") if (seconds := cell.get(one, {}).get("cpu_seconds"))]
    return cell["ours"]["cpu_seconds"] / statistics.mean(around) if around else None


def table(cells: dict) -> str:
    """The table of the docs."""
    lines = [
        "# Ten networks on four backends",
        "",
        f"Made by `make bench-backends` on: {machine()}. Conversion is processor time, edgekit's over the library's bare call on",
        "the same exported program; seconds are edgekit's, on the clock. Latency is process time on one thread, edgekit's over",
        "the library's plain recipe in interleaved rounds (A/A: the plain artifact over itself). Core ML has no runtime off a",
        "Mac: its artifacts are *reference-evaluated*, not device-verified, and have no latency. SNR is against torch, on seeded",
        "inputs; Core ML's are fp16.",
        "",
        "| network | backend | size MB | weights MB | conversion s | over the bare call | peak RSS MiB | SNR dB | ms | over plain | A/A |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        for backend in TARGETS:
            found = cells.get(f"{name}/{backend}")
            if found is None:
                lines.append(f"| {name} | {backend} | not run | | | | | | | | |")
                continue
            mine, speed = found["ours"], found.get("latency", {})
            if "error" in mine:
                reason = " ".join(mine["error"].replace("|", "/").split())[:160]
                lines.append(f"| {name} | {backend} | failed: {reason} | | | | | | | | |")
                continue
            times = conversion_ratio(found)
            reason = found["bare"].get("error", "").replace("|", "/")[:80]
            lines.append(
                f"| {name} | {backend} | {mine['bytes'] / 1e6:.2f} | {found['weights_bytes'] / 1e6:.2f} |"
                f" {mine['seconds']:.1f} | {f'{times:.2f}' if times else f'the bare call fails: {reason}'} |"
                f" {mine['peak_rss_mib']:.0f} | {mine['snr_db']:.0f} |"
                + (
                    f" {speed['ms'][2]:.3g} | {speed['ratio']:.3f} | {speed['aa']:.3f} |"
                    if "ratio" in speed
                    else " – | – | – |"
                )
            )
    return "\n".join(lines) + "\n"


def summarize(cells: dict) -> None:
    results = Results("backends", "edgekit", "torch", "litert-torch", "openvino", "onnxruntime", "coremltools")
    done = {key: c for key, c in cells.items() if "error" not in c["ours"]}
    results.add("networks x backends converted and proven", len(done), f"of {len(NAMES) * len(TARGETS)}")
    for backend in TARGETS:
        mine = [c for key, c in done.items() if key.endswith(f"/{backend}")]
        times = [ratio for c in mine if (ratio := conversion_ratio(c))]
        if times:
            results.add(
                f"{backend}: conversion time over the bare call, median of networks",
                statistics.median(times),
                "ratio",
                at_most=1.10,
            )
            results.add(
                f"{backend}: conversion time over the bare call, worst network", max(times), "ratio", at_most=1.10
            )
            again = [c["bare_again"]["cpu_seconds"] / c["bare"]["cpu_seconds"] for c in mine if "bare_again" in c]
            results.add(
                f"{backend}: A/A of that, furthest from 1", max(again, key=lambda value: abs(value - 1)), "ratio"
            )
        whole = [c["ours"]["cpu_seconds"] / c["plain"]["cpu_seconds"] for c in mine if c["plain"]["seconds"]]
        if whole:
            results.add(
                f"{backend}: conversion time over the plain recipe on the module, median of networks",
                statistics.median(whole),
                "ratio",
                note="the plain recipe may take another way in (TorchScript), and is not charged for the export",
            )
        speeds = [c["latency"]["ratio"] for c in mine if "ratio" in c.get("latency", {})]
        if speeds:
            results.add(
                f"{backend}: latency over the plain recipe's artifact, worst network",
                max(speeds),
                "ratio",
                at_most=1.02,
            )
            aa = [c["latency"]["aa"] for c in mine if "aa" in c.get("latency", {})]
            results.add(f"{backend}: A/A of that, furthest from 1", max(aa, key=lambda v: abs(v - 1)), "ratio")
        if mine:
            sizes = {key: c["ours"]["bytes"] / c["weights_bytes"] for key, c in done.items() if c in mine}
            worst = max(sizes, key=sizes.__getitem__)
            results.add(
                f"{backend}: artifact size over its float32 weights, worst network ({worst.partition('/')[0]})",
                sizes[worst],
                "ratio",
                at_most=1.10,
            )
            results.add(
                f"{backend}: peak RSS of a conversion, worst network",
                max(c["ours"]["peak_rss_mib"] for c in mine),
                "MiB",
            )
            results.add(f"{backend}: parity with torch, worst network", min(c["ours"]["snr_db"] for c in mine), "dB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(NAMES))
    parser.add_argument("--backends", nargs="*", default=list(TARGETS))
    parser.add_argument("--again", action="store_true", help="measure cells that are known already, too")
    parser.add_argument("--seconds", type=float, default=10.0, help="of latency rounds a cell")
    options = parser.parse_args()
    cells = json.loads(CELLS.read_text()) if CELLS.exists() else {}
    for name in options.networks:
        # One cache a network: its source is read once, and every artifact in it is made anew all the same.
        with tempfile.TemporaryDirectory(prefix="edgekit-bench-cache-") as cache:
            for backend in options.backends:
                key = f"{name}/{backend}"
                if key in cells and not options.again:
                    continue
                print(f"{key} …", flush=True)
                cells[key] = cell(name, backend, options.seconds, Path(cache))
                print(f"  {json.dumps(cells[key])[:400]}", flush=True)
                RESULTS.mkdir(parents=True, exist_ok=True)
                CELLS.write_text(json.dumps(cells, indent=1, sort_keys=True) + "\n")
    summarize(cells)
    TABLE.write_text(table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
