from __future__ import annotations

import pytest

from edgekit.core.units import format_bytes, format_duration, format_ms


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (18_600_000, "18.6 MB"), (250_000_000, "250 MB"), (1.5e9, "1.5 GB")],
)
def test_bytes_are_written_as_file_managers_do(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_a_size_that_shrank_is_written_with_its_sign() -> None:
    assert format_bytes(-2_500_000) == "-2.5 MB"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0123, "0.0123 ms"), (9.5634, "9.56 ms"), (123.4, "123 ms"), (2345.6, "2346 ms")]
)
def test_milliseconds_have_three_digits(value: float | None, text: str) -> None:
    assert format_ms(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.85, "850 ms"), (12.34, "12.3 s"), (99.4, "99.4 s"), (200, "3 min 20 s"), (119.7, "2 min 0 s")],
)
def test_a_duration_is_written_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
