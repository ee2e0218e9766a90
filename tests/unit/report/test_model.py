from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edgekit.core.errors import ConfigError
from edgekit.core.measurement import Measurement
from edgekit.report import model
from edgekit.report.words import ACCURACY, DASH, SPEED, conditions, headline, notes, number, times
from tests.unit.report import samples


def cell(row, columns, name):
    return next(column for column in columns if column.name == name).cell(row)


def without(result, *metrics):
    return replace(result, measurements=tuple(m for m in result.measurements if m.metric not in metrics))


def with_latency(result, values, **changes):
    other = [m for m in result.measurements if m.metric != "latency_ms"]
    return replace(
        result, measurements=(replace(result.measured("latency_ms"), values=tuple(values), **changes), *other)
    )


def by_label(report):
    return {(row.result.device, row.label): row for row in report.rows}


def test_rows_are_grouped_by_model_and_device_in_the_order_they_were_made():
    report = model.build(samples.ladder()[::-1])
    # The three float32 rows were made at the same moment: ties stay as given.
    assert [group.device for group in report.groups] == ["qemu-pi", "local", "kitchen-pi"]
    pi = next(group for group in report.groups if group.device == "kitchen-pi")
    assert [row.label for row in pi.rows] == ["float32", "float16", "static int8", "int8 weights"]


def test_the_baseline_is_float32_of_the_same_device_and_ratios_follow_from_the_figures():
    before = with_latency(samples.result("float32", artifact_bytes=4000), [10.0] * 30)
    after = with_latency(samples.result("static_wi8_ai8", artifact_bytes=1000), [4.0] * 30)
    group = model.build([after, before]).groups[0]
    first, second = group.rows
    assert first.is_baseline
    assert first.comparison is None
    assert second.comparison.baseline == before.id
    assert (second.comparison.size_ratio, second.comparison.speedup) == (4.0, 2.5)
    assert second.comparison.metric_change == pytest.approx(-0.0028)


def test_float32_of_the_same_backend_is_the_nearer_baseline():
    rows = by_label(
        model.build(
            [
                samples.result("float32", id="1", backend="litert"),
                samples.result("float32", id="2", backend="openvino", seed=1),
                samples.result("static_wi8_ai8", id="3", backend="openvino"),
                samples.result("float16", id="4", backend="onnxruntime"),
            ]
        )
    )
    assert rows["kitchen-pi", "static int8, openvino"].comparison.baseline == "2"
    assert rows["kitchen-pi", "float16, onnxruntime"].comparison.baseline == "1"
    assert rows["kitchen-pi", "float32, openvino"].is_baseline


def test_the_unpruned_float32_is_the_baseline_of_the_pruned_one_and_both_have_their_own_label():
    results = [samples.result("float32", id="1", history=samples.PASSES), samples.result("float32", id="2", seed=1)]
    rows = model.build(results).rows
    assert [row.label for row in rows] == ["float32 (fold_batch_norm, prune_channels)", "float32"]
    assert rows[0].comparison.baseline == "2"


def test_a_row_tagged_before_is_the_baseline_of_all():
    results = [samples.result("float32", id="1"), samples.result("float16", id="2", tags=("before",))]
    rows = model.build([*results, samples.result("static_wi8_ai8", id="3")]).rows
    assert [row.comparison.baseline if row.comparison else None for row in rows] == ["2", None, "2"]


def test_rows_that_would_be_called_the_same_are_numbered():
    report = model.build([samples.result("float16", id=str(seed), seed=seed) for seed in range(2)])
    assert [row.label for row in report.rows] == ["float16 #1", "float16 #2"]


def test_emulated_rows_are_never_compared_with_hardware():
    hardware = samples.result("float32", id="1")
    emulated = samples.result("static_wi8_ai8", id="2", emulated=True)
    report = model.build([hardware, emulated])
    assert [group.emulated for group in report.groups] == [False, True]
    assert all(row.comparison is None for row in report.rows)
    assert report.rows[1].note == "not comparable: emulated"
    assert "emulated" in report.groups[1].title
    assert "is an emulator" in notes(report)[0]
    assert "not comparable" in " ".join(notes(report))


def test_latencies_at_different_thread_counts_are_not_compared_but_sizes_are():
    one, four = samples.result("float32"), samples.result("static_wi8_ai8")
    latency = four.measured("latency_ms")
    four = with_latency(four, latency.values, metadata=dict(latency.metadata) | {"threads": 4})
    row = model.build([one, four]).rows[1]
    assert row.comparison.speedup is None
    assert row.comparison.size_ratio > 3
    assert row.note == "not comparable: 4 threads against 1"


def test_a_single_row_has_no_comparison_and_says_what_it_is():
    group = model.build([samples.result("float16")]).groups[0]
    assert group.baseline is None
    assert not group.rows[0].is_baseline
    assert headline(group).startswith("float16: 9.38 MB, 63.")
    assert headline(group).endswith("median latency, top1 97.2 % → 97.2 % on 360 test examples")


def test_the_headline_says_in_plain_words_what_happened():
    group = model.build(samples.before_and_after()).groups[0]
    assert (
        headline(group) == "static int8 after fold_batch_norm, prune_channels: 3.6× smaller, 2.4× faster,"
        " top1 97.2 % → 96.9 % on 360 test examples"
    )


def test_the_headline_calls_slower_slower_and_same_the_same():
    before = with_latency(samples.result("float32", artifact_bytes=1000), [10.0] * 30)
    after = with_latency(samples.result("float16", artifact_bytes=1004), [21.0] * 30)
    assert headline(model.build([before, after]).groups[0]).startswith("float16: same size, 2.1× slower,")
    near = with_latency(after, [10.1] * 30)
    assert headline(model.build([before, near]).groups[0]).startswith("float16: same size, as fast,")


