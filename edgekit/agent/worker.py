"""One workload in one fresh process on a device: numpy and the backend's driver only, Python 3.9 or newer.

Reads one JSON task, a line, from standard input and writes one JSON result to standard output. Standard input stays
open as long as the agent lives: when it ends, so does this process.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
import urllib.parse
import zipfile
from collections.abc import Iterator
from typing import Any

Specs = list[dict[str, Any]]
_OURS = ("memory", "timing")


class TaskError(Exception):
    """Something that is wrong with the request or the model; `kind` is one of the agent's error kinds."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"edgekit: {text}\n")
    sys.stderr.flush()


def load_file(path: str) -> Any:
    """The module in a file, without making its folder importable."""
    stem = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(f"edgekit_{stem}", path)
    if spec is None or spec.loader is None:
        raise TaskError("request", f"'{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Loaded, not imported: on a device these files lie side by side and belong to no package, on a host they do.
memory, timing = (load_file(os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")) for name in _OURS)
status_mib, pss_mib, reset_peak = memory.status_mib, memory.pss_mib, memory.reset_peak


# --- inputs and outputs ---------------------------------------------------------------------------------------------


class InputSet:
    """Memory-mapped examples, cut into calls of the model's static batch size.

    Args:
        files: One `.npy` an input name; the first axis counts examples.
        specs: The driver's inputs.

    Attributes:
        whole: Whether the arrays have exactly the model's shapes: then they are one call, whatever their axes mean.
        examples: Number of examples.
        batch: Examples a call.
    """

    def __init__(self, files: dict[str, str], specs: Specs) -> None:
        import numpy as np

        self._np = np
        names = [spec["name"] for spec in specs]
        if sorted(files) != sorted(names):
            given = ", ".join(sorted(files)) or "none"
            raise TaskError("request", f"the model's inputs are {', '.join(names)}; given: {given}")
        self._arrays = {name: _opened(files[name], name) for name in names}
        for spec in specs:
            _check(spec, self._arrays[spec["name"]])
        self.whole = all(self._arrays[s["name"]].shape == tuple(s["shape"]) for s in specs)
        self.batch = _batch_of(specs, self.whole)
        counts = {name: len(array) if array.ndim else 1 for name, array in self._arrays.items()}
        if not self.whole and len(set(counts.values())) > 1:
            listing = ", ".join(f"{name}: {count}" for name, count in counts.items())
            raise TaskError("request", f"the inputs do not have the same number of examples ({listing})")
        self.examples = self.batch if self.whole else next(iter(counts.values()))
        if self.examples == 0:
            raise TaskError("request", "the input set has no examples")

    def calls(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Arrays of exactly the model's shapes, and how many of their examples count: the rest pads the last call."""
        if self.whole:
            yield {name: self._np.ascontiguousarray(array) for name, array in self._arrays.items()}, self.batch
            return
        for start in range(0, self.examples, self.batch):
            valid = min(self.batch, self.examples - start)
            yield {name: self._rows(array, start, valid) for name, array in self._arrays.items()}, valid

    def _rows(self, array: Any, start: int, valid: int) -> Any:
        rows = array[start : start + valid]
        if valid < self.batch:
            rows = self._np.concatenate([rows, self._np.repeat(rows[-1:], self.batch - valid, axis=0)])
        return self._np.ascontiguousarray(rows)


def _opened(path: str, name: str) -> Any:
    import numpy as np

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise TaskError("request", f"the file for '{name}' is not an .npy array: {error}") from error


def _check(spec: dict[str, Any], array: Any) -> None:
    name, shape = spec["name"], list(spec["shape"])
    if any(size is None for size in shape):
        raise TaskError("model", f"the model's input '{name}' has no static shape: {shape}")
    if array.dtype.name != spec["dtype"]:
        raise TaskError(
            "model", f"the model's input '{name}' is {spec['dtype']}, the input set's is {array.dtype.name}"
        )
    if array.ndim != len(shape) or list(array.shape[1:]) != shape[1:]:
        raise TaskError(
            "model", f"the model's input '{name}' has the shape {shape}, the input set's {list(array.shape)}"
        )


def _batch_of(specs: Specs, whole: bool) -> int:
    sizes = {spec["name"]: spec["shape"][0] if spec["shape"] else 1 for spec in specs}
    if not whole and len(set(sizes.values())) > 1:
        listing = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise TaskError(
            "model", f"the model's inputs do not share one batch size ({listing}), so examples cannot be cut"
        )
    return int(next(iter(sizes.values()), 1))


class NpyWriter:
    """An `.npy` file written part by part. Not a memory map: on a full disk that is a bus error, not an exception."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stream: Any = None
        self._rows = 0
        self._kind: tuple[Any, ...] = ()

    def add(self, rows: Any) -> None:
        """Append along the first axis."""
        import numpy as np

        rows = np.atleast_1d(np.ascontiguousarray(rows))
        if self._stream is None:
            self._stream = open(self._path, "wb")  # noqa: SIM115  # closed by `close`
            self._kind = (rows.dtype, rows.shape[1:])
            self._header(0)
        if (rows.dtype, rows.shape[1:]) != self._kind:
            raise TaskError("model", f"the model's output changed its shape between calls: {list(rows.shape)}")
        self._stream.write(rows.tobytes())
        self._rows += len(rows)

    def close(self) -> None:
        """Write the final header and make the file durable."""
        if self._stream is not None:
            self._stream.seek(0)
            self._header(self._rows)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()

    def _header(self, rows: int) -> None:
        import numpy as np

        kind, tail = self._kind
        text = repr({"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (rows, *tail)})
        # A fixed length: the number of rows is known only at the end, and the bytes behind it must not move.
        self._stream.write(b"\x93NUMPY\x01\x00" + (246).to_bytes(2, "little") + text.ljust(245).encode() + b"\n")


# --- workloads ------------------------------------------------------------------------------------------------------


def infer(driver: Any) -> float:
    """One inference, timed; in milliseconds. A driver whose runtime is on yet another device has the time of that one."""
    start = time.perf_counter_ns()
    driver.invoke()
    return float(getattr(driver, "invoke_ms", (time.perf_counter_ns() - start) / 1e6))


def latency(driver: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Repeated inferences on the first call of the input set."""
    arrays, _ = next(InputSet(task["inputs"], driver.inputs).calls())
    driver.prepare(arrays)
    return dict(timing.latency(driver, lambda: infer(driver), task, task["mark"]))


def sustained(driver: Any, task: dict[str, Any]) -> dict[str, Any]:
    """As `latency`, but without a pause for as long as is asked, and told as windows."""
    arrays, _ = next(InputSet(task["inputs"], driver.inputs).calls())
    driver.prepare(arrays)
    return dict(timing.sustained(lambda: infer(driver), task, say))


def load(_driver: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Loading alone, which is done by now: its time is the answer, and whether the files came from the disk."""
    return {"cold": task["cold"]}


def evicted(path: str) -> bool:
    """Put what lies in a model's folder out of the page cache; whether it was gone from there, as far as can be told."""
    cold = hasattr(os, "posix_fadvise")
    for folder, _, names in os.walk(os.path.dirname(path)):
        for name in names if cold else ():
            handle = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(handle)  # a page that is not on the disk yet stays
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                cold = cold and not _is_cached(handle)
            finally:
                os.close(handle)
    return cold


def _is_cached(handle: int) -> bool:
    """Whether a file's first page can be read without the disk."""
    try:
        return bool(os.preadv(handle, [bytearray(1)], 0, os.RWF_NOWAIT))
    except BlockingIOError:
        return False
    except (OSError, AttributeError):
        return True  # this system does not tell, so nothing is claimed


def each_call(driver: Any, files: dict[str, str]) -> Iterator[tuple[dict[str, Any], int, float]]:
    """Outputs of each call without the padding, how many examples they are of, and how long the inference took."""
    inputs = InputSet(files, driver.inputs)
    done, told = 0, time.monotonic()
    for arrays, valid in inputs.calls():
        driver.prepare(arrays)
        milliseconds = infer(driver)
        found = driver.results()
        if not inputs.whole and inputs.batch > 1:
            for name, value in found.items():
                if not value.ndim or len(value) != inputs.batch:
                    size = list(value.shape)
                    raise TaskError("model", f"the output '{name}' {size} has no axis for the batch of {inputs.batch}")
            found = {name: value[:valid] for name, value in found.items()}
        done += valid
        if time.monotonic() - told > 1:
            told = time.monotonic()
            say(f"{done} of {inputs.examples} examples")
        yield found, valid, milliseconds


def outputs(driver: Any, task: dict[str, Any]) -> dict[str, Any]:
    """The outputs of all examples, one `.npy` an output in the folder `task["out"]`."""
    os.makedirs(task["out"], exist_ok=True)
    writers: dict[str, NpyWriter] = {}
    first, examples = None, 0
    for found, valid, milliseconds in each_call(driver, task["inputs"]):
        if first is None:
            first = milliseconds
            task.get("mark", str)("first run")
        for name, value in found.items():
            if name not in writers:
                path = os.path.join(task["out"], urllib.parse.quote(name, safe="") + ".npy")
                writers[name] = NpyWriter(path)
            writers[name].add(value)
        examples += valid
    for writer in writers.values():
        writer.close()
    task.get("mark", str)("steady")
    return {"first_inference_ms": first, "examples": examples}


def intermediates(driver: Any, task: dict[str, Any]) -> dict[str, Any]:
    """The model's inner values of all examples: `intermediates.npz` in `task["out"]`, as `docs/agent-protocol.md` says."""
    import numpy as np

    os.makedirs(task["out"], exist_ok=True)
    columns: dict[str, list[Any]] = {}
    examples = 0
    for arrays, valid in InputSet(task["inputs"], driver.inputs).calls():
        for name, value in driver.intermediates(arrays).items():
            columns.setdefault(name, []).append(value)
        examples += valid
    index = [{"name": name, "file": f"{place:05d}"} for place, name in enumerate(columns)]
    with zipfile.ZipFile(os.path.join(task["out"], "intermediates.npz"), "w") as archive:
        archive.writestr("index.json", json.dumps(index))
        for entry, values in zip(index, columns.values()):
            with archive.open(entry["file"] + ".npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.stack(values), allow_pickle=False)
    return {"examples": examples}


def health(driver: Any, task: dict[str, Any]) -> dict[str, Any]:
    """How close the outputs are to those that the host expects."""
    import numpy as np

    expected = {name: _opened(path, name) for name, path in task["expected"].items()}
    names = [spec["name"] for spec in driver.outputs]
    if sorted(names) != sorted(expected):
        raise TaskError("request", f"the model's outputs are {', '.join(names)}; expected: {', '.join(expected)}")
    found: dict[str, list[Any]] = {name: [] for name in names}
    for values, _, _ in each_call(driver, task["inputs"]):
        for name, value in values.items():
            found[name].append(np.atleast_1d(value))
    worst, largest, trouble = 1.0, 0.0, ""
    for name, parts in found.items():
        got = np.concatenate(parts).astype(np.float64).ravel()
        want = np.asarray(expected[name]).astype(np.float64).ravel()
        if got.size != want.size:
            raise TaskError("model", f"the output '{name}' has {got.size} values, expected are {want.size}")
        if not np.isfinite(got).all():
            return {"ok": False, "message": f"the output '{name}' has values that are not finite"}
        cosine = _cosine(got, want)
        if cosine < worst:
            worst, trouble = cosine, name
        largest = max(largest, float(np.max(np.abs(got - want), initial=0.0)))
    ok = worst >= task["min_cosine"]
    message = "" if ok else f"the output '{trouble}' has cosine {worst:.4f}; at least {task['min_cosine']} is asked for"
    return {"ok": bool(ok), "cosine": worst, "max_abs": largest, "message": message}


def _cosine(left: Any, right: Any) -> float:
    import numpy as np

    norms = float(np.linalg.norm(left)) * float(np.linalg.norm(right))
    if norms == 0:
        return 1.0 if np.array_equal(left, right) else 0.0
    value = float(left @ right) / norms
    return min(1.0, value) if math.isfinite(value) else 0.0


KINDS = {
    "latency": latency,
    "sustained": sustained,
    "load": load,
    "outputs": outputs,
    "intermediates": intermediates,
    "health": health,
}


# --- the process ----------------------------------------------------------------------------------------------------


def staged(kind: str, action: Any) -> tuple[Any, float]:
    """Run a stage and time it in milliseconds; what it raises becomes an error of `kind`."""
    start = time.perf_counter_ns()
    try:
        value = action()
    except (TaskError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TaskError(kind, f"{type(error).__name__}: {error}") from error
    return value, (time.perf_counter_ns() - start) / 1e6


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Do one task and measure the memory of it."""

    def construct() -> Any:
        kind = load_file(task["driver"]).Driver
        unknown = sorted(set(task["options"]) - set(kind.OPTIONS))
        if unknown:
            file, known = os.path.basename(task["driver"]), ", ".join(kind.OPTIONS) or "none"
            raise TaskError("request", f"{file} has no option '{unknown[0]}'; it has: {known}")
        return kind(task["path"], task["threads"], task["bindings"], task["options"])

    driver, init_ms = staged("runtime", construct)
    try:
        return measured(driver, init_ms, task)
    finally:
        if hasattr(driver, "close"):
            driver.close()


def measured(driver: Any, init_ms: float, task: dict[str, Any]) -> dict[str, Any]:
    """Do the task with a driver that has not loaded yet."""
    stages = memory.Stages()
    stages.mark("import")
    if task["kind"] == "load":
        task["cold"] = evicted(task["path"])
    if hasattr(driver, "open") and hasattr(driver, "allocate"):
        # What a runtime does in two steps is told as two; `load` is both.
        _, open_ms = staged("model", driver.open)
        stages.mark("load")
        _, allocate_ms = staged("model", driver.allocate)
        stages.mark("allocate")
        load_ms = open_ms + allocate_ms
    else:
        _, load_ms = staged("model", driver.load)
        stages.mark("load")
    load_ms = float(getattr(driver, "load_ms", load_ms))
    task["mark"] = stages.mark
    found, _ = staged("model", lambda: KINDS[task["kind"]](driver, task))
    if task["kind"] == "health":
        return {"health": found}
    if "steady" not in stages.sizes:
        stages.mark("steady")
    runtime = driver.facts() if stages.cleared else dict(driver.facts(), clear_refs=False)
    done = dict(found, init_ms=init_ms, load_ms=load_ms, runtime=runtime)
    return {"run": dict(done, memory=stages.figures(), stages=stages.sizes)}


def _end_with_agent() -> None:
    while os.read(0, 1):
        continue
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """The process: result to the real standard output, whatever libraries print there to standard error."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_agent, daemon=True).start()
    try:
        answer = work(task)
    except TaskError as error:
        answer = {"error": {"kind": error.kind, "message": str(error)}}
    except MemoryError:
        answer = {"error": {"kind": "out-of-memory", "message": "there is not enough memory for the model"}}
    except OSError as error:
        kind = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "internal"
        answer = {"error": {"kind": kind, "message": str(error)}}
    except Exception as error:  # noqa: BLE001  # an answer is printed whatever happens
        answer = {"error": {"kind": "internal", "message": f"{type(error).__name__}: {error}"}}
    results.write(json.dumps(answer) + "\n")
    results.flush()
    # Some runtimes hang or crash in their destructors; the work is done and nothing here needs them.
    os._exit(0)


if __name__ == "__main__":
    main()
