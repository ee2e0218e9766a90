"""A stand-in for LiteRT's `benchmark_model` on a simulated device: the same flags and lines, a real interpreter inside.

It is not Google's program: its times say nothing, its outputs are those of ai-edge-litert on this machine. Where the file
`<itself>.recorded` exists, that is printed instead.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

FLAGS = (
    *("graph", "num_threads", "warmup_runs", "warmup_min_secs", "num_runs", "min_secs", "max_secs", "use_xnnpack"),
    *("use_gpu", "use_nnapi", "report_peak_memory_footprint", "memory_footprint_check_interval_ms"),
    *("input_layer", "input_layer_shape", "input_layer_value_files", "output_filepath"),
)


def install(folder: Path, *, recorded: str | None = None, without: tuple[str, ...] = (), fails: str = "") -> Path:
    """Write the stand-in as a program.

    Args:
        folder: Where to.
        recorded: A log that it prints instead of running anything.
        without: Flags that it does not have.
        fails: Words with which it ends in failure instead.
    """
    path = folder / "benchmark_model"
    settings = f"RECORDED, WITHOUT, FAILS = {recorded!r}, {without!r}, {fails!r}"
    text = Path(__file__).read_text().replace("from __future__ import annotations", f"{settings}", 1)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path


def main(arguments: list[str], recorded: str | None, without: tuple[str, ...], fails: str) -> int:
    known = [flag for flag in FLAGS if flag not in without]
    if arguments == ["--help"]:
        print("usage: benchmark_model <flags>\nFlags:")
        for flag in known:
            print(f"\t--{flag}=\tstring\toptional")
        return 1
    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    print("INFO: STARTING!")
    if fails:
        print(f"ERROR: {fails}", file=sys.stderr)
        return 1
    if recorded is not None:
        print(recorded)
        return 0
    return run(given)


def run(given: dict[str, str]) -> int:
    """What the tool does: load, warm up, time, write outputs."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    start = time.perf_counter()
    try:
        interpreter = Interpreter(model_path=given["graph"], num_threads=int(given["num_threads"]))
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError):
        print(f"ERROR: Failed to load model {given['graph']}", file=sys.stderr)
        return 1
    init = 1e6 * (time.perf_counter() - start)
    detail = interpreter.get_input_details()[0]
    value = np.random.default_rng(0).random(detail["shape"]).astype(detail["dtype"])
    if "input_layer_value_files" in given:
        raw = Path(given["input_layer_value_files"].split(":", 1)[1]).read_bytes()
        wanted = [int(size) for size in given["input_layer_shape"].split(",")]
        if wanted != list(detail["shape"]) or len(raw) != value.nbytes:
            print(f"FATAL: The size is {len(raw)} bytes. It should be {value.nbytes} bytes.", file=sys.stderr)
            return 1
        value = np.frombuffer(raw, detail["dtype"]).reshape(detail["shape"])
    interpreter.set_tensor(detail["index"], value)
    print(f"INFO: Loaded model {given['graph']}")
    print("INFO: Created TensorFlow Lite XNNPACK delegate for CPU.")
    warmup = timed(interpreter, max(1, int(given["warmup_runs"])))
    times = timed(interpreter, int(given["num_runs"]))
    for samples in (warmup, times):
        print(
            f"INFO: count={len(samples)} first={samples[0]:.0f} curr={samples[-1]:.0f} min={min(samples):.0f}"
            f" max={max(samples):.0f} avg={np.mean(samples):g} std={np.std(samples):.0f}\n"
        )
    print(
        f"INFO: Inference timings in us: Init: {init:.0f}, First inference: {warmup[0]:.0f}, Warmup (avg):"
        f" {np.mean(warmup):g}, Inference (avg): {np.mean(times):g}"
    )
    print("INFO: Memory footprint delta from the start of the tool (MB): init=1.5 overall=2.5")
    print("INFO: Overall peak memory footprint (MB) via periodic monitoring: 33.25")
    if "output_filepath" in given:
        outputs = [interpreter.get_tensor(output["index"]).tobytes() for output in interpreter.get_output_details()]
        Path(given["output_filepath"]).write_bytes(b"".join(outputs))
    return 0


def timed(interpreter: object, count: int) -> list[float]:
    """Times of some inferences in microseconds."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        interpreter.invoke()  # type: ignore[attr-defined]
        found.append(1e6 * (time.perf_counter() - start))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], RECORDED, WITHOUT, FAILS))  # type: ignore[name-defined] # noqa: F821
