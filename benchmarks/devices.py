"""`make bench-devices`: what a deploy to a device over SSH costs, against a real sshd on the loopback interface.

Rates and times are ratios taken interleaved in one run; an A/A row shows how far two runs of the same thing are apart here.
The number of cut points is read from a run of the fault tests (some minutes).
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, Results, interleaved, ratio, timed
from edgekit.runners.base import Job
from edgekit.transports.base import connect
from tests.devices.sshd import Sshd, make_key
from tests.e2e.fault_kit import Releases, visit, with_this_python

LARGE = 100 << 20
MODEL = 20 << 20
FAULTS = ("tests/e2e/test_faults.py", "tests/e2e/test_faults_uploads.py")


def push_rate(results: Results, server: Sshd, folder: Path) -> None:
    """A large file by OpenSSH's programs and by paramiko, and by the transport; connecting is part of both sides or of none."""
    import paramiko

    file = folder / "large"
    file.write_bytes(os.urandom(LARGE))
    device = server.device()
    login = ["-q", "-F", "/dev/null", "-o", "BatchMode=yes", "-i", str(server.key.private)]
    login += ["-o", f"UserKnownHostsFile={device.options['known_hosts']}", "-P", str(server.port)]
    where = f"{server.user}@127.0.0.1"

    def sftp() -> None:
        subprocess.run(
            ["sftp", *login, "-b", "-", where], input=f"put {file} a".encode(), check=True, capture_output=True
        )

    def scp() -> None:
        subprocess.run(["scp", *login, str(file), f"{where}:b"], check=True, capture_output=True)

    def ours() -> None:
        with connect(device) as transport:
            transport.push(file, "c")

    with connect(device) as opened:
        client = paramiko.SFTPClient.from_transport(opened._connection.transport)  # type: ignore[attr-defined]
        samples = interleaved(
            {
                "sftp": lambda: timed(sftp),
                "sftp again": lambda: timed(sftp),
                "scp": lambda: timed(scp),
                "ours": lambda: timed(ours),
                "paramiko": lambda: timed(lambda: client.put(str(file), "d")),
                "push alone": lambda: timed(lambda: opened.push(file, "e")),
            },
            rounds=15,
        )
    results.add("push A/A: OpenSSH sftp against itself", ratio(samples["sftp"], samples["sftp again"]), "ratio")
    note = "100 MiB, from connecting to the end of both; ours hashes the file first, so that a cut is resumed"
    for name in ("sftp", "scp"):
        reached = ratio(samples[name], samples["ours"])
        results.add(f"push: rate against OpenSSH {name}'s", reached, "ratio", at_least=0.8, note=note)
    reached = ratio(samples["paramiko"], samples["push alone"])
    results.add("push: rate against paramiko's put", reached, "ratio", at_least=0.8, note="on an open connection")


def with_changed_tail(job: Job) -> Job:
    """The same release, but for the last tenth of its large file."""
    import random

    from tests.unit.agent.models import artifact_in, tflite_model

    folder = job.artifact.path.with_name("changed")
    folder.mkdir()
    content = (job.artifact.path / "padding.bin").read_bytes()
    kept = len(content) * 9 // 10
    (folder / "padding.bin").write_bytes(content[:kept] + random.Random(0).randbytes(len(content) - kept))
    return replace(job, artifact=artifact_in(folder, tflite_model, backend="litert"))


def repeated_deploys(results: Results, server: Sshd, folder: Path) -> None:
    """A full deploy, one that changes a file, and one that changes nothing."""
    log = folder / "asked"
    server.wrap(f'echo "$SSH_ORIGINAL_COMMAND" >> {log}')
    device = with_this_python(server.device())
    job = Releases(folder / "releases", padding=MODEL).job()
    visit(job, device)
    changed = visit(with_changed_tail(job), device)
    results.add(
        "redeploy of a 20 MiB file whose last tenth changed: bytes sent",
        changed.bytes_sent,
        "bytes",
        at_most=MODEL,
        note="that file and nothing else: what is sent is chosen by file, not by block",
    )
    visit(job, device)
    log.unlink()
    again = visit(job, device)
    asked = log.read_text().splitlines()
    results.add("deploy that changes nothing: remote commands and SFTP sessions", len(asked), "commands", at_most=3)
    results.add("deploy that changes nothing: bytes sent", again.bytes_sent, "bytes", at_most=0)
    count = 0

    def full() -> None:
        nonlocal count
        count += 1
        visit(job, replace(device, root=f"new{count}"))

    samples = interleaved({"full": lambda: timed(full), "none": lambda: timed(lambda: visit(job, device))}, rounds=5)
    samples["none"].sort()
    results.add("deploy that changes nothing: seconds", samples["none"][len(samples["none"]) // 2], "s")
    reached = ratio(samples["none"], samples["full"])
    results.add(
        "deploy that changes nothing: time against a first deploy's", reached, "ratio", note="health check in both"
    )


def cut_points(results: Results, folder: Path) -> None:
    """The points at which the fault tests cut a deploy, as they tell them."""
    report = folder / "faults.xml"
    argv = [sys.executable, "-m", "pytest", "-q", *FAULTS, f"--junitxml={report}", "-o", "junit_family=xunit1"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stdout[-4000:]}\n{done.stderr}")
    tried = sum(
        int(found.attrib["value"]) for found in ET.parse(report).iter("property") if found.get("name") == "cut_points"
    )
    results.add("cut points after which the device served a whole release", tried, "cut points", at_least=200)


def main() -> int:
    results = Results("devices", "edgekit", "paramiko")
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as work:
        folder = Path(work)
        os.environ["EDGEKIT_CONFIG_DIR"] = str(folder / "config")
        with Sshd(folder / "sshd", make_key(folder / "login")) as server:
            push_rate(results, server, folder)
            repeated_deploys(results, server, folder)
        cut_points(results, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
