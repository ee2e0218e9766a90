"""A piece of work in a child process: a request in a file, an outcome in a file, no network, nothing on the screen.

A child because vendor libraries keep global state, are not safe in threads, crash, hang, print and fill memory, and
because only a process of its own has a peak of its own. It may not use the network: some libraries report usage to their
makers without asking, and a deployment tool must not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgekit.core import errors, schema
from edgekit.core.errors import BackendError, EdgekitError
from edgekit.core.files import write_atomic
from edgekit.core.progress import Progress, logger

_QUIET = {
    # openvino and nncf ask this before they look for an analytics host; the audit hook below is for all the others.
    "CI": "true",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # The programs that children read are ours, but a cache may be shared: nothing in them is unpickled.
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
_REQUEST, _RESULT, _LOG = "request.json", "result.json", "log"


@dataclass(frozen=True)
class _Failure:
    type: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a child's work took.

    Attributes:
        seconds: Wall time.
        peak_rss_mib: Its peak resident memory.
        answer: What it answered, as plain data.
        cpu_seconds: Processor time of it and of what it started, from its first instruction.
    """

    seconds: float
    peak_rss_mib: float
    answer: Any = None
    failure: _Failure | None = None
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """What a child is asked to do.

    Attributes:
        module: The module that is run; its `main` calls `serve`.
        what: What it does, as a noun phrase: "the conversion with litert".
        title: What progress calls it: "converting with litert".
        request: Dataclasses, plain data and paths.
    """

    module: str
    what: str
    title: str
    request: Mapping[str, Any]


def run(work: Work, progress: Progress, timeout_seconds: float) -> Outcome:
    """Do a piece of work in a child process.

    Raises:
        EdgekitError: What the child raised, with its own class and words.
        BackendError: It crashed, was killed, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-child-") as name, progress.step(work.title) as step:
        folder = Path(name)
        (folder / _REQUEST).write_bytes(msgspec.json.encode(work.request, enc_hook=str))
        started = time.monotonic()
        code = _wait(work, folder, timeout_seconds, step.advance)
        said = (folder / _LOG).read_text(errors="replace")
        result = folder / _RESULT
        outcome = schema.convert(Outcome, schema.load_json(result)) if result.exists() else None
    # What a vendor's tool printed is for `--verbose`.
    for line in said.splitlines():
        logger.debug("  %s", line)
    if outcome is None:
        raise _death(work.what, code, said, time.monotonic() - started)
    if outcome.failure is not None:
        kind = getattr(errors, outcome.failure.type, BackendError)
        raise kind(outcome.failure.message, outcome.failure.hint)
    return outcome


def environment() -> dict[str, str]:
    """The environment of a child: ours, quiet, with edgekit importable from where we have it."""
    ours = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    return {**os.environ, **_QUIET, "PYTHONPATH": path}


def _wait(work: Work, folder: Path, timeout_seconds: float, alive: Callable[[float], None]) -> int:
    argv = [sys.executable, "-m", work.module, str(folder / _REQUEST), str(folder / _RESULT)]
    with (folder / _LOG).open("wb") as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
        deadline = time.monotonic() + timeout_seconds
        try:
            while True:
                try:
                    return child.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        raise BackendError(
                            f"{_sentence(work.what)} took longer than {timeout_seconds:.0f} s and was stopped.",
                            "Give it more time with --timeout SECONDS.",
                        ) from None
                    alive(0)
        finally:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _death(what: str, code: int, said: str, seconds: float) -> BackendError:
    tail = " / ".join(line.strip() for line in said.strip().splitlines()[-3:])
    if code == -signal.SIGKILL:
        return BackendError(
            f"{_sentence(what)} was killed after {seconds:.0f} s; most often the machine ran out of memory.",
            "Close other programs, convert one target at a time, or use a machine with more memory.",
        )
    how = f"died of signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return BackendError(
        f"{_sentence(what)} {how}{f': {tail}' if tail else ''}.", "Run with --verbose for all of its output."
    )


def _sentence(what: str) -> str:
    return what[:1].upper() + what[1:]


def decoded(raw: Any, kind: type[Any]) -> Any:
    """A part of a request as the dataclass that it was."""
    return msgspec.convert(raw, kind, dec_hook=lambda type_, value: type_(value))


def serve(argv: list[str], what: str, do: Callable[[Mapping[str, Any]], Any]) -> None:
    """The child's side: do the work of a request and end the process.

    Args:
        argv: The files of the request and of the outcome.
        what: What is done, for messages about what nobody foresaw.
        do: The work; gets the request as plain data, gives an answer as plain data.
    """
    forbid_network()
    started = time.monotonic()
    answer, failure = None, None
    try:
        answer = do(msgspec.json.decode(Path(argv[0]).read_bytes()))
    except EdgekitError as error:
        failure = _Failure(type(error).__name__, error.message, error.hint)
    except MemoryError:
        failure = _Failure("BackendError", f"{_sentence(what)} ran out of memory.", "Use a machine with more memory.")
    except Exception as error:  # noqa: BLE001 - whatever a vendor raises has to reach the parent as a message
        import traceback

        traceback.print_exc()
        words = f"{_sentence(what)} failed: {type(error).__name__}: {error}"
        failure = _Failure("BackendError", words[:500], "Run with --verbose.")
    outcome = Outcome(time.monotonic() - started, peak_rss_mib(), answer, failure, sum(os.times()[:4]))
    write_atomic(Path(argv[1]), schema.to_json(outcome))
    sys.stdout.flush()
    sys.stderr.flush()
    # Vendor libraries keep threads and atexit hooks that can hang; everything we want is on disk already.
    os._exit(0 if failure is None else 1)


def forbid_network() -> None:
    """Refuse, from here on and for the whole process, every connection but those within this machine's file system."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
            raise PermissionError("a conversion may not use the network")
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg") and not isinstance(arguments[1], str | bytes):
            raise PermissionError("a conversion may not use the network")

    sys.addaudithook(hook)


def peak_rss_mib() -> float:
    """Peak resident memory of this process, in MiB."""
    # Not ru_maxrss on Linux: a child inherits its parent's value across exec.
    status: Mapping[str, str] = {}
    with contextlib.suppress(OSError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    if "VmHWM" in status:
        return int(status["VmHWM"].split()[0]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
