from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.slow


def test_a_key_is_made_shown_and_not_made_twice(person):
    made = person.run("keys", "make", "--json").check().json
    assert re.fullmatch("[0-9a-f]{64}", made["public_key"])
    assert person.run("keys", "show", "--json").check().json == made
    again = person.run("keys", "make")
    assert again.code == 2
    assert made["path"] in again.err


def test_without_a_key_the_next_command_is_said(person):
    done = person.run("keys", "show")
    assert done.code == 2
    assert "edgekit keys make" in done.err
