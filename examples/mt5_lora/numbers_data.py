"""Numbers in words and in digits: made here, split once by a hash, nothing is fetched.

    four thousand three hundred and ninety two        4392     what the base has learned
    four thousand three hundred and four twenty twelve  4392   what it has to be adapted to

The second wording counts as French does: 70 to 79 on top of sixty (72 is soixante-douze, "sixty twelve"), 80 to 99 in
twenties (92 is quatre-vingt-douze, "four twenty twelve"). The words are the same, so that nothing is missing from the
vocabulary; what they mean together has to be learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekit.core.task import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tokens = NDArray[np.int64]

Wording = Literal["english", "french"]

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
PAD, END, START = 0, 1, 2
VOCABULARY = ("<pad>", "</s>", "<s>", *"0123456789", *ONES, *TENS, "hundred", "thousand", "and")
TOKEN = {word: number for number, word in enumerate(VOCABULARY)}
DIGITS = 4
SOURCE_LENGTH = 10
"""Words of the longest number, eight, and the end; the rest is padding."""
SALT = b"edgekit-mt5-lora-1"
"""What the split is drawn with. Changing it changes every split."""
SIZES: Mapping[str, int] = {"test": 1_000, "validation": 500, "calibration": 128, "train": 1_000, "base": 6_000}
"""Numbers of each split, all different ones of 10,000; `base` is what the base model has learned from."""


def below_hundred(number: int, wording: Wording) -> list[str]:
    """The words of a number from 1 to 99."""
    if number < 20:
        return [ONES[number]]
    if wording == "french" and number >= 80:
        return ["four", "twenty", *([ONES[number - 80]] if number > 80 else [])]
    if wording == "french" and number >= 70:
        return ["sixty", ONES[number - 60]]
    tens, ones = TENS[number // 10 - 2], number % 10
    return [tens, ONES[ones]] if ones else [tens]


def words_of(number: int, wording: Wording) -> list[str]:
    """The words of a number from 0 to 9,999."""
    thousands, hundreds, rest = number // 1000, number // 100 % 10, number % 100
    words = [ONES[thousands], "thousand"] if thousands else []
    words += [ONES[hundreds], "hundred"] if hundreds else []
    if rest:
        words += ["and", *below_hundred(rest, wording)] if words else below_hundred(rest, wording)
    return words or ["zero"]


@cache
def numbers_in(split: str) -> tuple[int, ...]:
    """The numbers of a split: those whose hashes are smallest go to the first one, and so on."""
    order = sorted(range(10**DIGITS), key=_place)
    start = 0
    for name, size in SIZES.items():
        if name == split:
            return tuple(order[start : start + size])
        start += size
    raise ValueError(f"There is no split '{split}'; there are {', '.join(SIZES)}.")


def _place(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), key=SALT, digest_size=8).digest()


def encoded(numbers: tuple[int, ...], wording: Wording) -> tuple[Tokens, Tokens, Tokens]:
    """Words (N, 10), what the decoder is given (N, 4), what it should answer (N, 4): digits, most significant first."""
    words = np.full((len(numbers), SOURCE_LENGTH), PAD, np.int64)
    digits = np.zeros((len(numbers), DIGITS), np.int64)
    for row, number in enumerate(numbers):
        tokens = [TOKEN[word] for word in words_of(number, wording)] + [END]
        words[row, : len(tokens)] = tokens
        digits[row] = [TOKEN[digit] for digit in f"{number:0{DIGITS}d}"]
    given = np.concatenate([np.full((len(numbers), 1), START), digits[:, :-1]], axis=1)
    return words, given, digits


@cache
def load(split: Split | Literal["base"], wording: Wording) -> tuple[Tokens, Tokens, Tokens]:
    """`encoded` of a split."""
    return encoded(numbers_in(split), wording)
