"""Files on this machine: what goes wrong with them is not the device's fault."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgekit.core.errors import ConfigError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the block writes is a file here.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {error.strerror or error}.") from error
