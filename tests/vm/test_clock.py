"""A board without a clock of its own starts in 1970, and jumps to today when the network tells it the time."""

from __future__ import annotations

import time

import pytest

from edgekit.core.progress import Silent
from edgekit.runners.agent import AgentRunner
from edgekit.transports.base import connect
from tests.devices.vm import VirtualPi
from tests.e2e.fault_kit import visit
from tests.vm.kit import MARKS, Site

pytestmark = MARKS


@pytest.fixture(scope="module")
def old_site(vm_tools, tmp_path_factory, login_key):
    """A machine of its own, on which nothing was ever deployed, in the first minute of 1970."""
    folder = tmp_path_factory.mktemp("old")
    with VirtualPi(folder / "machine", login_key, clock="1970-01-01T00:00:30") as machine:
        yield Site(machine, folder)


def year(site):
    return site.machine.run("date", "+%Y").check().strip()


def test_a_first_deploy_and_its_next_in_1970_then_one_over_which_the_clock_jumps(old_site):
    assert year(old_site) == "1970"
    first, second, third = (old_site.job() for _ in range(3))
    assert visit(first, old_site.device).released
    assert visit(second, old_site.device).released
    assert old_site.current() == second.artifact.digest
    with connect(old_site.device) as transport:
        push = transport.push

        def jumping(local, remote, on_bytes=None):
            push(local, remote, on_bytes)
            old_site.machine.run("date", "-s", f"@{time.time():.0f}").check()

        transport.push = jumping
        assert AgentRunner().execute(third, transport, Silent()).released
    assert year(old_site) != "1970"
    assert old_site.current() == third.artifact.digest
    old_site.works_again()
