"""Faults at every point of a deploy, against a real sshd: whatever happens, the device serves a whole release.

Each sweep deploys releases that the device has not seen, breaks something at one point, and looks at the device: the
release in force is the one before or the new one, complete, and nothing half-written has a whole thing's name. A deploy
that was told to have worked is in force; one that failed says so in words, and the next one works.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgekit.core.errors import StableDeviceError, TransientDeviceError
from edgekit.core.progress import Silent
from edgekit.core.workload import Workload
from edgekit.runners.agent import AgentRunner
from edgekit.transports.base import connect
from edgekit.transports.fake import FaultyTransport
from tests.devices.proxy import CuttingProxy
from tests.devices.sshd import eventually
from tests.e2e.cut_points import CALLS, FULL_DISKS, KILLS_ON_THE_DEVICE
from tests.e2e.cut_points import FIRST_DEPLOY_BYTES as CUTS_OF_A_FIRST_DEPLOY
from tests.e2e.cut_points import UPDATE_BYTES as CUTS_OF_AN_UPDATE
from tests.e2e.fault_kit import Releases, attempt, broken, current, judged, visit, with_this_python
from tests.e2e.kit import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]
OUTPUTS = Workload("outputs", "outputs")
TIMED = Workload("latency", "latency", warmup_runs=1, min_runs=3, max_runs=3, min_seconds=0.0)


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path / "releases")


@pytest.mark.timeout(900)
def test_a_connection_that_is_cut_after_any_number_of_bytes_of_an_update(sshd, releases, record_property):
    root = sshd.home / ".edgekit"
    visit(releases.job(), with_this_python(sshd.device()))
    with CuttingProxy(sshd.port) as cable:
        visit(releases.job(TIMED), with_this_python(sshd.device(port=cable.port)))
        total = cable.transferred
    cut, in_force = 0, current(root)
    for number in range(1, CUTS_OF_AN_UPDATE + 1):
        job = releases.job(TIMED)
        with CuttingProxy(sshd.port, total * number // (CUTS_OF_AN_UPDATE + 1)) as cable:
            worked = attempt(job, with_this_python(sshd.device(port=cable.port)))
            cut += cable.was_cut
        in_force = judged(root, job, in_force, worked)
    # The last points may lie behind the end: a deploy's length differs by some bytes each time.
    assert cut >= 0.95 * CUTS_OF_AN_UPDATE
    record_property("cut_points", cut)
    job = releases.job(TIMED)
    assert visit(job, with_this_python(sshd.device())).released is True
    assert judged(root, job, in_force, True) == job.artifact.digest


@pytest.mark.timeout(900)
def test_a_connection_that_is_cut_after_any_number_of_bytes_of_a_first_deploy(make_sshd, releases, record_property):
    first = make_sshd()
    with CuttingProxy(first.port) as cable:
        visit(releases.job(), with_this_python(first.device(port=cable.port)))
        total = cable.transferred
    sshd = make_sshd()
    root = sshd.home / ".edgekit"
    for number in range(1, CUTS_OF_A_FIRST_DEPLOY + 1):
        job = releases.job()
        with CuttingProxy(sshd.port, total * number // (CUTS_OF_A_FIRST_DEPLOY + 1)) as cable:
            worked = attempt(job, with_this_python(sshd.device(port=cable.port)))
        judged(root, job, None, worked)
        if number % 10 == 0:
            assert visit(job, with_this_python(sshd.device())).released is True
        # A device that has seen nothing yet.
        subprocess.run(["rm", "-rf", str(root)], check=True)
    record_property("cut_points", CUTS_OF_A_FIRST_DEPLOY)


@pytest.mark.parametrize("when", ["before", "after"])
def test_each_call_of_the_transport_is_cut_in_turn(sshd, releases, when, record_property):
    root = sshd.home / ".edgekit"
    device = with_this_python(sshd.device())
    visit(releases.job(), device)
    forget_agent(root)
    with FaultyTransport(connect(device), fail_at=None) as transport:
        AgentRunner().execute(releases.job(OUTPUTS), transport, Silent())
        calls = transport.count
    assert calls >= CALLS
    record_property("cut_points", calls)
    in_force = current(root)
    for number in range(1, calls + 1):
        job = releases.job(OUTPUTS)
        forget_agent(root)
        with FaultyTransport(connect(device), fail_at=number, when=when) as transport:
            with pytest.raises(TransientDeviceError):
                AgentRunner().execute(job, transport, Silent())
        in_force = judged(root, job, in_force, False)
    assert visit(job, device).released is True
    judged(root, job, in_force, True)


def forget_agent(root):
    """As after an upgrade of edgekit: its agent has to be sent anew, which makes a deploy of more calls."""
    subprocess.run(["rm", "-rf", str(root / "agent")], check=True)


_DIES = """
import os, signal, sys
from edgekit.core.progress import Silent
from edgekit.runners.agent import AgentRunner
from edgekit.transports.base import connect
from edgekit.transports.fake import FaultyTransport
from tests.e2e.fault_kit import Releases
import pickle
job, device, number, when = pickle.load(sys.stdin.buffer)

class Dying(FaultyTransport):
    def _failure(self, doing):
        os.kill(os.getpid(), signal.SIGKILL)

with Dying(connect(device), fail_at=number, when=when) as transport:
    AgentRunner().execute(job, transport, Silent())
