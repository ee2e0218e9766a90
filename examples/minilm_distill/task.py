"""What a student is for: to say of sentences what its teacher says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_data import SPLIT_DIGEST, cache_folder, load, token_ids

from edgekit.core.files import write_atomic
from edgekit.core.task import Batch, Direction, Split, joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

BATCH = 32
JUDGED_AT_ONCE = 50
PARTS = 8
"""Epochs in which all sentences are gone through once: after each, training is judged and can be gone on with."""


class LikeTeacher:
    """Embeddings beside the teacher's. See edgekit.core.task.TrainableTask; no labels are needed."""

    metric = "cosine"
    direction: Direction = "larger"

    def __init__(self) -> None:
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes, from 1: each has other sentences."""
        self.epoch = epoch

    def examples(self, split: Split) -> Iterator[Batch]:
        """Batches of `input_ids` and `attention_mask` (N, 32), int64."""
        ids = token_ids(split)
        for start in range(0, len(ids), JUDGED_AT_ONCE):
            yield inputs_of(ids[start : start + JUDGED_AT_ONCE])

    def score(self, outputs: Sequence[Batch], split: Split) -> Mapping[str, float]:
        """See `likeness`."""
        return likeness(joined(outputs, "embedding"), answers(split))

    def batches(self, split: Split) -> Batches:
        """One part of the sentences, those of a length together: no batch has padding in it."""
        return Batches(token_ids(split), (self.epoch - 1) % PARTS)

    def loss(self, outputs: Mapping[str, Any], batch: tuple[Batch, Any]) -> Any:
        """There is none but the teacher's: `alpha` has to be 1."""
        raise ValueError("Sentences have no labels; let the teacher have all of the loss: alpha: 1.0")


class Batches:
    """The batches of one part, in an order drawn from numpy's generator, which the training loop seeds."""

    def __init__(self, ids: NDArray[np.int64], part: int) -> None:
        mine = ids[part::PARTS]
        lengths = (mine > 0).sum(1)
        self.groups = [mine[lengths == length, :length] for length in np.unique(lengths)]

    def __len__(self) -> int:
        return sum(-(-len(group) // BATCH) for group in self.groups)

    def __iter__(self) -> Iterator[tuple[Batch, None]]:
        batches = [
            group[rows]
            for group in self.groups
            for rows in np.array_split(np.random.permutation(len(group)), -(-len(group) // BATCH))  # noqa: NPY002 - seeded by the loop
        ]
        for place in np.random.permutation(len(batches)):  # noqa: NPY002 - as above
            yield inputs_of(batches[place]), None


def inputs_of(ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Token ids (N, T) and their mask."""
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


@cache
def answers(split: Split) -> Vectors:
    """What the teacher says of a split (N, 384), asked once and kept."""
    import torch
    from model import build

    path = cache_folder() / f"{split}-{SPLIT_DIGEST[:12]}-teacher.npy"
    if not path.is_file():
        module, _ = build()
        ids = torch.from_numpy(token_ids(split))
        with torch.no_grad():
            found = [module(part, (part > 0).long())["embedding"] for part in ids.split(JUDGED_AT_ONCE)]
        stream = BytesIO()
        np.save(stream, torch.cat(found).numpy())
        write_atomic(path, stream.getvalue())
    vectors: Vectors = np.load(path)
    return vectors


def likeness(found: Vectors, wanted: Vectors) -> dict[str, float]:
    """How like embeddings (N, 384) are to those of the teacher.

    Returns:
        `cosine`: mean cosine of the two embeddings of a sentence. `spearman`: Spearman's rank correlation of the
        similarities of all pairs of sentences. `nearest`: the share of sentences whose nearest other one is the same.
    """
    cosine = (found * wanted).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1))
    ours, theirs = found @ found.T, wanted @ wanted.T
    pairs = np.triu_indices(len(found), 1)
    spearman = np.corrcoef(_ranks(ours[pairs]), _ranks(theirs[pairs]))[0, 1]
    for similarities in (ours, theirs):
        np.fill_diagonal(similarities, -np.inf)
    nearest = (ours.argmax(1) == theirs.argmax(1)).mean()
    return {"cosine": float(cosine.mean()), "spearman": float(spearman), "nearest": float(nearest)}


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks


def likeness_by_source(found: Vectors, split: Split) -> dict[str, dict[str, float]]:
    """`likeness` of a split as a whole, and of each source in it alone."""
    sources = np.array(load(split).sources)
    rows = {"all": np.ones(len(sources), bool), **{str(name): sources == name for name in np.unique(sources)}}
    return {name: likeness(found[chosen], answers(split)[chosen]) for name, chosen in rows.items()}
