from __future__ import annotations

from contextlib import contextmanager

import pytest

from edgekit.core.errors import ConfigError
from edgekit.flow.recipe import Recipe
from edgekit.flow.sensitivity import Request, layers_of, measure
from tests.unit.flow import kit


def sensitivity(builder, **request):
    return measure(builder.compressed(Recipe()), builder.tools, Request(**request))


@pytest.fixture
def builder(tasked, heard):
    return kit.builder_in(tasked, heard)


def test_each_layer_is_judged_in_each_precision_on_the_validation_split(builder):
    found = sensitivity(builder, precisions=("float16", "static_wi8_ai8", "palette_1"))
    assert [(e.layer, e.precision) for e in found.effects] == [
        (layer, precision) for layer in ("0", "4") for precision in ("float16", "static_wi8_ai8", "palette_1")
    ]
    assert (found.judged_on, found.examples, found.calibrated_on) == ("validation", 7, "calibration")
    assert found.before.keys() == {"accuracy", "spread"}
    half, eight, one = (e for e in found.effects if e.layer == "4")
    assert half.snr_db > eight.snr_db > one.snr_db
    assert half.bytes_saved < eight.bytes_saved < one.bytes_saved
    assert all(effect.metrics.keys() == found.before.keys() for effect in found.effects)
    assert half.metrics["spread"] != found.before["spread"]
    assert found.metric_drop(half) == found.before["accuracy"] - half.metrics["accuracy"]
    assert found.skipped == {"1": "has vectors only, which stay in float"}
    assert found.most_sensitive_first()[0] == max(found.effects, key=lambda e: e.noise).layer


def test_without_a_task_golden_and_random_inputs_judge_and_that_is_said(plain, heard):
    found = sensitivity(kit.builder_in(plain, heard), precisions=("static_wi8_ai8",))
    assert found.judged_on == found.calibrated_on == "golden and random"
    assert (found.metric, found.before) == ("", {})
    assert any("there is no task" in said for said in heard.warnings)
    assert all(effect.snr_db > 20 for effect in found.effects)


def test_fewer_examples_than_the_split_has_judge_without_the_metric(builder):
    found = sensitivity(builder, precisions=("palette_2",), examples=3)
    assert (found.examples, found.metric) == (3, "")
    assert all(effect.metrics == {} for effect in found.effects)
    assert sensitivity(builder, precisions=("palette_2",), examples=70).metric == "accuracy"


class Interrupting(kit.Heard):
    """A person who presses Ctrl-C after some measurements."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def advance(self, done: float = 1.0) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_what_was_measured_before_an_interrupt_is_not_measured_again(tasked, monkeypatch):
    from edgekit.flow.fake_quantize import Subject

    tried = []
    original = Subject.quantized

    @contextmanager
    def counted(self, layer, precision, ranges):
        tried.append((layer.path, precision))
        with original(self, layer, precision, ranges):
            yield

    monkeypatch.setattr(Subject, "quantized", counted)
    request = {"precisions": ("float16", "palette_2")}
    # Running the model advances a step of its own, silently: only measurements count here.
    with pytest.raises(KeyboardInterrupt):
        sensitivity(kit.builder_in(tasked, Interrupting(3)), **request)
    assert tried == [("0", "float16"), ("0", "palette_2"), ("4", "float16")]
    whole = sensitivity(kit.builder_in(tasked), **request)
    assert tried[3:] == [("4", "palette_2")]
    again = sensitivity(kit.builder_in(tasked), **request)
    assert again == whole
    assert len(tried) == 4


def test_layers_are_chosen_by_path_or_pattern(builder):
    found = sensitivity(builder, precisions=("float16",), layers=("4",))
    assert [effect.layer for effect in found.effects] == ["4"]
    assert len(sensitivity(builder, precisions=("float16",), layers=("*",)).effects) == 2
    assert [layer.path for layer in layers_of(builder.compressed(Recipe()), builder.tools)] == ["0", "4"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"precisions": ("int8",)}, "no precision of a single layer 'int8'"),
        ({"layers": ("head",)}, "no layer with weights 'head'"),
        ({"split": "test"}, "test examples are only ever reported"),
        ({"examples": 0}, "At least one example"),
    ],
)
def test_a_wrong_request_is_named(builder, request_, said):
    with pytest.raises(ConfigError, match=said):
        sensitivity(builder, **request_)
