from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgekit.core.errors import MissingExtraError
from edgekit.report import charts, html, model
from tests.unit.report import samples
from tests.unit.report.test_renderers import CASES, EMULATED

ROOT = Path(__file__).parents[3]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: elements, attributes, and that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        # These may be left unclosed, but then the page would not be what we meant.
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def pages():
    return {name: html.render(model.build(results)) for name, results in CASES.items()}


def own(page: str) -> str:
    """The page without plotly's own source, which names its licence's and its makers' addresses."""
    assert charts.plotly_source() in page
    return page.replace(charts.plotly_source(), "")


def figures(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize("case", CASES)
def test_the_page_refers_to_nothing_outside_itself(pages, case):
    text = own(pages[case])
    for forbidden in (
        "http://",
        "https://",
        "url(",
        "@import",
        "fetch(",
        "import(",
        "XMLHttpRequest",
        "<link",
        "<iframe",
    ):
        assert forbidden not in text, forbidden
    page = Page(text)
    references = [(n, v) for _, n, v in page.attributes if n in ("src", "href", "action", "srcset", "data", "poster")]
    assert all(name == "href" and value.startswith("#group-") for name, value in references)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_well_formed_and_its_references_to_itself_lead_somewhere(pages, case):
    page = Page(own(pages[case]))
    assert page.open == []
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in page.attributes:
        if name in ("aria-labelledby", "aria-describedby"):
            assert value in ids
        if name == "href":
            assert value.removeprefix("#") in ids
    assert set(figures(pages[case])) <= set(ids)


def test_hostile_names_are_shown_and_never_run(pages):
    text = own(pages["hostile"])
    page = Page(text)
    assert page.tags.count("script") == Page(own(pages["two rows"])).tags.count("script")
    assert "alert" not in "".join(re.findall(r"<script>(.*?)</script>", text, re.DOTALL))
    assert samples.HOSTILE in "".join(page.text)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


def test_plotly_gets_labels_as_text_not_as_its_own_markup():
    hostile = replace(samples.result("float16"), precision="<a href='x'>%{y}</a>")
    chart = charts.bars(
        model.build([samples.result(), hostile]).groups[0], charts.colours(model.build([samples.result(), hostile]))
    )[0]
    assert "<" not in json.dumps(chart.figure["data"])


def test_every_figure_of_the_report_is_in_a_table(pages):
    text = "".join(Page(own(pages["everything"])).text)
    for figure in (
        "18.6 MB",
        "static int8",
        "± 0.9 pt",
        "360 test",
        "1,310,880",
        "97.5 % → 96.7 %",
        "ai-edge-litert 2.3.0",
    ):
        assert figure in text
    assert samples.result().command in text
    assert "What the figures mean" in text


def test_tables_have_captions_and_scoped_heads(pages):
    page = Page(own(pages["two rows"]))
    assert page.tags.count("caption") == page.tags.count("table") == 4
    assert page.tags.count("th") == sum(tag == "th" and name == "scope" for tag, name, _ in page.attributes)


def test_the_plots_hold_the_samples_themselves(pages):
    plots = figures(pages["two rows"])
    boxes = [trace for plot in plots.values() for trace in plot["data"] if trace["type"] == "box"]
    assert sorted(len(trace["x"]) for trace in boxes) == [180, 180]
    assert len(plots) == 6


def test_a_page_without_figures_says_so_with_dashes_and_has_no_empty_plots(pages):
    assert [plot["data"][0]["type"] for plot in figures(pages["nothing measured"]).values()] == ["bar"]
    assert "–" in Page(own(pages["nothing measured"])).text


def test_a_figure_that_one_row_lacks_is_called_not_measured():
    results = [samples.result(), replace(samples.result("float16"), measurements=())]
    report = model.build(results)
    latency = next(c for c in charts.bars(report.groups[0], charts.colours(report)) if c.title == "Median latency")
    assert latency.figure["data"][0]["text"][1] == "not measured"


def test_emulated_is_said_in_the_head_the_tables_and_the_plots(pages):
    text = own(pages["emulated"])
    assert text.count('<span class="badge">emulated</span>') >= 3
    assert "is an emulator" in text
    report = model.build(EMULATED)
    titles = [chart.title for chart in charts.bars(report.groups[0], charts.colours(report))]
    assert [title for title in titles if "emulated" in title] == [
        "Median latency, emulated",
        "Peak RAM, emulated (pale: the runtime’s own)",
    ]


def test_each_label_has_one_colour_and_the_baseline_is_grey():
    report = model.build(samples.ladder())
    palette = charts.colours(report)
    assert palette["float32"] == charts.BASELINE
    assert len(set(palette.values())) == len(palette) == 4


def test_rendering_twice_gives_the_same_page(pages):
    assert html.render(model.build(CASES["everything"])) == pages["everything"]


def test_a_missing_extra_is_told_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match="The HTML report needs") as caught:
        html.render(model.build([samples.result()]))
    assert caught.value.hint == "pip install 'edgekit[report]'"


def test_terminal_json_and_markdown_need_neither_plotly_nor_jinja():
    program = """
import sys
from tests.unit.report import samples
from edgekit.report import json, markdown, model, terminal
report = model.build(samples.ladder())
json.render(report), markdown.render(report), terminal.renderables(report, 100)
print([name for name in ("plotly", "jinja2", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_a_browser_draws_every_plot_from_the_file_alone(tmp_path):
    path = tmp_path / "report.html"
    html.write(model.build(samples.ladder()), path)
    argv = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    argv += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    argv += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=True)
    drawn = re.findall(r'class="plot[^"]*js-plotly-plot[^"]*" id="(chart-[\d-]+)"', done.stdout)
    assert sorted(drawn) == sorted(figures(path.read_text(encoding="utf-8")))
    assert done.stdout.count('class="main-svg"') >= len(drawn)
