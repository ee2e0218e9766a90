"""Ctrl-C in the middle: exit code 130, nothing left running here or on the device, and the next deploy works."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from edgekit.core.files import sha256_file
from edgekit.transports._ssh_errors import translated
from edgekit.transports._ssh_route import SshOptions, route
from tests.devices.sshd import eventually
from tests.e2e.kit import QUICK, command_line, processes_below

pytestmark = [pytest.mark.slow, pytest.mark.network]


def check_interrupted(running):
    done = running.done().check(130)
    assert "interrupted" in done.err
    assert running.person.processes() == []
    assert running.person.leftovers() == []


def sftp_servers(sshd):
    """Processes of SFTP sessions in a server's home."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            at_home = (entry / "cwd").readlink() == sshd.home
        except OSError:
            continue  # it ended while we looked, or is somebody else's
        if at_home and "sftp-server" in command_line(entry):
            found.append(int(entry.name))
    return found


def test_while_converting(site):
    person = site.person
    running = person.start("deploy", "--target", "loop-x86", *QUICK)
    running.wait_for(lambda: any("edgekit.flow.convert" in line for line in person.processes()), "the conversion")
    running.interrupt()
    check_interrupted(running)
    assert list((person.cache / "artifacts").glob("*")) == []
    person.run("deploy", "--target", "loop-x86", *QUICK).check()
    assert site.current() is not None


def test_while_sending(site, artifacts):
    running = site.person.start("deploy", artifacts["plain"], "--device", "pi", *QUICK)
    running.wait_for(lambda: list((site.root / "store").glob(".*.part")), "a file on its way")
    stopped = sftp_servers(site.sshd)
    for process in stopped:
        os.kill(process, signal.SIGSTOP)  # so that the file is on its way still when the signal arrives
    assert stopped
    running.interrupt()
    for process in stopped:
        os.kill(process, signal.SIGCONT)
    check_interrupted(running)
    assert eventually(lambda: not sftp_servers(site.sshd))
    # A cut-off part may stay for the agent to tidy up; it never has a blob's name.
    blobs = [path for path in (site.root / "store").iterdir() if not path.name.startswith(".")]
    assert [path.name for path in blobs if sha256_file(path) != path.name] == []
    assert site.current() is None
    result = (
        site.person.run("deploy", artifacts["plain"], "--device", "pi", "--json", *QUICK).check().json["results"][0]
    )
    assert site.current() == result["artifact_digest"]
    assert eventually(lambda: not processes_below(site.root))


def test_while_measuring_on_the_device(site, artifacts):
    person = site.person
    running = person.start("deploy", artifacts["plain"], "-d", "pi", "--min-seconds", "300", "--processes", "1")

    def measuring():
        return site.current() is not None and any(
            "worker.py" in command_line(Path(f"/proc/{process}")) for process in processes_below(site.root)
        )

    running.wait_for(measuring, "a measurement on the device")
    running.interrupt()
    check_interrupted(running)
    assert eventually(lambda: not processes_below(site.root))
    assert eventually(lambda: not list((site.root / "runs").glob("*/*")))
    person.run("deploy", artifacts["plain"], "-d", "pi", *QUICK).check()


def test_while_measuring_here(site):
    person = site.person
    running = person.start("deploy", "-t", "linux-x86", "-b", "openvino", "--min-seconds", "300", "--processes", "1")
    current = person.cache / "devices" / "local" / ".edgekit" / "models" / "corners" / "current"

    def measuring():
        return current.exists() and any("worker.py" in line for line in person.processes())

    running.wait_for(measuring, "a measurement here")
    running.interrupt()
    check_interrupted(running)
    person.run("deploy", "-t", "linux-x86", "-b", "openvino", *QUICK).check()


def test_a_build_server_that_cancels_leaves_no_conversion_behind(site):
    person = site.person
    running = person.start("compile", "--target", "loop-x86")
    running.wait_for(lambda: any("edgekit.flow.convert" in line for line in person.processes()), "the conversion")
    running.interrupt(signal.SIGTERM)
    running.done().check(143)
    assert person.processes() == []
    assert person.leftovers() == []


def test_what_fails_in_the_wake_of_an_interruption_is_not_called_a_lost_connection(sshd):
    (hop,) = route(sshd.device().address, SshOptions(), "pi")

    def interrupted():
        with translated(hop, "pushing 'x'"):
            try:
                raise KeyboardInterrupt
            finally:
                raise EOFError  # what the library raises when the session cannot be closed politely any more

    with pytest.raises(KeyboardInterrupt):
        interrupted()
