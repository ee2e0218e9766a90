from __future__ import annotations

import pytest

from tests.e2e.kit import Person


@pytest.fixture
def person(tmp_path):
    return Person(tmp_path / "person")
