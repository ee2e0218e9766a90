"""What the tests on a virtual machine share: releases with a real runtime, a look at the machine, faults at exact points."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.device import Device
from edgekit.core.errors import DeviceError
from edgekit.core.progress import Silent
from edgekit.core.target import load_target
from edgekit.core.workload import RuntimeRequirement, Workload
from edgekit.runners.agent import AgentRunner
from edgekit.runners.base import Job
from edgekit.transports.base import connect
from tests.devices import whole
from tests.devices.vm import VirtualPi
from tests.e2e.fault_kit import EXAMPLES, NAME, Releases, attempt
from tests.unit.agent.models import WEIGHTS

MARKS = [pytest.mark.vm, pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]
ROOT = "/root/.edgekit"
RUNTIME = "ai-edge-litert"
TRAP = "/root/trap"
CAUGHT = "edgekit-trap: caught"
_NUMBERS = iter(range(1_000_000))

_SERVE = """
import json, os, subprocess, sys
root, model, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
current = os.path.join(root, "models", model, "current")
record = json.load(open(os.path.join(current, "release.json")))
program = '''
import json, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.array(json.loads(sys.argv[2]), np.float32))
interpreter.invoke()
print(json.dumps(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).tolist()))
'''
argv = [sys.executable, "-c", program, os.path.join(current, record["main"]), json.dumps(rows)]
runtime = os.path.join(root, "runtimes", record["runtime"])
print(subprocess.run(argv, env={"PYTHONPATH": runtime}, stdout=subprocess.PIPE, check=True, text=True).stdout)
"""

_TRAP = f"""
import fnmatch, json, os, time

with open("{TRAP}/plan.json") as stream:
    PLAN = json.load(stream)


def stop():
    with open("/dev/console", "w") as console:
        console.write("{CAUGHT}\\n")
    time.sleep(600)


def trapped(call):
    def stopping(source, target, **options):
        chosen = fnmatch.fnmatch(os.fspath(target), PLAN["target"])
        if chosen and PLAN["when"] == "before":
            stop()
        call(source, target, **options)
        if chosen and PLAN["when"] == "after":
            stop()

    return stopping


setattr(os, PLAN["call"], trapped(getattr(os, PLAN["call"])))
"""


def requirement() -> RuntimeRequirement:
    """LiteRT as the target rpi4 pins it."""
    return RuntimeRequirement((f"{RUNTIME}=={load_target('rpi4').runtimes[RUNTIME]}",), min_glibc="2.34")


class Site:
    """A machine, and releases for it that it runs with real wheels.

    Args:
        machine: It is running.
        folder: An empty folder for the releases.
    """

    def __init__(self, machine: VirtualPi, folder: Path) -> None:
        self.machine = machine
        self._releases = Releases(folder / f"releases{next(_NUMBERS)}", padding=1 << 20)

    def job(self, *workloads: Workload) -> Job:
        """The deploy of a release that no device has seen."""
        return with_wheels(self._releases.job(*workloads))

    @property
    def device(self) -> Device:
        """The machine."""
        return self.machine.device()

    def current(self) -> str | None:
        """The release in force; the machine has to be whole and to compute with it what it should."""
        script = Path(whole.__file__).read_text()
        seen: dict[str, Any] = json.loads(self.machine.python(script, ROOT, NAME))
        assert seen["broken"] == [], seen["broken"]
        if seen["current"] is not None:
            rows = EXAMPLES[:2]
            found = json.loads(self.machine.python(_SERVE, ROOT, NAME, json.dumps(rows.tolist())))
            np.testing.assert_allclose(found, rows @ WEIGHTS, rtol=1e-5)
        return seen["current"]

    def works_again(self) -> None:
        """The very next deploy works, and is in force."""
        job = self.job()
        assert attempt(job, self.device), "the next deploy failed"
        assert self.current() == job.artifact.digest


def with_wheels(job: Job) -> Job:
    """A job whose runtime is sent along instead of being the interpreter's own."""
    return replace(job, host_runtime=False, plan=replace(job.plan, runtime=requirement()))


@contextlib.contextmanager
def trap(machine: VirtualPi, call: str, target: str, when: str) -> Iterator[Device]:
    """The machine with a Python that stops at a call of `os` and says so on the console.

    Args:
        machine: The machine.
        call: `rename` or `replace`.
        target: Pattern of the path that is renamed to.
        when: `before` or `after` the call.
    """
    machine.run("mkdir", "-p", TRAP).check()
    machine.write(f"{TRAP}/plan.json", json.dumps({"call": call, "target": target, "when": when}))
    machine.write(f"{TRAP}/sitecustomize.py", _TRAP)
    machine.write(f"{TRAP}/python", f'#!/bin/sh\nPYTHONPATH={TRAP} exec python3 "$@"\n', 0o755)
    yield machine.device(python=f"{TRAP}/python")


def caught(machine: VirtualPi, job: Job, device: Device, then: Callable[[], None]) -> bool:
    """Deploy to a trapped machine, do `then` while its agent stands still, and say whether the deploy worked."""
    begin, found = len(machine.console), []
    thread = threading.Thread(target=lambda: found.append(attempt(job, device)))
    thread.start()
    try:
        reached = machine.wait_for(CAUGHT, begin, stop=lambda: not thread.is_alive())
        then()
    finally:
        thread.join(timeout=180)
    assert reached, "the agent never came to the point where it should stop"
    return found == [True]


class At(Silent):
    """Progress that does something once, when the device says that it is at a step.

    Args:
        step: What the agent says there: `health check`.
        then: What is done.
    """

    def __init__(self, step: str, then: Callable[[], None]) -> None:
        self._step, self._then = step, then
        self.reached = False

    @contextlib.contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[At]:
        """Every step is this object."""
        yield self

    def advance(self, done: float = 1.0) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Do it, if this is the step."""
        if text == self._step and not self.reached:
            self.reached = True
            self._then()


@dataclass(frozen=True)
class Push:
    """A point in the pushes of a deploy.

    Attributes:
        remote: Pattern of the path that is pushed to; the first that matches counts.
        share: How much of the file has arrived; 1 means that its push is over.
    """

    remote: str
    share: float


def interrupted(job: Job, device: Device, point: Push, then: Callable[[], None]) -> None:
    """Deploy, and do something at one point of the pushes, after which the deploy has to fail in our own words."""
    fired = []

    def fire() -> None:
        if not fired:
            fired.append(True)
            then()

    with connect(device) as transport:
        push = transport.push

        def watched(local: Path, remote: str, on_bytes: Callable[[int], None] | None = None) -> None:
            if not fnmatch.fnmatch(remote, point.remote):
                return push(local, remote, on_bytes)
            arrived = 0

            def count(size: int) -> None:
                nonlocal arrived
                arrived += size
                if point.share < 1 and arrived >= point.share * local.stat().st_size:
                    fire()

            push(local, remote, count)
            return fire()

        transport.push = watched  # type: ignore[method-assign]
        with pytest.raises(DeviceError):
            AgentRunner().execute(job, transport, Silent())
    assert fired, f"nothing was pushed to {point.remote}"
