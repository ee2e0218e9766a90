"""Results for tests: plausible figures drawn from a seeded generator. Nothing in here was ever measured."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from edgekit.core.artifact import Parity
from edgekit.core.measurement import Better, Measurement
from edgekit.core.model import PassRecord
from edgekit.core.result import Accuracy, Conversion, Result

RPI = {
    "hostname": "kitchen-pi",
    "cpu_model": "Cortex-A72",
    "cores": 4,
    "os": "Debian GNU/Linux 12 (bookworm)",
    "kernel": "6.6.31+rpt-rpi-v8",
    "governor": "performance",
    "freq_mhz": 1800,
    "temp_c": 48.3,
    "throttled": False,
    "battery_pct": None,
}
PC = RPI | {"cpu_model": "x86_64 laptop CPU", "cores": 8, "kernel": "6.8.0", "governor": "powersave", "temp_c": None}

# precision: bytes, median ms, model's MiB, top-1, cosine, SNR dB
FIGURES: dict[str, tuple[int, float, float, float, float, float]] = {
    "float32": (18_612_344, 61.4, 43.1, 0.9722, 1.0, 124.0),
    "float16": (9_377_210, 62.9, 47.8, 0.9722, 0.999999, 63.2),
    "static_wi8_ai8": (5_215_808, 24.6, 17.9, 0.9694, 0.9974, 24.1),
    "weight_only_wi8_afp32": (5_080_112, 74.8, 45.2, 0.9722, 0.9991, 31.8),
}
PASSES = (
    PassRecord(
        "fold_batch_norm",
        {},
        True,
        ("49 batch norms folded",),
        {},
        {"top1": 0.9750},
        {"top1": 0.9750},
        4_652_008,
        4_630_112,
    ),
    PassRecord(
        "prune_channels",
        {"ratio": 0.5, "importance": "taylor", "finetune": {"epochs": 3}},
        True,
        ("1,204 of 2,408 channels removed", "3 epochs of fine-tuning"),
        {},
        {"top1": 0.9750},
        {"top1": 0.9667},
        4_630_112,
        1_310_880,
    ),
    PassRecord(
        "low_rank",
        {"energy": 0.98},
        False,
        ("no layer would become smaller",),
        {},
        {"top1": 0.9667},
        {"top1": 0.9667},
        1_310_880,
        1_310_880,
    ),
)


def measurement(metric: str, unit: str, better: Better, values: list[float], **more: Any) -> Measurement:
    return Measurement(metric, unit, better, more.pop("kind", "samples"), tuple(values), **more)


def measurements(
    rng: random.Random, median_ms: float, model_mib: float, facts: dict[str, Any], *, runs: int = 60, processes: int = 3
) -> tuple[Measurement, ...]:
    """What `measurements_of` makes of a visit: samples of several processes, with a slow tail."""
    latency, warmups = [], []
    for _ in range(processes):
        drift = rng.gauss(1, 0.012)
        warmups += [median_ms * drift * rng.uniform(1.1, 1.5) for _ in range(5)]
        latency += [
            median_ms * drift * (1 + abs(rng.gauss(0, 0.012)) + (rng.random() < 0.03) * rng.uniform(0.1, 0.35))
            for _ in range(runs)
        ]
    after = facts | {"temp_c": facts["temp_c"] and facts["temp_c"] + 6.2}
    common: dict[str, Any] = {
        "conditions_before": facts,
        "conditions_after": after,
        "metadata": {
            "runtime": "ai-edge-litert",
            "runtime_version": "2.3.0",
            "threads": 1,
            "delegate": None,
            "xnnpack_applied": True,
        },
    }

    def each(value: float, spread: float) -> list[float]:
        return [value * rng.gauss(1, spread) for _ in range(processes)]

    return (
        measurement(
            "latency_ms", "ms", "smaller", latency, warmups=tuple(warmups), processes=(runs,) * processes, **common
        ),
        measurement("first_inference_ms", "ms", "smaller", each(median_ms * 1.8, 0.05), **common),
        measurement("load_ms", "ms", "smaller", each(11 + model_mib / 4, 0.05), **common),
        measurement("init_ms", "ms", "smaller", each(180, 0.05), **common),
        measurement("throughput_ips", "inferences/s", "larger", each(1000 / median_ms, 0.01), **common),
        measurement("peak_rss_mib", "MiB", "smaller", each(31.8 + model_mib, 0.01), **common),
        measurement("peak_pss_mib", "MiB", "smaller", each(27.0 + model_mib, 0.01), **common),
        measurement("runtime_baseline_mib", "MiB", "neither", each(31.8, 0.01), **common),
        measurement("model_delta_mib", "MiB", "smaller", each(model_mib, 0.01), **common),
    )


def result(precision: str = "float32", *, seed: int = 0, **changes: Any) -> Result:
    """One result; `changes` replace fields."""
    rng = random.Random(f"{precision}{seed}{changes.get('device', '')}")
    size, median_ms, model_mib, top1, cosine, snr = FIGURES[precision]
    speed = 0.12 if changes.get("device") == "local" else 1.0
    facts = PC if changes.get("device") == "local" else RPI
    made = Result(
        schema_version=1,
        id=f"{rng.getrandbits(64):016x}",
        run="20261124-101502-3f9c",
        created=f"2026-11-24T10:{15 + list(FIGURES).index(precision):02d}:02.120000+00:00",
        model="digits",
        source="model.py:build",
        backend="litert",
        precision=precision,
        target="rpi4",
        device="kitchen-pi",
        transport="ssh",
        runner="agent",
        emulated=False,
        artifact_digest=f"{rng.getrandbits(256):064x}",
        artifact_bytes=size,
        download_bytes=int(size * (0.93 if precision == "float32" else 0.82)),
        conversion=Conversion(rng.uniform(9, 22), rng.uniform(620, 900), False),
        parity=(
            Parity("logits", 32, 10 ** (-snr / 20), 10 ** (-snr / 20) / 9, cosine, snr, round(1 - (1 - cosine) * 8, 4)),
        ),
        accuracy=Accuracy(
            "top1",
            "larger",
            "test",
            360,
            {"top1": 0.9722},
            {"top1": top1},
            {"top1": top1},
            {"logits": 1.0 if precision == "float32" else 0.9917},
            (top1 * (1 - top1) / 360) ** 0.5,
        ),
        measurements=measurements(rng, median_ms * speed, model_mib, facts),
        released=precision == "static_wi8_ai8",
        bytes_sent=size,
        seconds={"connect": 0.41, "push": 1.9, "run": 38.2, "pull": 0.3},
        command="edgekit deploy --target rpi4 --device kitchen-pi",
    )
    return replace(made, **changes)


def before_and_after(**changes: Any) -> list[Result]:
    """The common case: float32 as it came, and int8 of a pruned model, on one Raspberry Pi."""
    return [
        result("float32", **changes),
        result("static_wi8_ai8", history=PASSES, **changes),
    ]


def ladder(**changes: Any) -> list[Result]:
    """All precisions on a Raspberry Pi, and two of them on an emulated one and on this machine."""
    local = {"device": "local", "target": "linux-x86", "transport": "local"}
    emulated = {"device": "qemu-pi", "emulated": True}
    return [
        *(result(precision, history=PASSES if precision != "float32" else (), **changes) for precision in FIGURES),
        *(result(precision, **local, **changes) for precision in ("float32", "static_wi8_ai8")),
        *(result(precision, **emulated, **changes) for precision in ("float32", "static_wi8_ai8")),
    ]


HOSTILE = "<script>alert('x')</script> \"naïve\" | `x` & 模型 </table>"
"""A name that breaks every renderer that does not escape."""
