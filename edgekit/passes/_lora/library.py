"""peft, kept quiet and off the network."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA

EXTRA = "compression"
_WHY = "the pass lora"


def torch_() -> Any:
    """torch, or the error that names the extra."""
    return require("torch", TORCH_EXTRA, _WHY)


@contextlib.contextmanager
def peft() -> Iterator[Any]:
    """The library, which asks no hub and says nothing while the block runs.

    Its warnings are about what this package checks itself, before, and in its own words.

    Raises:
        MissingExtraError: It is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _no_log():
            library = require("peft", EXTRA, _WHY)
        constants: Any = require("huggingface_hub.constants", EXTRA, _WHY)
        # Not the environment: it is read once, when the first library imports the hub's client.
        was, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield library
        finally:
            constants.HF_HUB_OFFLINE = was


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """Keep libraries that peft imports, where they are there, from telling which of their kernels do not fit."""
    was = logging.root.manager.disable
    logging.disable(max(was, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(was)