print("lived")
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_hosts_process_is_killed_at_each_call(sshd, releases, when, record_property):
    import pickle

    root = sshd.home / ".edgekit"
    device = with_this_python(sshd.device())
    visit(releases.job(), device)
    in_force, number, killed = current(root), 0, 0
    while True:
        number += 1
        job = releases.job()
        forget_agent(root)
        done = subprocess.run(
            [sys.executable, "-c", _DIES],
            input=pickle.dumps((job, device, number, when)),
            capture_output=True,
            cwd=ROOT,
            check=False,
            timeout=120,
        )
        if done.stdout.strip() == b"lived":
            break
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        killed += 1
        in_force = judged(root, job, in_force, False)
    assert killed >= CALLS
    record_property("cut_points", killed)
    assert visit(job, device).released is True


def processes(sshd):
    """What runs on this device and no other: the agent and its workers start in its home."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.readlink().is_relative_to(sshd.home):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.timeout(600)
def test_everything_on_the_device_is_killed_in_the_middle_as_by_a_reboot(sshd, releases, record_property):
    root = sshd.home / ".edgekit"
    device = with_this_python(sshd.device())
    visit(releases.job(), device)
    begin = time.monotonic()
    visit(releases.job(TIMED), device)
    seconds = time.monotonic() - begin
    in_force, failed = current(root), 0
    for number in range(KILLS_ON_THE_DEVICE):
        job = releases.job(TIMED)
        found = []
        thread = threading.Thread(target=lambda job=job, found=found: found.append(attempt(job, device)))
        thread.start()
        time.sleep(seconds * number / KILLS_ON_THE_DEVICE)
        sshd.kill_connections()
        for pid in processes(sshd):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        thread.join(timeout=60)
        failed += not found[0]
        in_force = judged(root, job, in_force, found[0])
    assert failed >= KILLS_ON_THE_DEVICE // 2
    record_property("cut_points", KILLS_ON_THE_DEVICE)
    assert visit(releases.job(), device).released is True


def test_a_corrupted_file_on_the_device_is_mended_by_the_next_deploy(sshd, releases):
    root = sshd.home / ".edgekit"
    device = with_this_python(sshd.device())
    job = releases.job()
    visit(job, device)
    for path in (root / "models/tiny/releases" / job.artifact.digest / "model.tflite", root / "models/tiny/current"):
        target = path if path.is_file() else path / "padding.bin"
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        # A bit that flips on a memory card changes every link to the file.
        target.write_bytes(content)
        assert broken(root) != []
        for _ in range(2):
            if attempt(job, device):
                break
        assert judged(root, job, None, True) == job.artifact.digest


@pytest.mark.parametrize("then", [0.0, 4_000_000_000.0])
def test_a_wrong_clock_on_the_device_loses_nothing(sshd, releases, then):
    root = sshd.home / ".edgekit"
    device = with_this_python(sshd.device())
    first = releases.job()
    visit(first, device)
    job = releases.job()
    with connect(device) as transport:
        push = transport.push

        def backdated(local, remote, on_bytes=None):
            push(local, remote, on_bytes)
            for path in root.rglob("*"):
                os.utime(path, (then, then), follow_symlinks=False)

        transport.push = backdated
        assert AgentRunner().execute(job, transport, Silent()).released is True
    assert judged(root, job, first.artifact.digest, True) == job.artifact.digest


def test_a_disk_that_fills_up_at_any_push_leaves_the_release_before(sshd, releases, tmp_path, record_property):
    import contextlib

    root = sshd.home / ".edgekit"
    root.mkdir()
    ready = tmp_path / "mounted"
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f"mount -t tmpfs -o size=24m tmpfs {root} && touch {ready} && exec sleep 600"
    with subprocess.Popen(["unshare", "--mount", *user, "sh", "-c", mount]) as holder:
        try:
            assert eventually(ready.exists)
            inside = [
                "nsenter",
                "--target",
                str(holder.pid),
                "--mount",
                *(["--user", "--preserve-credentials"] if user else []),
            ]
            sshd.wrap(f'[ -n "$SMALL" ] || SMALL=1 exec {" ".join(inside)} "$0"')
            device = with_this_python(sshd.device())
            seen = Path(f"/proc/{holder.pid}/root") / root.relative_to("/")
            first = releases.job()
            visit(first, device)
            in_force = first.artifact.digest
            for number in range(1, FULL_DISKS + 1):
                job = Releases(tmp_path / f"large{number}", padding=1 << 20).job()
                with connect(device) as transport:
                    push, pushed = transport.push, []

                    def filling(local, remote, on_bytes=None, push=push, pushed=pushed, number=number):
                        pushed.append(remote)
                        if len(pushed) == number:
                            fill = f"head -c 40000000 /dev/zero > {root}/full"
                            subprocess.run([*inside, "sh", "-c", fill], check=False, stderr=subprocess.DEVNULL)
                        push(local, remote, on_bytes)

                    transport.push = filling
                    with contextlib.suppress(StableDeviceError):
                        AgentRunner().execute(job, transport, Silent())
                subprocess.run([*inside, "rm", "-f", f"{root}/full"], check=True)
                in_force = judged(seen, job, in_force, False)
                assert pushed
            assert attempt(releases.job(), device) is True
            record_property("cut_points", FULL_DISKS)
        finally:
            holder.kill()
