"""The verbs that need no model: init, doctor, targets, devices, cache, report."""

from __future__ import annotations

import json
import os
import re

import pytest

from edgekit.core.target import builtin_folder
from edgekit.flow.store import Store
from tests.e2e.kit import PROJECT, write
from tests.unit.report.samples import result

FILES = {"devices.yaml", "edgekit.yaml", "model.py", "recipe.yaml", "shapes.py", "task.py"}


def test_init_writes_a_project_and_says_what_to_type_next(person):
    said = person.run("init", "my model").check().out
    assert {path.name for path in (person.cwd / "my model").iterdir()} == FILES
    assert "edgekit deploy --target linux-" in said
    assert "name: my-model " in (person.cwd / "my model" / "edgekit.yaml").read_text()
    assert not any("$" in path.read_text() for path in (person.cwd / "my model").iterdir())


def test_init_works_in_the_current_folder(person):
    assert set(person.run("init", "--json").check().json["files"]) == FILES
    assert (person.cwd / "edgekit.yaml").is_file()


def test_init_overwrites_nothing(person):
    write(person.cwd, {"mine/task.py": "precious\n"})
    error = person.run("init", "mine").check(2).err
    assert "'mine' already has task.py; nothing was written." in error
    assert [path.name for path in (person.cwd / "mine").iterdir()] == ["task.py"]
    assert (person.cwd / "mine" / "task.py").read_text() == "precious\n"


def test_init_into_a_file_is_refused(person):
    write(person.cwd, {"mine": "a file"})
    assert "'mine' is a file." in person.run("init", "mine").check(2).err


def test_a_projects_devices_and_targets_are_read(person):
    person.run("init").check()
    assert person.run("devices", "list", "--json").check().json["devices"] == []
    assert "this machine" in person.run("devices", "list").check().out.lower()


def test_the_doctor_knows_every_backend_transport_and_frontend(person):
    found = person.run("doctor", "--json").check().json
    names = {(check["kind"], check["name"]) for check in found["checks"]}
    assert {("backend", "litert: convert"), ("backend", "openvino: run here")} <= names
    assert {("transport", "local"), ("transport", "ssh")} <= names
    assert {("frontend", "onnx"), ("frontend", "torch_module")} <= names
    assert all(check["ok"] or check["mend"] for check in found["checks"])
    assert found["cache"] == str(person.cache)


def test_all_targets_are_listed_and_those_not_built_say_so(person):
    found = {target["name"]: target for target in person.run("targets", "--json").check().json["targets"]}
    assert found.keys() == {path.stem for path in builtin_folder().glob("*.yaml")}
    assert found["linux-x86"]["deployable"]
    assert found["linux-x86"]["missing"] == []
    rows: list[str] = []
    for line in person.run("targets").check().out.splitlines()[1:]:
        # Long cells go on in the lines below, which start with a blank.
        rows[-1:] = [rows[-1] + line] if line.startswith(" ") else [*rows[-1:], line]
    assert len(rows) == len(found)
    for target, row in zip(found.values(), rows, strict=True):
        assert row.startswith(f"{target['name']} ")
        assert ("not built" in row) == (not target["deployable"])
        assert all(part in row for part in " ".join(target["missing"]).split())
    assert found["iphone15"]["deployable"]


def test_one_target_is_explained(person):
    said = person.run("targets", "rpi4").check().out
    assert "BCM2711" in said
    assert "Cortex-A72" in said
    assert person.run("targets", "rpi4", "--json").check().json["cpu"]["arch"] == "aarch64"


def test_a_projects_targets_add_and_override(person):
    shipped = (builtin_folder() / "rpi4.yaml").read_text()
    write(person.cwd, PROJECT)
    (person.cwd / "targets").mkdir()
    (person.cwd / "targets" / "rpi4.yaml").write_text(re.sub(r"(?m)^summary: .*$", "summary: ours", shipped))
    (person.cwd / "targets" / "board.yaml").write_text(re.sub(r"(?m)^name: .*$", "name: board", shipped))
    deep = person.cwd / "some" / "folder"
    deep.mkdir(parents=True)
    found = {target["name"]: target for target in person.run("targets", "--json", cwd=deep).check().json["targets"]}
    assert found["rpi4"]["summary"] == "ours"
    assert found["board"]["soc"] == found["rpi4"]["soc"]


