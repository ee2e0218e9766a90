"""Pooling over one axis stays pooling over one axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")
torch = pytest.importorskip("torch")

from edgekit.backends._openvino_pooling import drop_added_axes  # noqa: E402

KINDS: dict[str, Callable[[Any], Any]] = {
    "max": lambda x: torch.nn.functional.max_pool1d(x, 2),
    "max, padded and dilated": lambda x: torch.nn.functional.max_pool1d(x, 3, stride=2, padding=1, dilation=2),
    "max, rounded up": lambda x: torch.nn.functional.max_pool1d(x, 2, ceil_mode=True),
    "average": lambda x: torch.nn.functional.avg_pool1d(x, 2, padding=1),
    "average without the padding": lambda x: torch.nn.functional.avg_pool1d(x, 3, padding=1, count_include_pad=False),
    "average, rounded up": lambda x: torch.nn.functional.avg_pool1d(x, 2, ceil_mode=True, padding=1),
}


class Pools(torch.nn.Module):
    def __init__(self, pool: Callable[[Any], Any]) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Any) -> Any:
        return self.pool(x)


def converted(pool: Callable[[Any], Any], *shape: int) -> tuple[Any, Any]:
    module, given = Pools(pool).eval(), torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return openvino.convert_model(torch.export.export(module, (given,))), given


def kinds_of(model: Any) -> list[str]:
    return [op.get_type_name() for op in model.get_ordered_ops()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_added_axis_is_gone_and_the_result_the_same(kind: str) -> None:
    model, given = converted(KINDS[kind], 1, 4, 33)
    assert drop_added_axes(model) == 1
    assert "Unsqueeze" not in kinds_of(model)
    found = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given.numpy())[0]
    np.testing.assert_allclose(found, KINDS[kind](given).numpy(), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_pooling_over_two_axes_stays_as_it_is() -> None:
    model, _ = converted(lambda x: torch.nn.functional.max_pool2d(x, 2), 1, 4, 8, 8)
    assert drop_added_axes(model) == 0


@pytest.mark.filterwarnings("ignore")
def test_an_axis_that_the_pooling_does_not_leave_alone_stays() -> None:
    pool = torch.nn.functional.max_pool2d
    model, _ = converted(lambda x: pool(x.unsqueeze(2), (2, 2), padding=(1, 0)).squeeze(2), 1, 4, 9)
    assert drop_added_axes(model) == 0
