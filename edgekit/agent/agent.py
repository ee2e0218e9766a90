"""The agent: runs on a device, standard library only, Python 3.9 or newer.

Reads one JSON request on standard input and prints one JSON document on standard output, also when something fails.
docs/agent-protocol.md has the requests, the answers and the folder that is kept.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import select
import selectors
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NoReturn

# On a device these files lie side by side and belong to no package.
import attended  # type: ignore[import-not-found]
import facts  # type: ignore[import-not-found]
import held  # type: ignore[import-not-found]
import memory  # type: ignore[import-not-found]
import signing  # type: ignore[import-not-found]
import store  # type: ignore[import-not-found]
from store import AgentError, field, word

HERE = os.path.dirname(os.path.abspath(__file__))
PARENT = os.getppid()
VERSION = 1
MAX_REQUEST_BYTES = 16 << 20
KIND = re.compile("latency|sustained|load|outputs|intermediates")
OBSERVED = ("latency", "sustained")
"""Kinds of workload that the device's conditions belong to."""
LEFT_OUTPUTS = ("outputs", "intermediates")
DRIVER = re.compile(r"device_[a-z0-9_]{1,64}\.py")
Json = dict[str, Any]


class Stopped(BaseException):
    """The host is gone, or told this process to end."""


# --- worker processes -----------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """A line of progress."""
    try:
        sys.stderr.write(f"edgekit: {text}\n")
        sys.stderr.flush()
    except OSError:
        raise Stopped from None


def stop_without_host() -> None:
    """End when nobody reads the answer: without a terminal, no signal says that the connection broke."""
    poll = select.poll()
    poll.register(1, 0)
    if any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0)):
        raise Stopped
    if os.getppid() != PARENT:
        raise Stopped


def listen(process: Any, seconds: float) -> tuple[bytes, str, bool]:
    """What a worker printed, the end of what it complained of, and whether it ran out of time."""
    printed, complaints = bytearray(), bytearray()
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, printed)
        selector.register(process.stderr, selectors.EVENT_READ, complaints)
        while selector.get_map():
            ready = selector.select(0.5)
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                key.data.extend(data)
                if not data:
                    selector.unregister(key.fileobj)
            *lines, rest = bytes(complaints).split(b"\n")
            for line in lines:
                if line.startswith(b"edgekit: "):
                    say(line[9:].decode("utf-8", "replace"))
            kept = [line for line in lines if not line.startswith(b"edgekit: ")]
            complaints[:] = b"\n".join([*kept, rest])[-4000:]
            if time.monotonic() > deadline:
                return bytes(printed), "", True
            stop_without_host()
            if not ready and has_ended(process.pid):
                break  # it is gone, but something that it started keeps the pipes open
    return bytes(printed), complaints.decode("utf-8", "replace").strip(), False


