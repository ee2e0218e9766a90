from __future__ import annotations

import numpy as np
import pytest

from edgekit.core.errors import ConfigError
from edgekit.core.model import TensorSpec
from edgekit.flow.cache import Cache
from edgekit.flow.data import load_data
from tests.unit.flow import kit

HEAD = """
import numpy as np
class T:
    metric = "accuracy"
    direction = "larger"
"""
SCORE = """
    def score(self, outputs, split):
        return {"accuracy": 1.0}
"""


def data_of(folder, body, name="T", heard=None):
    kit.write(folder, {"task.py": body})
    return load_data(f"{folder / 'task.py'}:{name}", Cache(), heard or kit.Heard())


def data_yielding(folder, *batches):
    """A task whose validation split yields these expressions."""
    lines = "".join(f"            yield {batch}\n" for batch in batches)
    examples = (
        f"    def examples(self, split):\n        if split == 'validation':\n{lines or '            yield from ()'}\n"
    )
    return data_of(folder, HEAD + examples + SCORE)


def test_splits_are_written_once_and_described(tmp_path, heard):
    data = data_of(tmp_path, kit.TASK, "Digits", heard)
    assert (data.metric, data.direction) == ("accuracy", "larger")
    assert (data.split("validation").examples, data.split("validation").batch_sizes) == (7, (4, 3))
    assert data.split("train") is None
    assert np.load(data.inputs("test")["input"]).shape == (5, 1, 8, 8)
    again = kit.Heard()
    assert data_of(tmp_path, kit.TASK, "Digits", again).folder == data.folder
    assert (heard.count("reading"), again.count("reading")) == (1, 0)


def test_another_class_of_the_same_file_has_data_of_its_own(tmp_path):
    body = kit.TASK + "\n    class Others(Digits):\n        sizes = {'test': (2,)}\n"
    assert data_of(tmp_path, body, "Digits").split("test").examples == 5
    assert data_of(tmp_path, body, "Others").split("test").examples == 2


@pytest.mark.parametrize(
    "batches, said",
    [
        (["[1, 2]"], "yields a list"),
        (["{}"], "yields a dict"),
        (["{'x': np.zeros((2, 3))}", "{'y': np.zeros((2, 3))}"], "different inputs"),
        (["{'x': np.zeros((2, 3)), 'y': np.zeros((3, 3))}"], "different lengths"),
        (["{'x': np.zeros((2, 3))}", "{'x': np.zeros((2, 4))}"], "different shapes or types: (3,), (4,)"),
        (["{'x': np.zeros((2, 3), 'f4')}", "{'x': np.zeros((2, 3), 'f8')}"], "types: float32, float64"),
        (["{'x': np.array([np.nan, 1.0])}"], "not finite"),
        (["{'x': np.array([np.inf, 1.0], 'f2')}"], "not finite"),
        (["{'x': np.array([object(), lambda: 1])}"], "not an array with a batch axis"),
        (["{'x': np.float32(1)}"], "not an array with a batch axis"),
        (["{'x': [[1], [1, 2]]}"], "ValueError"),
        (["{'../x': np.zeros(2)}"], "'../x' cannot be the name of an input"),
        (["{3: np.zeros(2)}"], "3 cannot be the name of an input"),
        (["{'': np.zeros(2)}"], "'' cannot be the name of an input"),
        (["{'x': 1 / 0}"], "task.py:7: ZeroDivisionError"),
    ],
)
def test_examples_that_are_no_batches_are_refused(tmp_path, batches, said):
    with pytest.raises(ConfigError) as caught:
        data_yielding(tmp_path, *batches)
    assert said in caught.value.message
    assert "task.py:T.examples('validation')" in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("batches", [[], ["{'x': np.zeros((0, 3), 'f4')}"]])
def test_a_split_without_examples_is_none(tmp_path, batches):
    assert data_yielding(tmp_path, *batches).split("validation") is None


def test_tensors_and_lists_count_as_arrays(tmp_path):
    data = data_yielding(tmp_path, "{'x': __import__('torch').ones(2, 3), 'y': [[1.0], [2.0]]}")
    assert np.load(data.inputs("validation")["x"]).dtype == np.float32
    assert np.load(data.inputs("validation")["y"]).shape == (2, 1)


