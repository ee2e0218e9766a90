"""One conversion in a child process: `python -m edgekit.flow.convert REQUEST RESULT`, and the parent's side of it.

A child process because torch's exporter keeps global state and is not safe in threads, because converters crash, hang,
print and fill memory, and because only a process of its own has a peak of its own. The child may not use the network:
some converters report usage to their makers without asking, and a deployment tool must not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgekit.backends.base import CompileRequest, registry
from edgekit.core import errors, schema
from edgekit.core.artifact import BUILD, Artifact, BuildInfo, load_artifact
from edgekit.core.errors import BackendError, EdgekitError
from edgekit.core.files import write_atomic
from edgekit.core.progress import Progress

DEFAULT_TIMEOUT_SECONDS = 1800.0
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


@dataclass(frozen=True)
class _Failure:
    type: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class _Outcome:
    seconds: float
    peak_rss_mib: float
    failure: _Failure | None = None


def convert(
    backend: str,
    request: CompileRequest,
    out: Path,
    progress: Progress,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> Artifact:
    """Convert in a child process and record what it took in the artifact's `build.json`.

    Raises:
        UnsupportedModelError: The backend cannot take the model.
        BackendError: The vendor's converter failed, crashed, or took too long.
    """
    with (
        tempfile.TemporaryDirectory(prefix="edgekit-convert-") as work,
        progress.step(f"converting with {backend}") as step,
    ):
        folder = Path(work)
        _write_request(folder / "request.json", backend, request, out)
        log = folder / "log"
        started = time.monotonic()
        code = _run_child(folder, log, timeout_seconds, step)
        said = log.read_text(errors="replace")
        outcome = _read_outcome(folder / "result.json")
        if said.strip():
            progress_log(said)
    if outcome is not None and outcome.failure is not None:
        kind = getattr(errors, outcome.failure.type, BackendError)
        raise kind(outcome.failure.message, outcome.failure.hint)
    if outcome is None:
        raise _death(backend, code, said, time.monotonic() - started)
    info = BuildInfo(schema.SCHEMA_VERSION, outcome.seconds, outcome.peak_rss_mib)
    write_atomic(out / BUILD, schema.to_json(info))
    return load_artifact(out)


def progress_log(said: str) -> None:
    """Keep what a vendor's tool printed where `--verbose` shows it."""
    from edgekit.core.progress import logger

    for line in said.splitlines():
        logger.debug("  %s", line)


def child_environment() -> dict[str, str]:
    """The environment of a child: ours, quiet, with edgekit importable from where we have it."""
    ours = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    return {**os.environ, **_QUIET, "PYTHONPATH": path}


def _run_child(folder: Path, log: Path, timeout_seconds: float, step: Any) -> int:
    argv = [sys.executable, "-m", "edgekit.flow.convert", str(folder / "request.json"), str(folder / "result.json")]
    with log.open("wb") as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(),
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
                            f"The conversion took longer than {timeout_seconds:.0f} s and was stopped.",
                            "Give it more time with --timeout SECONDS.",
                        ) from None
                    step.advance(0)
        finally:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _death(backend: str, code: int, said: str, seconds: float) -> BackendError:
    tail = " / ".join(line.strip() for line in said.strip().splitlines()[-3:])
    if code == -signal.SIGKILL:
        return BackendError(
            f"The conversion with {backend} was killed after {seconds:.0f} s; most often the machine ran out of memory.",
            "Close other programs, convert one target at a time, or use a machine with more memory.",
        )
    how = f"died of signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return BackendError(
        f"The conversion with {backend} {how}{f': {tail}' if tail else ''}.",
        "Run with --verbose for all of its output.",
    )


def _read_outcome(path: Path) -> _Outcome | None:
    return schema.convert(_Outcome, schema.load_json(path)) if path.exists() else None


def _write_request(path: Path, backend: str, request: CompileRequest, out: Path) -> None:
    path.write_bytes(msgspec.json.encode({"backend": backend, "request": request, "out": out}, enc_hook=str))


def _read_request(path: Path) -> tuple[str, CompileRequest, Path]:
    raw = msgspec.json.decode(path.read_bytes())
    request = msgspec.convert(raw["request"], CompileRequest, dec_hook=_decode_path)
    return raw["backend"], request, Path(raw["out"])


def _decode_path(kind: type[Any], value: Any) -> Any:
    return kind(value)


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


def main(argv: list[str]) -> int:
    """The child's side."""
    forbid_network()
    started = time.monotonic()
    failure = None
    try:
        backend, request, out = _read_request(Path(argv[0]))
        registry.create(backend).compile(request, out)
    except EdgekitError as error:
        failure = _Failure(type(error).__name__, error.message, error.hint)
    except MemoryError:
        failure = _Failure("BackendError", "The conversion ran out of memory.", "Use a machine with more memory.")
    except Exception as error:  # noqa: BLE001 - whatever a vendor raises has to reach the parent as a message
        import traceback

        traceback.print_exc()
        failure = _Failure(
            "BackendError", f"The conversion failed: {type(error).__name__}: {error}"[:500], "Run with --verbose."
        )
    outcome = _Outcome(time.monotonic() - started, peak_rss_mib(), failure)
    write_atomic(Path(argv[1]), schema.to_json(outcome))
    return 0 if failure is None else 1


if __name__ == "__main__":
    # Vendor libraries keep threads and atexit hooks that can hang; everything we want is on disk already.
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
