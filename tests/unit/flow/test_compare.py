from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from edgekit.core.errors import ConfigError
from edgekit.core.measurement import Measurement
from edgekit.core.result import Result
from edgekit.flow.compare import compare, in_run, matched
from edgekit.flow.interleave import TURNS
from tests.unit.report import samples

CONDITIONS = {"cpu_model": "Cortex-A72", "governor": "performance", "temp_c": 48.0, "throttled": False}
RUNTIME = {"runtime": "ai-edge-litert", "runtime_version": "2.3.0", "threads": 1, "delegate": "XNNPACK"}


def latency(median: float, seed: int, *, count: int = 10, turns: str | None = None, **changes) -> Measurement:
    lot = random.Random(seed)
    values = [
        median * level * lot.gauss(1, 0.01) for level in (lot.gauss(1, 0.005) for _ in range(count)) for _ in range(20)
    ]
    metadata = RUNTIME | ({TURNS: turns} if turns else {})
    made = Measurement(
        "latency_ms", "ms", "smaller", "samples", tuple(values), (), (20,) * count, CONDITIONS, CONDITIONS, metadata
    )
    return replace(made, **changes)


def result(median: float = 10.0, seed: int = 0, *, measured: Measurement | None = None, **changes) -> Result:
    made = samples.result("float32", seed=seed)
    return replace(made, measurements=(measured or latency(median, seed),), **changes)


def verdict(a: Result, b: Result, metric: str = "latency_ms", **options):
    row = compare(a, b, **options).row(metric)
    assert row is not None
    return row


def test_a_faster_one_is_faster_and_a_slower_one_slower():
    row = verdict(result(10.0, 1), result(8.0, 2))
    assert (row.verdict, row.improved, row.test) == ("faster", True, "Mann–Whitney")
    assert row.ratio.low < 0.8 < row.ratio.high < 1
    assert row.p < 0.01
    assert verdict(result(8.0, 1), result(10.0, 2)).verdict == "slower"


def test_equal_ones_show_no_difference_and_what_would_have_been_found():
    row = verdict(result(10.0, 1), result(10.0, 2))
    assert (row.verdict, row.improved) == ("no difference", None)
    assert 1 < row.detectable < 1.1
    assert row.blind_to.endswith("% would have been found")


def test_what_was_measured_in_the_same_rounds_is_paired():
    a, b = (result(measured=latency(10.0 * f, s, turns="run/pi")) for f, s in ((1.0, 1), (1.03, 2)))
    found = compare(a, b)
    assert found.in_turns
    assert found.row("latency_ms").test == "signed rank"
    assert not any("one after the other" in note for note in found.notes)
    other = result(measured=latency(10.0, 2, turns="another/pi"))
    assert not compare(a, other).in_turns
    assert any("one after the other" in note for note in compare(a, other).notes)


def test_what_moved_while_both_took_turns_is_a_note_and_no_reason():
    warm = {"conditions_after": CONDITIONS | {"temp_c": 79.0}}
    a, b = (result(measured=latency(10.0, s, turns="run/pi", **warm)) for s in (1, 2))
    found = compare(a, b)
    assert found.row("latency_ms").verdict == "no difference"
    assert any("A: the processor warmed from 48 to 79 °C; in turns" in note for note in found.notes)
    assert verdict(result(), replace(b, id="x"), allow=["moved"]).verdict == "no difference"