def test_a_task_may_fill_one_array_again_and_again(tmp_path):
    body = (
        HEAD
        + SCORE
        + (
            "    def examples(self, split):\n        buffer = np.zeros((1, 2), np.float32)\n"
            "        for value in (1, 2, 3):\n            buffer[:] = value\n            yield {'x': buffer}\n"
        )
    )
    assert np.load(data_of(tmp_path, body).inputs("test")["x"]).tolist() == [[1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize(
    "spec, said",
    [
        (TensorSpec("image", (1, 1, 8, 8)), "lack the input 'image'; they have: input"),
        (TensorSpec("input", (1, 3, 8, 8)), "the shape (N, 1, 8, 8); the model takes (N, 3, 8, 8)"),
        (TensorSpec("input", (1, 64)), "the model takes (N, 64)"),
        (TensorSpec("input", (1, 1, 8, 8), "int64"), "as float32; the model takes int64"),
    ],
)
def test_examples_that_do_not_fit_the_model_are_refused(tmp_path, spec, said):
    data = data_of(tmp_path, kit.TASK, "Digits")
    data.check_inputs((TensorSpec("input", (4, 1, 8, 8)),))
    with pytest.raises(ConfigError) as caught:
        data.check_inputs((spec,))
    assert said in caught.value.message


@pytest.mark.parametrize(
    "body, said",
    [
        ("class T:\n    metric = 'a'\n    direction = 'larger'\n", "lacks: examples, score"),
        (HEAD.replace('metric = "accuracy"', "pass") + "    def examples(self, s): ...\n" + SCORE, "lacks: metric"),
        (HEAD.replace('"larger"', '"up"') + "    def examples(self, s): ...\n" + SCORE, "not 'up'"),
        ("class Tt: ...\n", "Did you mean 'Tt'"),
        ("class T:\n    def __init__(self):\n        raise ValueError('no data')\n", "task.py:3: ValueError: no data"),
        ("class T:\n    def\n", "task.py:2"),
        ("import no_such_module_here\n", "'no_such_module_here' is not installed"),
    ],
)
def test_a_task_that_is_none_says_what_it_lacks(tmp_path, body, said):
    with pytest.raises(ConfigError) as caught:
        data_of(tmp_path, body)
    assert said in caught.value.message


def test_a_task_that_names_no_class_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not name a class"):
        load_data(str(tmp_path / "task.py"), Cache(), kit.Heard())


def scored(folder, score, arrays=None):
    examples = "    def examples(self, split):\n        yield {'x': np.zeros((3, 2), 'f4')}\n        yield {'x': np.ones((2, 2), 'f4')}\n"
    data = data_of(folder / "project", HEAD + examples + f"    def score(self, outputs, split):\n{score}")
    files = {}
    out = folder / "outputs"
    out.mkdir(exist_ok=True)
    for name, array in (arrays or {"y": np.arange(5.0)}).items():
        files[name] = out / f"{name}.npy"
        np.save(files[name], array)
    return data.score(files, "test")


@pytest.mark.parametrize(
    "score, said",
    [
        ("        return {'accuracy': float('nan')}\n", "task.py:T.score gives nan as 'accuracy'"),
        ("        return {'accuracy': 1.0, 'loss': float('inf')}\n", "task.py:T.score gives inf as 'loss'"),
        ("        return {'accuracy': 'high'}\n", "gives 'high' as 'accuracy', which is no number"),
        ("        return 0.5\n", "gives a float"),
        ("        return {'acc': 0.5}\n", "the task's metric is 'accuracy'"),
        ("        return {'accuracy': outputs[0]['z']}\n", "at task.py:9: KeyError: 'z'"),
    ],
)
def test_a_score_that_is_none_is_told_in_the_persons_terms(tmp_path, score, said):
    with pytest.raises(ConfigError) as caught:
        scored(tmp_path, score)
    assert said in caught.value.message


def test_a_score_sees_the_outputs_in_the_tasks_own_batches(tmp_path):
    score = "        return {'accuracy': sum(len(b['y']) * 10 ** i for i, b in enumerate(outputs))}\n"
    assert scored(tmp_path, score) == {"accuracy": 23.0}


def test_an_output_with_several_rows_an_example_is_cut_at_examples(tmp_path):
    score = "        return {'accuracy': outputs[1]['boxes'][0, 0]}\n"
    assert scored(tmp_path, score, {"boxes": np.arange(40.0).reshape(20, 2)}) == {"accuracy": 24.0}


def test_the_same_outputs_are_scored_once_until_the_labels_change(tmp_path):
    labels, marks = tmp_path / "labels" / "l.npy", tmp_path / "marks"
    labels.parent.mkdir()
    np.save(labels, np.float64(0.5))
    score = (
        f"        with open('{marks}', 'a') as stream:\n            stream.write('x')\n"
        f"        return {{'accuracy': np.load(''.join(['{labels.parent}', '/l.npy']))}}\n"
    )
    assert [scored(tmp_path, score)["accuracy"] for _ in range(2)] == [0.5, 0.5]
    assert marks.read_text() == "x"
    np.save(labels, np.float64(0.25))
    assert scored(tmp_path, score) == {"accuracy": 0.25}
    assert marks.read_text() == "xx"


@pytest.mark.parametrize("changed", ["task.py", "helper.py", "data.npy"])
def test_data_are_read_anew_when_what_they_come_from_changes(tmp_path, changed):
    outside = tmp_path / "outside"
    outside.mkdir()
    np.save(outside / "data.npy", np.zeros((2, 3), np.float32))
    folder = kit.write(
        tmp_path / "project", {"helper.py": f"import numpy as np\nDATA = np.load('{outside}/data.npy') + 0\n"}
    )
    body = "import helper\n" + HEAD + "    def examples(self, split):\n        yield {'x': helper.DATA + 0}\n" + SCORE
    first = data_of(folder, body)
    assert data_of(folder, body).folder == first.folder
    if changed == "data.npy":
        np.save(outside / "data.npy", np.ones((2, 3), np.float32))
    elif changed == "helper.py":
        (folder / "helper.py").write_text((folder / "helper.py").read_text().replace("+ 0", "+ 1"))
    second = data_of(folder, body.replace("+ 0", "+ 1") if changed == "task.py" else body)
    assert float(np.load(second.inputs("test")["x"]).mean()) == 1.0
