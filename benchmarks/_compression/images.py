"""MNIST and Fashion-MNIST as the chains are made with them: all validation images, and no test image."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._quantization import images


class Mnist(images.Mnist):
    """See `edgekit.core.task.TrainableTask`."""

    limits: Mapping[str, int] = {"test": 0}


class FashionMnist(images.FashionMnist):
    """See `edgekit.core.task.TrainableTask`."""

    limits: Mapping[str, int] = {"test": 0}


class MirroredFashionMnist(FashionMnist, images.example.MirroredFashionMnist):
    """See `edgekit.core.task.TrainableTask`."""
