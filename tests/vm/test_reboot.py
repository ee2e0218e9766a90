"""Somebody reboots the machine in the middle of a deploy: it comes back with a whole release, and the next deploy works."""

from __future__ import annotations

from tests.e2e.fault_kit import attempt
from tests.vm.kit import MARKS, At, Push, caught, interrupted, trap

pytestmark = MARKS


def test_a_reboot_at_a_push_leaves_the_release_before(machine, site):
    before = site.current()
    interrupted(site.job(), site.device, Push("*/store/*", 0.5), machine.reboot)
    assert site.current() == before
    site.works_again()


def test_a_reboot_in_the_health_check_leaves_the_release_before(machine, site):
    before, at = site.current(), At("health check", machine.reboot)
    assert not attempt(site.job(), site.device, at)
    assert at.reached
    assert site.current() == before
    site.works_again()


def test_a_reboot_just_before_the_switch_leaves_the_release_before(machine, site):
    before = site.current()
    with trap(machine, "replace", "*/current", "before") as device:
        assert not caught(machine, site.job(), device, machine.reboot)
    assert site.current() == before
    site.works_again()
