"""What compression by training has to reach, written down before anything was tuned.

Splits: those of examples/mnist (a hash of each is checked). Recipes are chosen on `validation`; every number below is of
`test`, 10,000 images, three seeds, mean and deviation. Sizes are of the whole artifact, speeds are single-threaded
process time of one image, interleaved with float32 of the same runtime. The baseline of a network is its own float32
artifact by the same backend, with the accuracy that its training reached.
"""

from __future__ import annotations

from typing import NamedTuple

SEEDS = (0, 1, 2)


class Goal(NamedTuple):
    """The least that a compressed network has to reach beside its own float32.

    Attributes:
        smaller: Times.
        faster: Times; None where size alone is asked for.
        lost: Largest loss of top-1 accuracy, in points.
    """

    smaller: float
    faster: float | None
    lost: float


GOALS = {
    "fashion_resnet/litert": Goal(12, 10, 1.0),
    "fashion_resnet/openvino": Goal(12, 4, 1.0),
    "mnist_mlp/litert": Goal(12, 12, 0.5),
    "fashion_mlp/litert": Goal(12, 12, 0.5),
    "mnist_mlp128/sparse": Goal(5, None, 1.5),
}
"""`fashion_resnet` is ResNet-20 (He et al. 2016, 16-32-64 channels); `mlp` 784-512-256-10; `mlp128` 784-128-64-10 with 90 %
of its weights pruned by polynomial decay from 50 %."""

WANTED_RESNET_LITERT = Goal(14, 13, 1.0)

SENTENCES = 1_000
"""At least so many natural sentences that no student was trained on."""
STUDENT_COSINE = 0.97
"""Mean cosine of a student of at most 3 layers to MiniLM's 6, and Spearman's correlation of pairwise similarities."""
STUDENT_FASTER = 1.6
"""In LiteRT, ONNX Runtime and OpenVINO."""
