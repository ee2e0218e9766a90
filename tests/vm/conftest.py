from __future__ import annotations

import pytest

from edgekit.core.places import cache_dir
from tests.devices.rootfs import UnavailableError, cache_folder
from tests.devices.vm import VirtualPi, require_tools
from tests.e2e.fault_kit import visit
from tests.vm.kit import Site


@pytest.fixture(scope="session", autouse=True)
def own_places(tmp_path_factory):
    """No settings of whoever runs the tests take part; runtime wheels are kept with the machine's disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE_DIR", str(cache_folder() / "edgekit"))
        patch.setenv("EDGEKIT_CONFIG_DIR", str(tmp_path_factory.mktemp("settings")))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        yield


@pytest.fixture(scope="session")
def vm_tools():
    """What a virtual machine needs is here; where CI is set, a skip for want of it fails the run (tests/skips.py)."""
    try:
        require_tools()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def machine(vm_tools, tmp_path_factory, login_key):
    """One running machine, with a release in force. A test may break what it likes, and leaves it running."""
    folder = tmp_path_factory.mktemp("vm")
    with VirtualPi(folder / "machine", login_key) as machine:
        site = Site(machine, folder)
        visit(site.job(), site.device)
        yield machine


@pytest.fixture
def site(machine, tmp_path):
    return Site(machine, tmp_path)


@pytest.fixture(scope="session")
def wheel_cache(own_places):
    """Where a person's command line finds the wheels that were fetched already."""
    folder = cache_dir() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