def has_ended(pid: int) -> bool:
    """Whether a child is gone; it is left for others to wait for. False where the system cannot tell (macOS before 3.13)."""
    return hasattr(os, "waitid") and bool(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def work(task: Json, runtime: str | None, seconds: float, what: str) -> Json:
    """Do one task in a fresh process; beside the worker's answer stand the seconds of work that it took."""
    killed_before = memory.kills()
    environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", ORT_DISABLE_TELEMETRY="1")
    if runtime is not None:
        environment.update(PYTHONPATH=runtime, PYTHONNOUSERSITE="1")
    pipe = subprocess.PIPE
    argv = [sys.executable, os.path.join(HERE, "worker.py")]
    process: Any = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True)
    finished = False
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()
        printed, complaints, late = listen(process, seconds)
        finished = not late
    finally:
        if not finished:
            os.killpg(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                stream.close()
    if late:
        raise AgentError("timeout", f"{what} took longer than {seconds:.0f} s")
    try:
        answer = json.loads(printed)
    except ValueError:
        died(process.returncode, complaints, what, round(usage.ru_maxrss / 1024, 1), killed_before)
    if "error" in answer:
        raise AgentError(answer["error"]["kind"], f"{what}: {answer['error']['message']}")
    return dict(answer, cpu_seconds=usage.ru_utime + usage.ru_stime)


def died(returncode: int, complaints: str, what: str, peak_mib: float, killed_before: dict[str, int]) -> NoReturn:
    """The error for a worker that left no answer."""
    number = -returncode if returncode < 0 else returncode - 128 if returncode > 128 else 0
    if number == signal.SIGKILL or "bad_alloc" in complaints:
        why, detail = memory.killed(killed_before)
        raise AgentError("out-of-memory", f"{what} was killed: {why}", peak_rss_mib=peak_mib, **detail)
    by = signal.Signals(number).name if number in set(signal.Signals) else f"exit status {returncode}"
    said = f": {complaints[-500:]}" if complaints else ""
    raise AgentError("crashed", f"{what} died by {by}{said}", signal=by if number else None, peak_rss_mib=peak_mib)


# --- commands -------------------------------------------------------------------------------------------------------


def inspect(request: Json, root: str) -> Json:
    """What is here and what is missing."""
    # While another run holds the lock, nothing is tidied up.
    with contextlib.suppress(AgentError), store.locked(root, 0):
        held.restore(root)
        store.tidy(root)
    missing = []
    for sha256 in field(request, "blobs", list):
        path = os.path.join(root, "store", word({"blobs": sha256}, "blobs", store.SHA256))
        if os.path.isfile(path):
            os.utime(path)  # younger than a day again: no other run removes it before it is used
        else:
            missing.append(sha256)
    model = None if request.get("model") is None else store.Releases(root, word(request, "model"))
    return {
        "facts": facts.read(),
        "missing": missing,
        "runtimes": [name for name in store.names(os.path.join(root, "runtimes")) if not name.startswith(".")],
        "free_bytes": shutil.disk_usage(root).free + store.partial_bytes(root, missing),
        "current": model and model.current,
        "trusted_key": signing.trusted_key(root),
    }


class Run:
    """One `run` request, done step by step under the lock."""

    def __init__(self, request: Json, root: str) -> None:
        self.root = root
        self.model = field(request, "model", dict)
        self.digest, self.name = word(self.model, "digest"), word(self.model, "name")
        self.main = store.relative(field(self.model, "main", str))
        self.driver = os.path.join(HERE, word(request, "driver", DRIVER))
        self.common = {key: field(request, key, dict) for key in ("bindings", "options")}
        self.inputs = field(request, "inputs", dict)
        self.health = request.get("health")
        self.release = field(request, "release", bool)
        self.keep = max(0, field(request, "keep_releases", int))
        self.workloads = field(request, "workloads", list)
        self.runtime = field(request, "runtime", dict)
        self.asked = field(request, "conditions", dict) if "conditions" in request else {}
        self.signature = request.get("signature")
        if self.signature is not None:
            field(request, "signature", dict)
        self.out = os.path.join(root, "runs", word(request, "run_id"))
        if not os.path.isfile(self.driver):
            raise AgentError("request", f"this agent has no driver '{request['driver']}'")
        for workload in self.workloads:
            word(workload, "name")
            word(workload, "kind", KIND)
            for key in ("threads", "warmup_runs", "min_runs", "max_runs", "processes"):
                field(workload, key, int)
            for key in ("min_seconds", "max_seconds", "timeout_seconds"):
                field(workload, key, (int, float))
        self.released = False
        self.previous: str | None = None
        self.hook: Json | None = None
        self.held: Json = {}

    def record(self) -> Json:
        """The release as it is signed and kept."""
        wheels = [] if self.runtime.get("kind") == "host" else field(self.runtime, "wheels", list)
        return dict(
            self.model,
            driver=os.path.basename(self.driver),
            runtime=self.runtime.get("digest"),
            wheels=sorted(word(wheel, "sha256", store.SHA256) for wheel in wheels),
            agent=os.path.basename(HERE),
            **self.common,
        )

    def answer(self) -> Json:
        """All steps, in their order."""
        record = self.record()
        signed = signing.check(self.root, record, self.signature) if self.release else None
        blobs, releases = store.Store(self.root), store.Releases(self.root, self.name)
        files = {name: self._files(blobs, chosen) for name, chosen in self.inputs.items()}
        expected = self._files(blobs, field(self.health, "expected", dict)) if self.health else {}
        say("preparing")
        runtime = store.install(self.root, blobs, self.runtime)
        digest = None if runtime is None else os.path.basename(runtime)
        os.makedirs(self.out, exist_ok=True)
        self.previous = releases.current
        if self.release:
            folder = releases.add(blobs, self.model, dict(record, signature=self.signature))
        else:
            folder = os.path.join(self.out, ".model")
            store.place(folder, lambda staging: store.lay_out(blobs, field(self.model, "files", list), staging))
        common = dict(self.common, driver=self.driver, path=os.path.join(folder, self.main))
        before, after, runs = facts.read(), None, []
        try:
            health = self._check(self.health, dict(common, expected=expected), files, runtime) if self.health else None
            if health is None or health["ok"]:
                if self.release:
                    self._switch(releases)
                runs = self._measure(common, files, runtime)
            after = facts.read()
        finally:
            self._clean(releases, digest, keep_outputs=any(run["kind"] in LEFT_OUTPUTS for run in runs))
        return {
            "facts_before": before,
            "facts_after": after,
            "health": health,
            "released": self.released,
            "previous": self.previous,
            "runs": runs,
            "held": self.held,
            "outputs": self.out,
            "hook": self.hook,
            "signed": signed,
        }

    def _files(self, blobs: Any, chosen: Any) -> dict[str, str]:
        if not isinstance(chosen, dict):
            raise AgentError("request", "a set of arrays must be an object: name → sha256")
        return {name: blobs.path(word(chosen, name, store.SHA256)) for name in chosen}

    def _check(self, health: Json, task: Json, files: Json, runtime: str | None) -> Json:
        say("health check")
        chosen, least = field(health, "inputs", str), field(health, "min_cosine", (int, float))
        threads = max([workload["threads"] for workload in self.workloads], default=1)
        task = dict(task, kind="health", threads=threads, inputs=self._chosen(files, chosen), min_cosine=least)
        return dict(work(task, runtime, float(health.get("timeout_seconds", 600)), "the health check")["health"])

    def _chosen(self, files: Json, name: str) -> Json:
        if name not in files:
            raise AgentError("request", f"there is no input set '{name}'; given: {', '.join(files) or 'none'}")
        return dict(files[name])

    def _switch(self, releases: Any) -> None:
        history = [digest for digest in releases.history if digest != self.digest]
        releases.switch(self.digest, [*history, self.digest])
        self.released = True
        if self.previous != self.digest:
            self.hook = releases.notify(self.previous)

    def _measure(self, common: Json, files: Json, runtime: str | None) -> list[Json]:
        with attended.Attendant(self.asked, self.root, say) as attendant:
            runs = self._runs(attendant, common, files, runtime)
        self.held = attendant.found
        return runs

    def _runs(self, attendant: Any, common: Json, files: Json, runtime: str | None) -> list[Json]:
        runs = []
        for workload in self.workloads:
            task = dict(common, **workload)
            task.update(inputs=self._chosen(files, workload["inputs"]), out=os.path.join(self.out, workload["name"]))
            for process in range(workload["processes"]):
                say(f"{workload['name']} {process + 1}/{workload['processes']}")
                what = f"the workload '{workload['name']}'"
                do = functools.partial(work, task, runtime, float(workload["timeout_seconds"]), what)
                observed = workload["kind"] in OBSERVED
                found = attendant.run(do, workload["kind"] == "sustained") if observed else do()["run"]
                runs.append({"workload": workload["name"], "kind": workload["kind"], "process": process, **found})
        return runs

    def _clean(self, releases: Any, runtime: str | None, keep_outputs: bool) -> None:
        store.remove(os.path.join(self.out, ".model") if keep_outputs else self.out)
        releases.prune(self.keep)
        store.prune(self.root, runtime, os.path.basename(HERE))


def run(request: Json, root: str) -> Json:
    """Install, check, switch, measure."""
    job = Run(request, root)
    with store.locked(root, float(request.get("lock_seconds", 60)), stop_without_host):
        held.restore(root)
        try:
            return job.answer()
        except AgentError as failure:
            failure.detail["released"] = job.released
            raise


def rollback(request: Json, root: str) -> Json:
    """Make the release before the current one current again."""
    releases = store.Releases(root, word(request, "model"))
    with store.locked(root, float(request.get("lock_seconds", 60)), stop_without_host):
        current, history = releases.current, releases.history
        earlier = [digest for digest in history if digest != current and digest in store.names(releases.all)]
        digest = word(request, "to") if request.get("to") is not None else earlier[-1] if earlier else None
        if digest is None or digest not in earlier:
            listing = ", ".join(earlier) or "none"
            raise AgentError(
                "release", f"there is no such earlier release of '{request['model']}' here; kept: {listing}"
            )
        signing.check_kept(root, os.path.join(releases.all, digest))
        # What is rolled back from leaves the history, so that a second rollback goes further back and not forth.
        releases.switch(digest, [entry for entry in history if entry not in (current, digest)] + [digest])
        return {"current": digest, "previous": current, "hook": releases.notify(current)}


COMMANDS = {"inspect": inspect, "run": run, "rollback": rollback}


def handle(data: bytes) -> Json:
    """The answer to a request."""
    try:
        request = json.loads(data)
    except ValueError as error:
        raise AgentError("request", f"the request is not JSON: {error}") from error
    if not isinstance(request, dict) or request.get("schema_version") != VERSION:
        raise AgentError("request", f"this agent reads requests of schema_version {VERSION}")
    command = COMMANDS.get(field(request, "command", str))
    if command is None:
        raise AgentError("request", f"a command is one of {', '.join(COMMANDS)}")
    root = os.path.abspath(field(request, "root", str))
    for name in ("store", "runtimes", "models", "runs"):
        os.makedirs(os.path.join(root, name), mode=0o755, exist_ok=True)
    if os.path.basename(os.path.dirname(HERE)) == "agent":
        os.utime(HERE)
    return command(request, root)


def answer(data: bytes) -> Json:
    """The document that is printed, whatever happens."""
    try:
        return dict({"schema_version": VERSION, "ok": True}, **handle(data))
    except AgentError as failure:
        kind, message, detail = failure.kind, str(failure), failure.detail
    except OSError as error:
        kind, message, detail = "internal", str(error), {}
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            kind, message = "disk-full", f"the device's disk is full ({error})"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            kind = "permission"
    except MemoryError:
        kind, message, detail = "out-of-memory", "the agent itself ran out of memory", {}
    except Stopped:
        kind, message, detail = "stopped", "the agent was told to end", {}
    except Exception as error:  # noqa: BLE001  # an answer is printed whatever happens
        kind, message, detail = "internal", f"{type(error).__name__}: {error}", {}
    return {"schema_version": VERSION, "ok": False, "error": {"kind": kind, "message": message, "detail": detail}}


def _stop(_number: int, _frame: Any) -> NoReturn:
    raise Stopped


def main() -> None:
    """Answer one request."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _stop)
    document = answer(sys.stdin.buffer.read(MAX_REQUEST_BYTES))
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
