"""`make demo`: two real networks, compressed, converted, proven, deployed and measured on this machine.

Every step is a command that you can type yourself; each is shown before it runs. Results are kept in demo/, and the
report that ends it in report.html.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DEMO = ROOT / "demo"
REPORT = ROOT / "report.html"
ARM = os.uname().machine in ("aarch64", "arm64")
LITERT = "linux-arm64" if ARM else "linux-x86"
OPENVINO = ("linux-arm64", "--backend", "openvino") if ARM else ("intel-cpu",)


def main() -> int:
    started = time.monotonic()
    DEMO.mkdir(exist_ok=True)
    say("1. Train a small CNN on scikit-learn's handwritten digits (once; seeded)")
    if not (HERE / "digits" / "digits.safetensors").exists():
        run(["python", "train.py"], HERE / "digits")
    say("2. Compress it: fold its batch norms, scored before and after on images it was not trained on")
    edgekit("digits", "compress", "--out", str(DEMO / "digits-checkpoint"))
    say("3. Deploy the float and the 8-bit digits network to this machine: LiteRT, then OpenVINO")
    runs = [
        deploy("digits", "--target", LITERT, "--recipe", "recipe-float.yaml", "--tag", "before"),
        deploy("digits", "--target", LITERT, "--recipe", "recipe.yaml", "--tag", "after"),
        deploy("digits", "--target", *OPENVINO, "--recipe", "recipe-float.yaml"),
    ]
    say("4. Deploy EfficientNet-Lite0, pretrained on ImageNet, judged on real photographs")
    runs += [
        deploy("efficientnet_lite0", "--target", LITERT, "--recipe", "recipe-float.yaml"),
        deploy("efficientnet_lite0", "--target", *OPENVINO, "--recipe", "recipe-float.yaml"),
    ]
    say("5. ONNX Runtime here too, and Core ML for an iPhone: evaluated operator by operator, as no iPhone is at hand")
    for example in ("digits", "efficientnet_lite0"):
        runs.append(deploy(example, "--target", LITERT, "--backend", "onnxruntime", "--recipe", "recipe-float.yaml"))
        runs.append(reference(example, "--target", "iphone15", "--recipe", "recipe-float.yaml"))
    say("6. Deploy the 8-bit digits network to an emulated Raspberry Pi 4 over SSH: correctness, no board's speed")
    runs += on_an_emulated_pi()
    say("7. Deploy it to a browser: LiteRT.js in a real Chromium")
    runs += where_possible("digits", "--target", "web", "--recipe", "recipe-float.yaml", "--processes", "1")
    say("8. Report")
    edgekit("digits", "report", *runs, "--html", str(REPORT))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\nDone in {minutes} min {seconds} s. Open {REPORT.relative_to(ROOT)} in a browser.")
    print("Your own model: edgekit init mymodel && cd mymodel, then edit model.py and task.py.")
    return 0


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def deploy(example: str, *options: str) -> str:
    """Deploy an example and give the run's name; the document of the run is kept in demo/."""
    return kept(edgekit(example, "deploy", *options, "--json", capture=True))


def where_possible(example: str | Path, *options: str) -> list[str]:
    """The same on a device that not every machine has; says in one line why not where it cannot be done."""
    done = start(["edgekit", "deploy", *options, "--json"], HERE / example, capture=True)
    if done.returncode == 0:
        return [kept(done.stdout)]
    left_out(json.loads(done.stdout)["error"]["message"])
    return []


def on_an_emulated_pi() -> list[str]:
    """Start one and deploy to it, as to a board on a desk, from a copy of the example whose devices.yaml names it."""
    sys.path.insert(0, str(ROOT))
    from tests.devices.pi import EmulatedPi
    from tests.devices.rootfs import UnavailableError, ensure
    from tests.devices.sshd import make_key

    folder, project = DEMO / "pi", DEMO / "digits-on-a-pi"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / "digits", project, ignore=shutil.ignore_patterns(".edgekit"), dirs_exist_ok=True)
    folder.mkdir()
    try:
        ensure("arm64", lambda text: print(f"  {text}", flush=True))
        with EmulatedPi(folder / "board", make_key(folder / "key")) as pi:
            device = {key: value for key, value in vars(pi.device()).items() if value and key != "name"}
            document = {"schema_version": 1, "devices": {"emulated-pi": device}}
            (project / "devices.yaml").write_text(json.dumps(document, indent=2))
            return where_possible(project, "--target", "rpi4", "--recipe", "recipe.yaml", "--processes", "1")
    except UnavailableError as error:
        left_out(str(error))
        return []


def left_out(why: str) -> None:
    print(f"  left out: {' '.join(why.split())}")


def kept(answer: str) -> str:
    """The name of the run that a document is of, which is kept in demo/."""
    document = json.loads(answer)
    run_name = document["runs"][0]
    (DEMO / f"{run_name}.json").write_text(answer)
    for group in document["groups"]:
        print(f"  {group['headline']}")
    return run_name


def reference(example: str, *options: str) -> str:
    """Compile an example for a device that is not here and give the run's name."""
    answer = edgekit(example, "compile", *options, "--out", str(DEMO / f"{example}-artifacts"), "--json", capture=True)
    document = json.loads(answer)
    for artifact in document["artifacts"]:
        snr = min(p["snr_db"] for ps in artifact["verification"]["parity"].values() for p in ps)
        print(f"  {artifact['backend']} {artifact['precision']}: {snr:.0f} dB against torch, reference-evaluated")
    return document["run"]


def edgekit(example: str, *arguments: str, capture: bool = False) -> str:
    return run(["edgekit", *arguments], HERE / example, capture=capture)


def run(argv: list[str], folder: Path, *, capture: bool = False) -> str:
    done = start(argv, folder, capture=capture)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout or ""


def start(argv: list[str], folder: Path, *, capture: bool) -> subprocess.CompletedProcess[str]:
    print(f"  {folder.relative_to(ROOT)} $ {shlex.join(argv)}", flush=True)
    program = [sys.executable, "-m", "edgekit"] if argv[0] == "edgekit" else [sys.executable]
    return subprocess.run(
        [*program, *argv[1:]],
        cwd=folder,
        env={**os.environ, "EDGEKIT_RESULTS": str(DEMO / "results.sqlite")},
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
