"""`make bench-main`: what the tool itself costs: start-up, a deploy that changes nothing, a conversion.

Timings are ratios or differences taken interleaved in one run; an A/A row shows how far two runs of the same thing are
apart here.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, Results, interleaved, ratio, wall

PYTHON = sys.executable
EDGEKIT = [PYTHON, "-m", "edgekit"]
DIGITS = ROOT / "examples" / "digits"
EFFICIENTNET = ROOT / "examples" / "efficientnet_lite0"


def start_up(results: Results) -> None:
    bare = [PYTHON, "-c", "import typer, rich.console"]
    samples = interleaved(
        {
            "bare": lambda: wall(bare),
            "again": lambda: wall(bare),
            "help": lambda: wall([*EDGEKIT, "--help"]),
            "targets": lambda: wall([*EDGEKIT, "targets"]),
        },
        rounds=25,
    )
    results.add(
        "start-up A/A: importing typer and rich against itself", ratio(samples["again"], samples["bare"]), "ratio"
    )
    results.add(
        "edgekit --help against importing typer and rich", ratio(samples["help"], samples["bare"]), "ratio", at_most=1.5
    )
    results.add(
        "edgekit targets against importing typer and rich",
        ratio(samples["targets"], samples["bare"]),
        "ratio",
        at_most=1.5,
        note="parses and checks eleven YAML files and draws the table: importing PyYAML, msgspec, the types of targets and"
        " rich.table, parsing and drawing are what is left; a look for other packages' plugins was made five times cheaper",
    )


def repeated_deploy(results: Results) -> None:
    """The second deploy of an unchanged model over SSH to a real sshd on loopback."""
    from tests.devices.sshd import Sshd, make_key

    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as work:
        folder = Path(work)
        key = make_key(folder / "login")
        with Sshd(folder / "sshd", key, settings=("LogLevel VERBOSE",)) as server:
            project = _project(folder / "project", server)
            env = {
                "EDGEKIT_CACHE_DIR": str(folder / "cache"),
                "EDGEKIT_CONFIG_DIR": str(folder / "config"),
            }
            argv = [*EDGEKIT, "deploy", "--target", "loopback", "--json", "--processes", "1"]
            if not (DIGITS / "digits.safetensors").exists():
                wall([PYTHON, "train.py"], cwd=DIGITS)
            _json(argv, project, env)
            artifacts = _state(folder / "cache" / "artifacts")
            besides, sent, commands = [], [], []
            for _ in range(5):
                before = server.log.count("Starting session:")
                seconds, document = _json(argv, project, env)
                result = document["results"][0]
                commands.append(server.log.count("Starting session:") - before)
                sent.append(result["bytes_sent"])
                besides.append(seconds - _inference_seconds(result))
                print(
                    "   ", f"{seconds:.2f} s", {k: round(v, 2) for k, v in result["seconds"].items()}, file=sys.stderr
                )
            besides.sort()
            results.add(
                "deploy of an unchanged model over SSH: seconds besides the inference", besides[2], "s", at_most=3
            )
            results.add(
                "deploy of an unchanged model: bytes of model, inputs and runtime sent", max(sent), "bytes", at_most=0
            )
            results.add(
                "deploy of an unchanged model: remote commands, the SFTP channel among them",
                max(commands),
                "commands",
                at_most=3,
            )
            results.add(
                "deploy of an unchanged model: conversions",
                float(_state(folder / "cache" / "artifacts") != artifacts),
                "conversions",
                at_most=0,
            )


def _project(folder: Path, server: object) -> Path:
    """The digits example with a device that is the sshd."""
    folder.mkdir()
    for path in DIGITS.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    device = server.device("loop")  # type: ignore[attr-defined]
    (folder / "targets").mkdir()
    (folder / "targets" / "loopback.yaml").write_text(
        "schema_version: 1\nname: loopback\nsummary: an x86-64 Linux box reached over SSH\n"
        f"cpu: {{arch: {os.uname().machine}}}\nos: {{family: linux}}\nbackends: [litert]\ntransports: [ssh]\n"
    )
    entry = {
        "target": "loopback",
        "transport": "ssh",
        "address": device.address,
        "options": dict(device.options),
        "python": PYTHON,
    }
    (folder / "devices.yaml").write_text(json.dumps({"schema_version": 1, "devices": {"loop": entry}}))
    return folder


def _json(argv: list[str], folder: Path, env: dict[str, str]) -> tuple[float, dict]:
    import time

    started = time.perf_counter()
    done = subprocess.run(argv, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - started, json.loads(done.stdout)


def _inference_seconds(result: dict) -> float:
    """Seconds that the device spent on timed and warm-up inferences and on the test split's."""
    timed = sum(result["samples_ms"]) + sum(result["warmup_ms"])
    test_split = result["accuracy"]["examples"] * result["latency_ms"]["p50"]
    return (timed + test_split) / 1000


def _state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}


BARE = """
import sys, torch, litert_torch
sys.path.insert(0, {folder!r})
from model import build
module, inputs = build()
litert_torch.convert(module.eval(), tuple(inputs.values())).export({out!r})
"""


def conversion(results: Results) -> None:
    """Converting EfficientNet-Lite0 for LiteRT: the bare library call in a fresh process against ours."""
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as work:
        folder = Path(work)
        script = folder / "bare.py"
        script.write_text(BARE.format(folder=str(EFFICIENTNET), out=str(folder / "bare.tflite")))
        quiet = {"CI": "true"}
        document: dict = {}

        def bare() -> float:
            return wall([PYTHON, str(script)], env=quiet)

        def ours() -> float:
            nonlocal document
            argv = [
                *EDGEKIT,
                "compile",
                "--target",
                "linux-x86",
                "--recipe",
                "recipe-float.yaml",
                "--backend",
                "litert",
            ]
            argv += ["--no-verify", "--out", str(folder / "out"), "--json"]
            # A new cache each time: everything is made anew.
            cache = tempfile.mkdtemp(dir=folder)
            seconds, document = _json(argv, EFFICIENTNET, {"EDGEKIT_CACHE_DIR": cache})
            children.append(document["artifacts"][0]["conversion"]["seconds"])
            return seconds

        children: list[float] = []
        samples = interleaved({"bare": bare, "again": bare, "ours": ours}, rounds=3)
        results.add("conversion A/A: the bare call against itself", ratio(samples["again"], samples["bare"]), "ratio")
        results.add(
            "converting EfficientNet-Lite0, the conversion's own process, against the bare library call",
            ratio(children[1:], samples["bare"]),
            "ratio",
            at_most=1.10,
        )
        results.add(
            "edgekit compile of EfficientNet-Lite0 as a whole (source read twice, data, export) against the bare call",
            ratio(samples["ours"], samples["bare"]),
            "ratio",
            note="no goal; it also writes down the task's data, and calls the factory twice to see whether it repeats itself",
        )
        results.add(
            "converting EfficientNet-Lite0: peak RSS of its process",
            document["artifacts"][0]["conversion"]["peak_rss_mib"],
            "MiB",
            at_most=1200,
        )


def main() -> int:
    results = Results("main", "edgekit", "torch", "litert-torch", "paramiko", "typer", "rich")
    start_up(results)
    repeated_deploy(results)
    conversion(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
