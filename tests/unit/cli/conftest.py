from __future__ import annotations

import pytest

from tests.e2e.kit import Person


@pytest.fixture
def person(tmp_path):
    person = Person(tmp_path / "person")
    yield person
    person.leave()
