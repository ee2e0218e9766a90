"""`edgekit sensitivity`, and the ladder on the command line."""

from __future__ import annotations

import pytest
import yaml

from tests.e2e.kit import DATA, PROJECT, write

AUTO = """
    schema_version: 1
    lowering: {quantize: {scheme: auto}}
    budget: {max_drop: %s, metric: top1}
    """


@pytest.fixture
def project(person):
    return write(person.cwd, PROJECT)


@pytest.mark.slow
def test_layers_are_listed_with_what_they_cost_and_mixed_precision_is_chosen(person, project):
    page = person.cwd / "page.html"
    options = ("--precisions", "static_wi8_ai8,palette_1", "--max-drop", "0.05", "--html", page)
    found = person.run("sensitivity", *options, "--json").check().json
    assert (found["judged_on"], found["examples"], found["metric"]) == ("validation", 60, "top1")
    assert {(e["layer"], e["precision"]) for e in found["effects"]} == {
        (layer, precision) for layer in ("conv", "head") for precision in ("static_wi8_ai8", "palette_1")
    }
    assert found["overrides"].keys() == {"conv", "head"}
    shown = page.read_text()
    assert "palette_1" in shown
    assert "https://" not in shown.replace("https://plotly", "").partition("<script>")[0]
    told = person.run("sensitivity", *options[:2], "--max-bytes", "400").check().out
    recipe = yaml.safe_load(told[told.index("lowering:") :])
    assert recipe["lowering"].keys() <= {"quantize", "overrides"}
    rows = [line.split()[0] for line in told.splitlines() if line.startswith(("conv", "head"))]
    assert sorted(rows) == ["conv", "head"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-drop", "0.1", "--max-bytes", "100"), "not by both"),
        (("--split", "test"), "only ever reported"),
        (("--precisions", "int8"), "no precision of a single layer 'int8'"),
    ],
)
def test_a_wrong_request_ends_with_2(person, project, options, said):
    assert said in person.run("sensitivity", *options).check(2).err


@pytest.mark.slow
def test_the_ladder_is_shown_and_its_smallest_rung_compiled(person, project):
    write(project, {"recipe.yaml": AUTO % "0.2"})
    found = person.run("compile", "--target", "intel-cpu", "--json").check().json["artifacts"][0]
    rungs = {rung["name"]: rung for rung in found["ladder"]["rungs"]}
    assert {"float32", "float16", "static_wi8_ai8", "weight_only_wi8_afp32"} <= rungs.keys()
    kept = rungs[found["ladder"]["kept"]]
    assert kept["digest"] == found["digest"]
    assert kept["artifact_bytes"] == min(
        rung["artifact_bytes"] for name, rung in rungs.items() if rung["inside"] and name != "float32"
    )
    assert found["lowering"]["quantize"]["scheme"] != "auto"
    splits = {accuracy["split"]: accuracy for accuracy in found["accuracy"]}
    assert splits.keys() == {"validation", "test"}
    assert all(accuracy["host_standard_error"] > 0 for accuracy in splits.values())
    assert all(accuracy["host_agreement"]["scores"] > 0.5 for accuracy in splits.values())
    # A budget that nothing meets: the best is shown, and the answer is no. Every rung is there already.
    write(project, {"recipe.yaml": AUTO % "-0.5"})
    done = person.run("compile", "--target", "intel-cpu").check(1)
    assert "Ladder: judged by top1 on the validation split" in done.out
    assert "No rung of the ladder is inside the budget" in done.err
    assert "The best is " in done.err
    refused = person.run("compile", "--target", "intel-cpu", "--json").check(1).json
    assert refused["ladder"]["kept"] is None
    assert refused["exit_code"] == 1


@pytest.mark.slow
def test_finalists_are_measured_on_the_device_and_one_is_released(person, project):
    write(project, {"recipe.yaml": AUTO % "0.2"})
    quick = ("--processes", "1", "--min-seconds", "0.02", "--min-runs", "5")
    done = person.run("deploy", "--target", "intel-cpu", "--device", "local", *quick, "--json").check()
    (result,) = done.json["results"]
    rungs = {rung["name"]: rung for rung in done.json["ladders"][0]["rungs"]}
    assert result["released"]
    assert result["artifact_digest"] in {rung["digest"] for rung in rungs.values() if rung["inside"]}
    assert done.err.count("local: ") >= 2
    assert done.err.count(", kept") == 1


BAD = {
    "not finite": ("images[17, 0, 2, 3] = np.nan", ["'image'", "not finite", "example 17"]),
    "all the same": ("images[:] = 1.5", ["all the same", "'image' is 1.5"]),
    "empty": ("images = images[:0]", ["calibration split is empty"]),
    "of another shape": ("images = images[:, :, :5]", ["'image' the shape (N, 1, 5, 6)", "(N, 1, 6, 6)"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD)
def test_calibration_examples_that_set_no_range_are_named(person, project, what):
    line, said = BAD[what]
    data = DATA.replace("    return images", f'    if split == "calibration":\n        {line}\n    return images')
    static = "schema_version: 1\nlowering: {quantize: {scheme: static_wi8_ai8}}\n"
    write(project, {"data.py": data, "recipe.yaml": static})
    error = person.run("compile").check(2).err
    assert [part for part in said if part not in error] == [], error
    assert not (person.cwd / "build").exists()


@pytest.mark.slow
def test_an_override_that_fits_no_layer_ends_with_2_before_any_conversion(person, project):
    text = "schema_version: 1\nlowering: {quantize: {scheme: float16}, overrides: {haed: float32}}\n"
    write(project, {"recipe.yaml": text})
    error = person.run("compile", "--backend", "litert").check(2).err
    assert "'haed' fits no layer with weights. Did you mean 'head'?" in error
    assert not list((person.cache / "artifacts").glob("*"))


def test_an_override_with_an_unknown_scheme_is_named_with_its_line(person, project):
    write(project, {"recipe.yaml": "schema_version: 1\nlowering:\n  overrides:\n    head: float23\n"})
    error = person.run("compile").check(2).err
    assert "recipe.yaml:4" in error
    assert "Did you mean 'float32'?" in error
