from __future__ import annotations

import pytest

from edgekit.core.errors import ConfigError
from edgekit.flow.project import Overrides, find_root, load_project
from tests.unit.flow import kit

FULL = """
    schema_version: 1
    name: digits
    source: model.py:build
    inputs:
      - {name: image, shape: [1, 1, 8, 8]}
    task: task.py:Digits
    targets: [linux-x86, rpi4]
    """


def project_in(folder, text=FULL):
    return kit.write(folder, {"edgekit.yaml": text})


def test_a_flag_beats_the_environment_and_the_environment_beats_the_file(tmp_path):
    project_in(tmp_path)
    environ = {"EDGEKIT_NAME": "from-environment", "EDGEKIT_TARGETS": "pixel8, web"}
    assert load_project(tmp_path, environ={}).name == "digits"
    assert load_project(tmp_path, environ=environ).name == "from-environment"
    assert load_project(tmp_path, environ=environ).targets == ("pixel8", "web")
    said = Overrides(name="from-flag", targets=("rpi5",))
    assert load_project(tmp_path, said, environ).name == "from-flag"
    assert load_project(tmp_path, said, environ).targets == ("rpi5",)


def test_the_project_is_found_from_a_folder_below_it(tmp_path):
    project_in(tmp_path)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_root(below) == tmp_path
    assert load_project(below, environ={}).root == tmp_path


@pytest.mark.parametrize("source", ["other.py:make", "model.py:smaller", "net.onnx"])
def test_a_source_of_ones_own_drops_what_the_file_says_of_another(tmp_path, source):
    project_in(tmp_path)
    project = load_project(tmp_path, Overrides(source=source), {})
    assert (project.inputs, project.task) == ((), None)
    assert project.name == source.partition(".")[0]
    assert project.targets == ("linux-x86", "rpi4")


@pytest.mark.parametrize("source", ["../model.py:build", "./../model.py:build", "{root}/model.py:build"])
def test_the_files_own_source_in_other_words_keeps_what_the_file_says(tmp_path, source):
    project_in(tmp_path)
    below = tmp_path / "below"
    below.mkdir()
    project = load_project(below, Overrides(source=source.format(root=tmp_path)), {})
    assert project.task == "task.py:Digits"
    assert [declared.name for declared in project.inputs] == ["image"]


def test_a_file_without_a_source_is_about_the_one_that_is_given(tmp_path):
    project_in(tmp_path, "schema_version: 1\ntask: task.py:Digits\n")
    assert load_project(tmp_path, Overrides(source="net.onnx"), {}).task == "task.py:Digits"


def test_a_source_on_the_command_line_is_relative_to_the_current_folder(tmp_path):
    project_in(tmp_path)
    below = tmp_path / "below"
    below.mkdir()
    assert load_project(below, Overrides(source="net.pt2"), {}).source == str(below / "net.pt2")
    assert load_project(below, Overrides(task="task.py:Other"), {}).task == f"{below / 'task.py'}:Other"


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_key(tmp_path):
    project_in(tmp_path, "schema_version: 1\nsource: model.py:build\ntarget: [rpi4]\n")
    with pytest.raises(ConfigError) as caught:
        load_project(tmp_path, environ={})
    assert "edgekit.yaml:3" in caught.value.message
    assert "'target'" in caught.value.message
    assert "targets" in caught.value.message


def test_an_unknown_key_of_an_input_is_named_with_its_line(tmp_path):
    project_in(tmp_path, "schema_version: 1\nsource: m.py:b\ninputs:\n  - name: x\n    shap: [1]\n")
    with pytest.raises(ConfigError, match=r"edgekit\.yaml:5.*shap"):
        load_project(tmp_path, environ={})


def test_without_a_file_and_without_a_source_the_next_command_is_told(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_project(tmp_path, environ={})
    assert "edgekit init" in caught.value.hint


@pytest.mark.parametrize("name", ["-x", "a b", "../up", "ü", "n" * 65])
def test_a_name_that_no_device_could_take_is_refused(tmp_path, name):
    project_in(tmp_path)
    with pytest.raises(ConfigError, match="cannot be used on devices"):
        load_project(tmp_path, Overrides(name=name), {})


def test_a_bad_name_in_the_file_is_named_with_its_line(tmp_path):
    project_in(tmp_path, "schema_version: 1\nsource: m.py:b\nname: a b\n")
    with pytest.raises(ConfigError, match=r"edgekit\.yaml:3"):
        load_project(tmp_path, environ={})


@pytest.mark.parametrize(
    "source, name", [("my net (2).onnx", "my-net-2"), ("__.py:f", "model"), ("net.v2.pt2", "net.v2")]
)
def test_a_name_is_made_from_the_sources_file(tmp_path, source, name):
    assert load_project(tmp_path, Overrides(source=source), {}).name == name


def test_a_recipe_inside_the_file_is_checked_at_its_line(tmp_path):
    text = "schema_version: 1\nsource: m.py:b\nrecipe:\n  passes:\n    - fold_batch_nrom: {}\n"
    project_in(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_project(tmp_path, environ={})
    assert "edgekit.yaml:5" in caught.value.message
    assert "fold_batch_norm" in caught.value.message


def test_a_recipe_on_the_command_line_takes_the_place_of_the_files(tmp_path):
    project_in(tmp_path, "schema_version: 1\nsource: m.py:b\nrecipe: {passes: [{fold_batch_norm: {}}]}\n")
    (tmp_path / "other.yaml").write_text("schema_version: 1\nlowering: {quantize: {scheme: float16}}\n")
    assert [step.name for step in load_project(tmp_path, environ={}).recipe.passes] == ["fold_batch_norm"]
    other = load_project(tmp_path, Overrides(recipe="other.yaml"), {}).recipe
    assert (other.passes, other.lowering.precision) == ((), "float16")


def test_without_a_recipe_the_targets_own_is_used(tmp_path):
    project = load_project(tmp_path, Overrides(source="m.py:b"), {})
    assert project.recipe_for(kit.intel()).passes == ()
