"""The power fails: the disk still holds a whole release, and the next deploy works.

QEMU is killed, so that all is lost that the machine's kernel had not written to its disk. What a disk loses of its own
cache is not shown: QEMU's has none that is lost.
"""

from __future__ import annotations

import time

import pytest

from tests.e2e.fault_kit import attempt, visit
from tests.vm.kit import MARKS, At, Push, caught, interrupted, trap

pytestmark = MARKS
JOURNAL_SECONDS = 8.0
"""ext4 writes its journal every 5 s, and new bytes up to 30 s later: in between a name may be there without its bytes."""


def test_what_was_answered_lasts(machine, site):
    job = site.job()
    assert visit(job, site.device).released
    machine.cut_power()
    machine.start()
    assert site.current() == job.artifact.digest


@pytest.mark.parametrize(
    ("remote", "share", "seconds"),
    [("*/store/*", 0.5, 0.0), ("*/store/*", 1.0, JOURNAL_SECONDS), ("*/agent/*/agent.py", 1.0, JOURNAL_SECONDS)],
    ids=["in-a-file", "after-a-file", "after-the-agent"],
)
def test_a_cut_at_a_push_leaves_the_release_before(machine, site, remote, share, seconds):
    before = site.current()
    # As after an upgrade of edgekit: the agent has to be sent anew.
    machine.run("sh", "-c", "rm -rf /root/.edgekit/agent; sync").check()

    def cut():
        time.sleep(seconds)
        machine.cut_power()

    interrupted(site.job(), site.device, Push(remote, share), cut)
    machine.start()
    assert site.current() == before
    site.works_again()


@pytest.mark.parametrize(
    ("call", "target", "when"),
    [
        ("rename", "*/releases/*", "before"),
        ("rename", "*/releases/*", "after"),
        ("replace", "*/history.json", "after"),
        ("replace", "*/current", "before"),
        ("replace", "*/current", "after"),
    ],
    ids=["release-unnamed", "release-named", "history-written", "before-the-switch", "at-the-switch"],
)
def test_a_cut_around_the_switch_leaves_the_release_before_or_the_new_one(machine, site, call, target, when):
    before, job = site.current(), site.job()
    with trap(machine, call, target, when) as device:
        assert not caught(machine, job, device, machine.cut_power)
    machine.start()
    # A switch that was not yet synced may have reached the disk or not; before it, nothing of it may show.
    may_be = {before, job.artifact.digest} if (target, when) == ("*/current", "after") else {before}
    assert site.current() in may_be
    site.works_again()


def test_a_cut_in_the_health_check_leaves_the_release_before(machine, site):
    before = site.current()
    at = At("health check", machine.cut_power)
    assert not attempt(site.job(), site.device, at)
    assert at.reached
    machine.start()
    assert site.current() == before
    site.works_again()
