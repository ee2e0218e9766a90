from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest

from edgekit.core.errors import UnsupportedModelError
from edgekit.core.program import first_line, flatten


class Tensor:
    """What `flatten` takes for a tensor: it has a shape, and can be detached from its graph."""

    shape = (1,)

    def detach(self) -> Tensor:
        return self


A, B, C = Tensor(), Tensor(), Tensor()


class Pair(NamedTuple):
    """As detection models return."""

    boxes: Tensor
    scores: Tensor


@pytest.mark.parametrize(
    ("value", "names", "tensors"),
    [
        (A, ["output"], [A]),
        ((A,), ["output"], [A]),
        ((A, B), ["output_0", "output_1"], [A, B]),
        ([A, (B, C)], ["output_0", "output_1_0", "output_1_1"], [A, B, C]),
        ({"logits": A, "state": (B, C)}, ["logits", "state_0", "state_1"], [A, B, C]),
        (Pair(A, B), ["boxes", "scores"], [A, B]),
        (OrderedDict(loss=None, logits=A), ["logits"], [A]),
        ((A, None), ["output_0"], [A]),
        ({"a": {"b": A}}, ["a_b"], [A]),
    ],
)
def test_what_a_module_returns_is_named_in_order(value: Any, names: list[str], tensors: list[Tensor]) -> None:
    assert flatten(value) == (names, tensors)


@pytest.mark.parametrize("value", [None, (), {}, {"loss": None}])
def test_a_module_that_returns_no_tensor_is_refused(value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="returns no tensor"):
        flatten(value)


def test_what_is_no_tensor_is_named_with_its_place() -> None:
    with pytest.raises(UnsupportedModelError, match="returns a int as 'count'"):
        flatten({"logits": A, "count": 3})


def test_real_tensors_are_tensors() -> None:
    torch = pytest.importorskip("torch")
    assert flatten(torch.ones(2))[0] == ["output"]


@pytest.mark.parametrize(
    ("error", "text"),
    [(ValueError("\n\n  first\nsecond"), "first"), (KeyError(), "KeyError"), (ValueError("x" * 400), "x" * 300)],
)
def test_the_first_line_of_a_vendors_message_fits_in_ours(error: Exception, text: str) -> None:
    assert first_line(error) == text
