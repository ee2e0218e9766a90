"""Devices that answer with too much, with nonsense, or with what would steer a terminal: over a real sshd and adb."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgekit.core.errors import DeviceError
from edgekit.core.progress import Silent
from edgekit.runners.agent import AgentRunner
from edgekit.runners.benchmark_model import BenchmarkModelRunner
from edgekit.transports.base import connect
from tests.e2e.fault_kit import NAME, Releases, broken, current, visit, with_this_python

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]
ANSWERS = {
    "endless": "yes '{\"schema_version\": 1}'",
    "endless line": "tr '\\0' x < /dev/zero",
    "endless errors": "yes edgekit: busy >&2",
    "bytes": "head -c 1000000 /dev/urandom",
    "nothing": "true",
    "half a document": 'printf \'{"schema_version": 1, "ok": true, "facts": {\'',
    "deep": "printf '{\"ok\":'; head -c 200000 /dev/zero | tr '\\0' '['",
    "a large number": 'printf \'{"schema_version": 1, "ok": true, "free_bytes": 1\'; head -c 5000 /dev/zero | tr \'\\0\' 9; echo }',
    "steering": 'printf \'{"schema_version": 1, "ok": false, "error": {"kind": "internal", "message": "\\\\u001b[2Jgone", "detail": {}}}\'',
}
ACTIONS = {
    "deploy": lambda runner, transport, job: runner.execute(job, transport, Silent()),
    "probe": lambda runner, transport, _: runner.probe(transport),
    "rollback": lambda runner, transport, _: runner.rollback(transport, NAME),
}


def refuses(action, runner, device, job):
    """The action ends with an error of ours that a terminal can show."""
    with connect(device) as transport, pytest.raises(DeviceError) as caught:
        ACTIONS[action](runner, transport, job)
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert device.name in text
    assert len(text) < 2000
    assert "\x1b" not in text


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_hostile_answer_over_ssh_ends_in_words(sshd, tmp_path, answer, action):
    python = sshd.home / "python3"
    # What it is asked is read first, as the agent does.
    python.write_text(f"#!/bin/sh\ncat > /dev/null\n{ANSWERS[answer]}\n")
    python.chmod(0o755)
    refuses(action, AgentRunner(), replace(sshd.device(), python=str(python)), Releases(tmp_path / "releases").job())
    assert current(sshd.home / ".edgekit") is None


def test_a_device_that_was_hostile_once_still_serves_its_release(sshd, tmp_path):
    releases, device = Releases(tmp_path / "releases"), with_this_python(sshd.device())
    visit(releases.job(), device)
    before = current(sshd.home / ".edgekit")
    sshd.wrap('case "$SSH_ORIGINAL_COMMAND" in *agent.py*) head -c 100000 /dev/urandom; exit 0;; esac')
    for action in ACTIONS:
        refuses(action, AgentRunner(), device, releases.job())
    sshd.wrap("")
    assert broken(sshd.home / ".edgekit") == []
    assert current(sshd.home / ".edgekit") == before
    assert visit(releases.job(), device).released is True


@pytest.mark.parametrize("action", ["probe", "rollback"])
@pytest.mark.parametrize("answer", ["endless", "endless line", "endless errors", "bytes", "nothing", "half a document"])
def test_a_hostile_shell_over_adb_ends_in_words(make_adb_daemon, answer, action):
    # Whatever line it is given, its shell says the same.
    daemon = make_adb_daemon(shell=["/bin/sh", "-c", f"PATH=/usr/bin:/bin; {ANSWERS[answer]}", "sh"])
    with connect(daemon.device()) as transport, pytest.raises(DeviceError) as caught:
        ACTIONS[action](BenchmarkModelRunner(), transport, None)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("program", ["getprop", "dumpsys", "df", "cat"])
def test_facts_that_are_nonsense_steer_nothing(adb_daemon, program):
    path = adb_daemon.bin / program
    path.unlink()
    path.write_text(f"#!{adb_daemon.bin}/sh\nprintf '[ro.soc.model]: [\\033[2J\\377]\\n999999999999999999999 x\\n'\n")
    path.chmod(0o755)
    with connect(adb_daemon.device()) as transport:
        facts = BenchmarkModelRunner().probe(transport)
    texts = [value for value in facts.values() if isinstance(value, str)]
    assert [text for text in texts if not text.isprintable()] == []


def test_facts_of_an_agent_that_would_steer_a_terminal_are_cleaned(sshd):
    facts = {"hostname": "\x1b[2Jpi", "cpu_model": "x\x07\ny", "a\x1b[2J": 4}
    answer = {"schema_version": 1, "ok": True, "facts": facts, "missing": [], "runtimes": [], "free_bytes": 1}
    (sshd.home / "answer").write_text(json.dumps(answer | {"current": None}))
    python = sshd.home / "python3"
    python.write_text("#!/bin/sh\ncat > /dev/null\ncat answer\n")
    python.chmod(0o755)
    with connect(replace(sshd.device(), python=str(python))) as transport:
        assert AgentRunner().probe(transport) == {"hostname": "[2Jpi", "cpu_model": "x y", "a [2J": 4}