@pytest.mark.parametrize(
    ("changes", "measured", "words"),
    [
        ({"device": "attic-pi"}, {}, "device kitchen-pi against attic-pi"),
        ({"emulated": True}, {}, "hardware against emulated"),
        ({"runner": "native"}, {}, "runner agent against native"),
        ({}, {"metadata": RUNTIME | {"threads": 4}}, "threads 1 against 4"),
        ({}, {"metadata": RUNTIME | {"runtime_version": "2.4.0"}}, "runtime version 2.3.0 against 2.4.0"),
        ({}, {"metadata": RUNTIME | {"delegate": "GPU"}}, "delegate XNNPACK against GPU"),
        ({}, {"conditions_before": CONDITIONS | {"governor": "powersave"}}, "governor performance against powersave"),
        ({}, {"conditions_before": CONDITIONS | {"cpu_model": "Cortex-A76"}}, "cpu model Cortex-A72 against"),
        ({}, {"conditions_after": CONDITIONS | {"throttled": True}}, "throttled while B was measured"),
        ({}, {"conditions_after": CONDITIONS | {"temp_c": 79.0}}, "warmed from 48 to 79 °C while B"),
        ({}, {"conditions_before": CONDITIONS | {"temp_c": 70.0}}, "A began at 48 °C and B at 70 °C"),
        ({}, {"conditions_after": CONDITIONS | {"governor": "ondemand"}}, "went from performance to ondemand while B"),
        ({}, {"kind": "summary", "values": (10.0,), "processes": ()}, "samples against summary"),
        ({}, {"values": (math.nan,) * 200}, "200 of 200 samples are not finite"),
        ({}, {"values": (10.0,), "processes": (1,)}, "one sample: at least 3 fresh processes"),
        ({}, {"processes": (1, 2)}, "200 samples, but their processes count 3"),
        ({}, {"processes": ()}, "200 samples of 1 process"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_comparable_says_why(changes, measured, words):
    a, b = result(10.0, 1), result(measured=latency(8.0, 2, **measured), **changes)
    row = verdict(a, b)
    assert row.verdict == "not comparable"
    assert words in row.reason
    assert row.p is None


def test_every_reason_is_listed():
    b = result(measured=latency(8.0, 2, metadata=RUNTIME | {"threads": 4}), device="attic-pi")
    assert verdict(result(), b).reason == "device kitchen-pi against attic-pi; threads 1 against 4"


def test_what_a_device_does_not_tell_is_no_reason():
    unknown = latency(8.0, 2, conditions_before={}, conditions_after={}, metadata={})
    assert verdict(result(10.0, 1), result(measured=unknown)).verdict == "faster"


def test_what_differs_on_purpose_can_be_allowed_but_an_emulator_never():
    b = result(measured=latency(5.0, 2, metadata=RUNTIME | {"threads": 4}))
    assert verdict(result(10.0, 1), b, allow=["threads"]).verdict == "faster"
    with pytest.raises(ConfigError, match="no reason that can be allowed 'emulated'"):
        compare(result(), b, allow=["emulated"])
    with pytest.raises(ConfigError, match=r"A level of 1\.0"):
        compare(result(), b, alpha=1.0)


def test_samples_that_are_all_equal_time_nothing():
    a, b = (latency(10.0, 1, values=(v,) * 200) for v in (10.0, 20.0))
    assert "all samples of each are equal" in verdict(result(measured=a), result(measured=b)).reason


def memory(*values: float) -> Measurement:
    return Measurement("peak_rss_mib", "MiB", "smaller", "samples", values, (), (1,) * len(values))


def test_memory_that_never_varies_is_counted_and_not_tested():
    a, b = result(measured=memory(40.0, 40.0)), result(measured=memory(50.0, 50.0))
    row = verdict(a, b, "peak_rss_mib")
    assert (row.verdict, row.improved, row.test, row.p) == ("larger", False, "exact", None)
    assert row.ratio.estimate == 1.25
    nothing = result(measured=memory(0.0, 0.0))
    assert verdict(nothing, nothing, "peak_rss_mib").verdict == "no difference"
    assert "above 0 to divide by" in verdict(nothing, b, "peak_rss_mib").reason


def test_a_metric_of_one_side_only_says_whose_is_missing():
    assert verdict(result(), result(measured=memory(1.0)), "peak_rss_mib").reason == "A has no peak_rss_mib"
    assert verdict(result(), result(measured=memory(1.0))).reason == "B has no latency_ms"


def test_sizes_are_counted():
    a, b = result(artifact_bytes=1000, download_bytes=0), result(artifact_bytes=800, download_bytes=700)
    row = verdict(a, b, "artifact_bytes")
    assert (row.verdict, row.improved, row.ratio.estimate) == ("smaller", True, 0.8)
    assert compare(a, b).row("download_bytes") is None


def scored(top1: float, **changes) -> Result:
    made = result()
    error = math.sqrt(top1 * (1 - top1) / 360)
    return replace(made, accuracy=replace(made.accuracy, device={"top1": top1}, standard_error=error, **changes))


def test_a_score_is_judged_by_its_standard_errors():
    row = verdict(scored(0.90), scored(0.89), "top1")
    assert (row.verdict, row.test) == ("no difference", "standard errors")
    assert row.difference.low < -0.01 < row.difference.high
    row = verdict(scored(0.90), scored(0.60), "top1")
    assert (row.verdict, row.improved) == ("lower", False)
    assert row.difference.estimate == pytest.approx(-0.3)


def test_scores_of_other_examples_are_not_comparable():
    assert verdict(scored(0.9), scored(0.9, examples=60), "top1").reason == "examples 360 against 60"
    assert "standard error is not known" in verdict(scored(0.9), replace_error(scored(0.8)), "top1").reason
    assert verdict(scored(0.9), replace(scored(0.9), accuracy=None), "top1").reason == "B has no top1"


def replace_error(made: Result) -> Result:
    return replace(made, accuracy=replace(made.accuracy, standard_error=None))


def test_the_same_artifact_is_called_so():
    assert "A and B are the same artifact (A/A)" in compare(result(), result()).notes


def test_results_of_two_runs_are_matched_by_what_they_are():
    first = [samples.result("float32"), samples.result("float16")]
    second = [samples.result("float16", seed=5), samples.result("float32", seed=5)]
    assert [(a.precision, b.precision) for a, b in matched(first, second)] == [("float16",) * 2, ("float32",) * 2]
    assert matched(first[:1], second[:1]) == [(first[0], second[0])]
    with pytest.raises(ConfigError, match="exactly one of the same model"):
        matched([first[0], first[0]], second)


def test_only_what_took_turns_is_compared_within_a_run():
    a, b = (result(measured=latency(10.0, s, turns="run/pi")) for s in (1, 2))
    assert len(in_run([a, b])) == 1
    assert in_run([result(), result()]) == []
    assert in_run([a, replace(b, device="attic-pi")]) == []
