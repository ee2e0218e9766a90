"""`edgekit deploy --all --canary 1`: one unit first, and no other where it fails."""

from __future__ import annotations

import dataclasses

import pytest

from tests.devices.sshd import Sshd
from tests.e2e.kit import QUICK, write_devices

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture
def shelf(site, make_sshd):
    """A second unit of the same target beside `pi`, and what tells whether anybody went there."""
    other: Sshd = make_sshd()
    second = dataclasses.replace(other.device("pi2"), target="loop-x86")
    write_devices(site.person.cwd, pi=site.device(), pi2=second)
    site.other = other
    return site


def test_a_canary_that_fails_keeps_the_others_as_they_were(shelf, artifacts, tmp_path):
    shelf.sshd.revoke_key()
    done = shelf.person.run("deploy", artifacts["plain"], "--all", "--canary", "1", *QUICK).check(3)
    assert "pi2 are left as they were" in done.err
    assert list(shelf.other.home.iterdir()) == []


def test_after_a_canary_that_works_the_others_follow(shelf, artifacts):
    done = shelf.person.run("deploy", artifacts["plain"], "--all", "--canary", "1", "--json", *QUICK).check()
    assert [result["device"] for result in done.json["results"]] == ["pi", "pi2"]
    assert len({result["run"] for result in done.json["results"]}) == 1


def test_a_canary_without_all_is_refused(person):
    done = person.run("deploy", "x.py:build", "-t", "linux-x86", "--canary", "1").check(2)
    assert "--all --canary 1" in done.err
