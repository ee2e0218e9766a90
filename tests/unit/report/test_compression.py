"""A compression shown: what is in the table, in the document, and on the page."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgekit.core.model import PassRecord
from edgekit.flow.cost import Timing, Timings
from edgekit.flow.pipeline import SOURCE, Compressed, Stage
from edgekit.flow.state import ModelInfo, ModelState
from edgekit.report import compression, paths
from edgekit.report.compression import Shown
from tests.unit.report import samples
from tests.unit.report.test_html import Page, figures, own


def record(name, macs, size, metric, **changes):
    made = PassRecord(
        name,
        metrics_before={"top1": 0.9},
        metrics_after={"top1": metric},
        parameters_before=1000,
        parameters_after=size // 4,
        macs_before=50_000,
        macs_after=macs,
        weight_bytes_before=4000,
        weight_bytes_after=size,
        seconds=2.5,
        notes=("done",),
    )
    return replace(made, **changes)


def shown(*records, **changes):
    def state(digest):
        return ModelState(ModelInfo(digest, "pt2", (), (), 1000, history=records), lambda: None)

    stages = (
        Stage(SOURCE, state("0")),
        *(Stage(r.name, state(str(place)), r) for place, r in enumerate(records, 1)),
    )
    timings = Timings(tuple(Timing(1 / (n + 1), 1 / (n + 1)) for n in range(len(stages))), Timing(1.02, 1.02), 20)
    made = Shown(
        samples.HOSTILE,
        Compressed(stages[-1].state, stages),
        timings,
        "top1",
        "larger",
        400,
        ({"top1": 0.89}, {"top1": 0.88}),
        500,
    )
    return replace(made, **changes)


PRUNED = record("prune_channels", 10_000, 1000, 0.89)
UNDONE = record("prune_magnitude", 10_000, 1000, 0.2, zeros_after=225).undone()


def test_the_table_has_the_source_then_each_pass():
    columns, rows = compression.table(shown(PRUNED, UNDONE))
    assert columns == [
        *("pass", "changed", "parameters", "zeros", "MACs", "size", "top1 (validation)", "latency", "time", "notes")
    ]
    assert rows[0] == [SOURCE, "", "1,000", "0.0 %", "50,000", "4 kB", "0.9 ± 0.015", "1.00×", "", ""]
    assert rows[1][:6] == ["1 prune_channels", "yes", "250", "0.0 %", "10,000", "1 kB"]
    assert rows[2][:4] == ["2 prune_magnitude", "rolled back", "250", "90.0 %"]
    assert rows[1][7:] == ["0.50×", "2.5 s", "done"]
    assert "zeros" not in compression.table(shown(PRUNED))[0]


def test_what_is_said_of_the_whole_leaves_out_what_was_rolled_back():
    assert compression.headline(shown(PRUNED, UNDONE)) == (
        "4.0× smaller and 5.0× fewer MACs; top1 0.9 → 0.89 on 400 validation examples."
    )
    assert compression.headline(shown(UNDONE)).startswith("Neither smaller nor with fewer MACs; top1 0.9 → 0.9 ")


def test_the_test_split_and_the_noise_are_told_below_the_table():
    said = "\n".join(compression.lines(shown(PRUNED)))
    assert "test split (500 examples, only reported): top1 0.89 ± 0.014 → 0.88 ± 0.015" in said
    assert "torch on this host, one thread, processor time; the device's own numbers come from deploy" in said
    assert "the source timed a second time: 1.02×" in said


def test_files_of_a_target_have_their_size_and_what_the_lowering_makes_of_them():
    timings = Timings(
        (Timing(2, 1, 4000), Timing(1, 0.5, 2000)),
        Timing(2.1, 1.05, 4000),
        3,
        "litert 2 on this host, float32",
        Timing(1, 0.25, 1000),
    )
    made = shown(PRUNED, timings=timings)
    columns, rows = compression.table(made)
    assert [row[columns.index("file")] for row in rows] == ["4 kB", "2 kB"]
    said = "\n".join(compression.lines(made))
    assert "latency: litert 2 on this host, float32; the source timed a second time: 1.05×" in said
    assert "lowered as the recipe says: 0.25× the source's latency; 1 kB, 4.0× smaller" in said
    assert compression.document(made)["latency"]["lowered"]["file_bytes"] == 1000


def test_the_document_is_json_with_every_stage():
    document = json.loads(json.dumps(compression.document(shown(PRUNED, UNDONE))))
    assert [(s["name"], s["kept"], s["changed"]) for s in document["stages"]] == [
        (SOURCE, True, False),
        ("prune_channels", True, True),
        ("prune_magnitude", False, True),
    ]
    assert document["stages"][2]["zeros"] == 225
    assert document["latency"]["again"]["ratio"] == 1.02
    assert document["test"] == {"source": {"top1": 0.89}, "result": {"top1": 0.88}, "examples": 500}
    bare = compression.document(shown(PRUNED, timings=None, metric="", test=({}, {})))
    assert (bare["latency"], bare["test"], bare["metric"]) == (None, None, None)


@pytest.mark.parametrize("task", [True, False])
def test_the_page_needs_nothing_else_and_is_well_formed(tmp_path, task):
    given = shown(PRUNED, UNDONE) if task else shown(PRUNED, metric="", test=({}, {}), timings=None)
    compression.write_html(given, tmp_path / "page.html")
    text = own((tmp_path / "page.html").read_text())
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")
    page = Page(text)
    assert page.open == []
    assert samples.HOSTILE in "".join(page.text)
    assert len(figures((tmp_path / "page.html").read_text())) == (2 if task else 0)


def test_a_point_that_was_given_up_is_hollow_and_does_not_flatten_the_rest():
    kept = [paths.Point("source", "0", 4.0, 0.9, 0.01), paths.Point("1 prune", "1", 1.0, 0.89, 0.01)]
    made = paths.path("t", "x", "y", [*kept, paths.Point("2 spoil", "2", 0.5, 0.1, 0.01, kept=False)])
    line, *points = made.figure["data"]
    low, high = made.figure["layout"]["yaxis"]["range"]
    assert line["x"] == [4.0, 1.0]
    assert 0.8 < low < 0.88
    assert 0.91 < high < 1
    assert points[2]["marker"]["symbol"] == "triangle-down-open"
    assert points[2]["y"] == [low]
    assert "2 spoil: 0.500, 0.1, rolled back" in made.summary


def test_points_on_top_of_one_another_share_a_mark():
    points = [paths.Point(str(n), str(n), x, 0.9) for n, x in enumerate((4.0, 4.0, 1.0))]
    texts = [text for trace in paths.path("t", "x", "y", points).figure["data"] for text in trace.get("text", [])]
    assert texts == ["0, 1", "2"]
