from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from edgekit.report import json as json_report
from edgekit.report import markdown, model, terminal
from tests.unit.report import samples

BARE = replace(samples.result(), measurements=(), accuracy=None, parity=(), conversion=None, history=())
EMULATED = [samples.result(p, device="qemu-pi", emulated=True) for p in ("float32", "static_wi8_ai8")]
CASES = {
    "two rows": samples.before_and_after(),
    "everything": samples.ladder(),
    "one row": [samples.result()],
    "nothing measured": [BARE],
    "no accuracy": [replace(r, accuracy=None) for r in samples.before_and_after()],
    "no latency": [replace(r, measurements=()) for r in samples.before_and_after()],
    "emulated": EMULATED,
    "hostile": samples.before_and_after(model=samples.HOSTILE, device=samples.HOSTILE, command=samples.HOSTILE),
    "not a number": [
        replace(r, measurements=(replace(r.measurements[0], values=(float("nan"),)),))
        for r in samples.before_and_after()
    ],
}
FIELDS = [
    "latency_ms",
    "first_inference_ms",
    "load_ms",
    "init_ms",
    "warmup_ms",
    "samples_ms",
    "throughput_ips",
    "peak_rss_mib",
    "peak_pss_mib",
    "runtime_baseline_mib",
    "model_delta_mib",
    "artifact_bytes",
    "download_bytes",
    "accuracy",
    "conditions",
    "emulated",
]
CONDITIONS = [
    "cpu_model",
    "cores",
    "governor",
    "freq_mhz_before",
    "freq_mhz_after",
    "temp_c_before",
    "temp_c_after",
    "throttled",
    "moved",
    "other_cores",
    "ram_available_mib",
    "swap_used_mib",
    "memory_pressure_pct",
    "battery_pct",
    "os",
    "kernel",
    "runtime",
    "runtime_version",
    "threads",
    "delegate",
    "xnnpack_applied",
    "emulated",
]


def printed(results, width=100, **options) -> str:
    stream = io.StringIO()
    terminal.render(model.build(results), Console(file=stream, width=width, **options))
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("case", CASES)
def test_a_terminal_gets_no_line_wider_than_it_is(case, width):
    assert max(len(line) for line in printed(CASES[case], width).splitlines()) <= width


@pytest.mark.parametrize("width", [80, 100])
def test_no_figure_is_cut_off_in_a_terminal_of_usual_width(width):
    text = printed(samples.ladder(), width)
    assert "…" not in text
    for figure in ("18.6 MB", "static int8", "3.6×", "2.4×", "± 0.9 pt", "0.999999", "99.3 %"):
        assert figure in text


def test_piped_output_has_no_colour_codes_and_a_terminal_has():
    assert "\x1b[" not in printed(samples.ladder())
    assert "\x1b[" in printed(samples.ladder(), force_terminal=True, color_system="truecolor")


def test_a_terminal_labels_emulated_groups_and_keeps_markup_as_text():
    assert "emulated" in printed(EMULATED).splitlines()[1]
    assert "[bold]x[/bold]" in printed([samples.result(model="[bold]x[/bold]")])


def test_the_terminal_shows_no_table_of_accuracy_without_a_task():
    assert "Accuracy" not in printed([BARE])
    assert "Parity with the source model" in printed(CASES["no accuracy"])


@pytest.mark.parametrize("case", CASES)
def test_json_is_strict_and_has_a_result_for_each_row(case):
    text = json_report.render(model.build(CASES[case]))

    def refuse(name):
        raise AssertionError(name)

    document = json.loads(text, parse_constant=refuse)
    assert [result["id"] for result in document["results"]] == [r.id for r in sorted_by_group(CASES[case])]
    assert document["kind"] == "report"
    assert document["runs"] == [samples.result().run]


def sorted_by_group(results):
    return [row.result for row in model.build(results).rows]


def test_json_uses_the_names_of_the_result_fields():
    result = json_report.document(model.build(samples.before_and_after()))["results"][0]
    assert [name for name in FIELDS if name not in result] == []
    assert list(result["latency_ms"]) == ["min", "mean", "p50", "p90", "p95", "p99", "max", "std", "cv"]
    assert sorted(result["conditions"]) == sorted(CONDITIONS)
    assert result["samples_ms"] == list(samples.before_and_after()[0].measured("latency_ms").values)


def test_json_gives_the_comparison_and_the_headline():
    before, after = samples.before_and_after()
    document = json_report.document(model.build([before, after]))
    (comparison,) = document["comparisons"]
    assert (comparison["id"], comparison["baseline"]) == (after.id, before.id)
    assert comparison["size_ratio"] == before.artifact_bytes / after.artifact_bytes
    assert document["groups"][0]["headline"].startswith("static int8")
    assert document["commands"] == [before.command]


@pytest.mark.parametrize("case", CASES)
def test_every_line_of_a_markdown_table_has_as_many_cells_as_its_head(case):
    found = 0
    for block in re.split(r"\n\n", markdown.render(model.build(CASES[case]))):
        if block.startswith("|"):
            lines = block.splitlines()
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
            assert len(counts) == 1, block
            assert re.fullmatch(r"\|( :-- \|| --: \|)+", lines[1])
            assert len(lines) == 2 + len(CASES[case])
            found += 1
    assert found == 2


def test_markdown_shows_hostile_text_as_text():
    outside = re.sub(r"```.*?```", "", markdown.render(model.build(CASES["hostile"])), flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside)
    assert "模型" in outside
    assert markdown.escape("a|b\nc*_`") == r"a\|b c\*\_\`"


def test_a_command_with_backticks_stays_in_its_block():
    text = markdown.render(model.build([samples.result(command="echo ```` x")]))
    assert "`````\necho ```` x\n`````" in text
