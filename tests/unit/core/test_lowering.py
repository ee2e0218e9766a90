from __future__ import annotations

import pytest

from edgekit.core import schema
from edgekit.core.errors import ConfigError
from edgekit.core.lowering import Lowering, Quantize


def read(text: str) -> Lowering:
    return schema.convert(Lowering, schema.parse_yaml(text, "recipe.yaml"))


def test_nothing_asked_for_is_float32_throughout() -> None:
    assert read("") == Lowering()
    assert Lowering().precision == "float32"


def test_a_scheme_is_the_precision_and_the_interface_stays_float() -> None:
    lowering = read("quantize: {scheme: static_wi8_ai8}\noverrides: {stem.conv: float32}\n")
    assert lowering == Lowering(Quantize("static_wi8_ai8", io="float32", calibration=128), {"stem.conv": "float32"})
    assert lowering.precision == "static_wi8_ai8"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quantize: {scheme: static_int8}\n", "`scheme` cannot be 'static_int8'. Did you mean 'static_wi8_ai8'?"),
        ("quantize: {scheme: float16, io: int4}\n", "`io` cannot be 'int4'"),
        ("quantize: {scheme: float16, calibrate: 3}\n", "unknown key 'calibrate'. Did you mean 'calibration'?"),
        ("quantize: float16\n", "`quantize`"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_nearest(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert words in caught.value.message
