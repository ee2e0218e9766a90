from __future__ import annotations

import gc
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# coremltools leaves its temporary folders to the garbage collector, which Python warns of; none of it is ours.
LEFT_TO_COLLECTOR = "ignore::pytest.PytestUnraisableExceptionWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings(LEFT_TO_COLLECTOR))
            # Together a minute of conversions: for `make test`, not for the fast lane.
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def cheap_collection():
    # coremltools collects garbage at the end of each conversion; what its own import left need not be looked at again.
    import coremltools  # noqa: F401

    gc.freeze()
    yield
    gc.unfreeze()