def test_this_machine_needs_no_entry_and_can_be_probed(person):
    assert person.run("devices", "show", "local", "--json").check().json["transport"] == "local"
    facts = person.run("devices", "probe", "local", "--json").check().json["facts"]
    assert facts["arch"] == os.uname().machine
    assert facts["cores"] == os.cpu_count()


def test_devices_are_listed_with_their_labels(person):
    write(
        person.cwd,
        {
            "edgekit.yaml": "schema_version: 1\n",
            "devices.yaml": """
                schema_version: 1
                devices:
                  my-pi: {target: rpi4, transport: ssh, address: pi@there, labels: {room: lab}}
                """,
        },
    )
    assert "room=lab" in person.run("devices", "list").check().out
    shown = person.run("devices", "show", "my-pi", "--json").check().json
    assert shown["address"] == "pi@there"
    assert shown["root"] == ".edgekit"


def test_the_cache_is_shown_and_cleared(person):
    entry = person.cache / "artifacts" / "abc"
    write(entry, {"model.bin": "x" * 1000})
    shown = person.run("cache", "show", "--json").check().json
    assert shown["path"] == str(person.cache)
    assert [kind["kind"] for kind in shown["kinds"]] == ["artifacts"]
    assert person.run("cache", "clear", "--older-than", "1", "--json").check().json == {
        "schema_version": 1,
        "freed_bytes": 0,
    }
    assert person.run("cache", "clear", "--json").check().json["freed_bytes"] == shown["bytes"] > 0
    assert not entry.exists()
    assert person.run("cache", "show", "--json").check().json["bytes"] == 0


def test_an_empty_cache_is_no_error(person):
    assert person.run("cache", "show").check().out
    assert person.run("cache", "clear").check().out.startswith("0 B freed")


@pytest.fixture
def stored(person):
    """Two runs in the project's store."""
    write(person.cwd, PROJECT)
    runs = ["20261101T100000-aaaaaa", "20261102T100000-bbbbbb"]
    with Store.open(person.cwd / ".edgekit" / "results.sqlite") as store:
        for number, run in enumerate(runs):
            store.add(result(id=f"r{number}", run=run, created=f"2026-11-0{number + 1}T10:00:00+00:00"))
    return runs


def test_the_latest_run_is_reported_and_any_earlier_by_its_first_characters(person, stored):
    assert person.run("report", "--json").check().json["runs"] == [stored[1]]
    assert person.run("report", "20261101", "--json").check().json["runs"] == [stored[0]]
    assert person.run("report", *stored, "--json").check().json["runs"] == stored
    assert person.run("report").check().out


def test_runs_are_listed_the_latest_first(person, stored):
    listed = person.run("report", "--list", "--json").check().json["runs"]
    assert [run["run"] for run in listed] == stored[::-1]
    assert stored[0] in person.run("report", "--list").check().out


def test_an_unknown_run_is_named(person, stored):
    assert "2027" in person.run("report", "2027").check(2).err


def test_a_run_becomes_html_and_markdown(person, stored):
    done = person.run("report", stored[0], "--html", "out/r.html", "--markdown", "out/r.md", "--json").check()
    page = (person.cwd / "out" / "r.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?(https?:)?//", page)
    assert (person.cwd / "out" / "r.md").read_text().startswith("#")
    assert json.loads(done.out)["runs"] == [stored[0]]
    assert "out/r.html" in done.err


def test_without_plotly_the_page_is_refused_and_the_rest_still_works(person, stored):
    blocked = person.without("plotly", "jinja2")
    error = person.run("report", "--html", "r.html", **blocked).check(2).err
    assert "pip install 'edgekit[report]'" in error
    assert not (person.cwd / "r.html").exists()
    person.run("report", "--markdown", "r.md", **blocked).check()