def test_the_story_is_of_the_row_in_use_and_of_the_one_tagged_after_before_it():
    results = samples.ladder()[:4]
    assert model.build(results).groups[0].featured.label == "static int8"
    results[1] = replace(results[1], tags=("after",))
    assert model.build(results).groups[0].featured.label == "float16"


def test_what_was_not_measured_is_a_dash_and_never_zero():
    bare = replace(samples.result(), measurements=(), accuracy=None, parity=())
    row = model.build([bare]).rows[0]
    shown = {column.name: column.cell(row) for column in (*SPEED, *ACCURACY)}
    assert {name for name, text in shown.items() if text != DASH} == {"Size", "Download"}


def test_values_that_are_no_numbers_are_dashes():
    broken = with_latency(samples.result(), [math.nan, math.inf])
    broken = replace(
        broken,
        accuracy=replace(
            broken.accuracy, device={"top1": math.nan}, standard_error=math.nan, agreement={"logits": math.nan}
        ),
        parity=(replace(broken.parity[0], snr_db=math.nan, cosine=math.nan, agreement=None),),
    )
    row = model.build([broken]).rows[0]
    for columns, name in (
        (SPEED, "Latency p50"),
        (SPEED, "Latency p99"),
        (ACCURACY, "On the device"),
        (ACCURACY, "Standard error"),
        (ACCURACY, "Agreement"),
        (ACCURACY, "Parity SNR"),
        (ACCURACY, "Parity cosine"),
        (ACCURACY, "Parity agreement"),
    ):
        assert cell(row, columns, name) == DASH, name


def test_a_summary_of_another_tool_has_a_middle_but_no_percentiles():
    summary = with_latency(samples.result(), [12.5], kind="summary")
    report = model.build([summary])
    row = report.rows[0]
    assert cell(row, SPEED, "Latency p50") == "12.5"
    assert cell(row, SPEED, "Latency p99") == DASH
    assert row.samples == ()
    assert "no percentiles" in notes(report)[0]


def test_figures_given_once_a_process_are_the_median_over_processes():
    result = samples.result()
    peak = replace(result.measured("peak_rss_mib"), values=(10.0, 90.0, 20.0))
    result = replace(result, measurements=(*without(result, "peak_rss_mib").measurements, peak))
    assert model.build([result]).rows[0].figure("peak_rss_mib") == 20.0


def test_the_output_that_is_furthest_off_stands_for_parity():
    result = samples.result()
    worse = replace(result.parity[0], output="boxes", snr_db=11.0)
    assert model.build([replace(result, parity=(result.parity[0], worse))]).rows[0].parity is worse


def test_equal_outputs_are_called_equal():
    result = samples.result()
    row = model.build([replace(result, parity=(replace(result.parity[0], snr_db=999.0),))]).rows[0]
    assert cell(row, ACCURACY, "Parity SNR") == "equal"


def test_a_metric_that_is_no_share_is_not_shown_in_percent():
    result = samples.result()
    error = replace(
        result.accuracy, metric="mae", source={"mae": 0.5}, host={}, device={"mae": 0.75}, standard_error=None
    )
    row = model.build([replace(result, accuracy=error)]).rows[0]
    assert cell(row, ACCURACY, "On the device") == "0.750"
    assert cell(row, ACCURACY, "On the host") == DASH


def test_the_careful_reader_is_told_of_noise_throttling_and_few_samples():
    result = samples.result()
    latency = result.measured("latency_ms")
    noisy = with_latency(
        result, [10.0, 10.1, 10.2, 60.0], conditions_after=dict(latency.conditions_after) | {"throttled": True}
    )
    text = " ".join(notes(model.build([noisy])))
    assert "throttled" in text
    assert "only 4 latency samples" in text
    assert "noisy latency" in text
    assert notes(model.build([result])) == []


def test_conditions_that_differ_between_rows_are_all_shown():
    group = model.build(samples.before_and_after()).groups[0]
    shown = conditions(group)
    assert shown["CPU"] == "Cortex-A72, 4 cores"
    assert shown["Temperature"] == "48.3 → 54.5 °C"
    assert shown["Throttled"] == "no"
    assert "Battery" not in shown
    other = samples.result("float16", transport="adb")
    assert (
        conditions(model.build([samples.result(), other]).groups[0])["Reached by"]
        == "ssh, runner agent; adb, runner agent"
    )


def test_nothing_to_report_is_an_error_with_a_way_out():
    with pytest.raises(ConfigError, match="no result"):
        model.build([])


def test_the_command_is_the_stored_one_and_else_the_one_given():
    assert model.build([samples.result()], "edgekit report").commands == (samples.result().command,)
    assert model.build([samples.result(command="")], "edgekit bench").commands == ("edgekit bench",)


def test_a_measurement_without_values_is_like_none():
    empty = Measurement("load_ms", "ms", "smaller", "samples", ())
    row = model.build([replace(samples.result(), measurements=(empty,))]).rows[0]
    assert row.figure("load_ms") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.inf, "–"), (0, "0"), (0.01234, "0.0123"), (2.5, "2.50"), (99.96, "100"), (1234.5, "1,234")],
)
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.81, "0.81×"), (1.0, "1.00×"), (3.56, "3.6×"), (None, "–"), (240.4, "240×")]
)
def test_ratios_are_written_as_times(ratio, text):
    assert times(ratio) == text
