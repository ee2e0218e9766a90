"""Large files, keys and other hosts in the middle of a deploy, against a real sshd."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from edgekit.core.errors import StableDeviceError, TransientDeviceError
from edgekit.core.progress import Silent
from edgekit.runners.agent import AgentRunner
from edgekit.transports.base import connect
from edgekit.transports.fake import FaultyTransport
from tests.devices.proxy import CuttingProxy
from tests.e2e.cut_points import LARGE_FILE_SHARES, REVOKED_KEYS
from tests.e2e.fault_kit import Releases, attempt, broken, current, judged, visit, with_this_python
from tests.e2e.kit import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]
LARGE = 20 << 20


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path / "releases")


def test_a_large_file_that_was_cut_off_is_continued_by_the_next_deploy(sshd, releases, tmp_path, record_property):
    root = sshd.home / ".edgekit"
    visit(releases.job(), with_this_python(sshd.device()))
    in_force = current(root)
    for share in LARGE_FILE_SHARES:
        job = Releases(tmp_path / f"large{share}", padding=LARGE).job()
        with CuttingProxy(sshd.port, round(share * LARGE)) as cable:
            assert attempt(job, with_this_python(sshd.device(port=cable.port))) is False
        in_force = judged(root, job, in_force, False)
        (partial,) = (root / "store").glob(".*.part")
        arrived = partial.stat().st_size
        assert arrived > 0
        with CuttingProxy(sshd.port) as cable:
            done = visit(job, with_this_python(sshd.device(port=cable.port)))
        # The device may have written what was under way after we looked.
        assert 0 < done.bytes_sent <= LARGE - arrived
        assert cable.transferred < LARGE
        in_force = judged(root, job, in_force, True)
        assert not partial.exists()
    record_property("cut_points", len(LARGE_FILE_SHARES))


def test_a_partial_file_that_rotted_is_not_built_on(sshd, releases, tmp_path):
    root = sshd.home / ".edgekit"
    visit(releases.job(), with_this_python(sshd.device()))
    job = Releases(tmp_path / "large", padding=LARGE).job()
    with CuttingProxy(sshd.port, LARGE // 2) as cable:
        assert attempt(job, with_this_python(sshd.device(port=cable.port))) is False
    (partial,) = (root / "store").glob(".*.part")
    content = bytearray(partial.read_bytes())
    content[0] ^= 1
    partial.write_bytes(content)
    assert visit(job, with_this_python(sshd.device())).bytes_sent == LARGE
    judged(root, job, None, True)


def test_a_key_that_is_revoked_in_the_middle_keeps_the_release_before(sshd, releases, record_property):
    root, device = sshd.home / ".edgekit", with_this_python(sshd.device())
    visit(releases.job(), device)
    in_force = current(root)

    class Revoking(FaultyTransport):
        def _failure(self, doing):
            sshd.revoke_key()
            return super()._failure(doing)

    for number in range(1, REVOKED_KEYS + 1):
        job = releases.job()
        with Revoking(connect(device), fail_at=number) as transport, pytest.raises(TransientDeviceError):
            AgentRunner().execute(job, transport, Silent())
        with pytest.raises(StableDeviceError, match="login on the device 'pi' .* was refused") as caught:
            visit(job, device)
        assert "ssh-copy-id" in caught.value.hint
        in_force = judged(root, job, in_force, False)
        (sshd.folder / "authorized_keys").write_text(sshd.key.public)
    assert visit(job, device).released is True
    judged(root, job, in_force, True)
    record_property("cut_points", REVOKED_KEYS)


_VISITS = """
import pickle, sys
from edgekit.core.errors import TransientDeviceError
from tests.e2e.fault_kit import visit
job, device = pickle.load(sys.stdin.buffer)
print("ready", flush=True)
try:
    print("released", visit(job, device).released)
except TransientDeviceError as error:
    print("refused", error.message)
"""


def at_once(jobs, device):
    """Deploys from as many hosts, each a process of its own: what each said at its end."""
    started = []
    for job in jobs:
        process = subprocess.Popen(
            [sys.executable, "-c", _VISITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        started.append((process, pickle.dumps((job, device))))
    for process, data in started:
        process.stdin.write(data)
        process.stdin.close()
        process.stdin = None
    ends = [process.communicate(timeout=120)[0].decode().splitlines() for process, _ in started]
    assert [process.returncode for process, _ in started] == [0] * len(jobs)
    return [end[-1].split()[0] for end in ends]


@pytest.mark.parametrize("same", [True, False])
def test_deploys_of_several_hosts_at_once_are_never_mixed(sshd, releases, tmp_path, same):
    root, device = sshd.home / ".edgekit", with_this_python(sshd.device())
    visit(releases.job(), device)
    makers = [Releases(tmp_path / f"host{number}", padding=8 << 20) for number in range(1 if same else 3)]
    jobs = [maker.job() for maker in makers] * (3 if same else 1)
    ends = at_once(jobs, device)
    assert set(ends) <= {"released", "refused"}
    assert "released" in ends
    assert broken(root) == []
    winners = {job.artifact.digest for job, end in zip(jobs, ends, strict=True) if end == "released"}
    assert current(root) in winners
    for job in jobs:
        assert visit(job, device).released is True
        assert current(root) == job.artifact.digest
    assert broken(root) == []
