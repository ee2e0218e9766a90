"""A device in a folder: the agent's real files, called as a host calls them, and a driver that does what it is told."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

AGENT = Path(__file__).resolve().parents[3] / "edgekit" / "agent"

# The model is a file with one number; y = x · number. `options` make it misbehave.
DRIVER = """
import os, signal, time
import numpy as np

class Driver:
    OPTIONS = ("batch", "errno", "import", "memory", "note", "refuse", "signal", "sleep")

    def __init__(self, path, threads, bindings, options):
        self.path, self.options = path, options
        if options.get("import"):
            __import__(options["import"])

    def load(self):
        if self.options.get("refuse"):
            raise ValueError("not a model")
        self.factor = np.float32(open(self.path).read())
        size = self.options.get("batch", 2)
        self.inputs = [{"name": "x", "shape": [size, 3], "dtype": "float32"}]
        self.outputs = [{"name": "y", "shape": [size, 3], "dtype": "float32"}]

    def prepare(self, arrays):
        self.x = arrays["x"]

    def invoke(self):
        print("a library that prints")
        if "note" in self.options:
            open(self.options["note"], "w").write(str(os.getpid()))
        if "signal" in self.options:
            os.kill(os.getpid(), self.options["signal"])
        if "sleep" in self.options:
            time.sleep(self.options["sleep"])
        if "errno" in self.options:
            raise OSError(self.options["errno"], "told to")
        if "memory" in self.options:
            raise MemoryError
        self.y = self.x * self.factor

    def results(self):
        return {"y": self.y}

    def facts(self):
        return {"runtime": "test", "runtime_version": "1", "threads": 1}
"""


class DeviceFolder:
    """A folder that stands for a device."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.agent = self.root / "agent" / "0123456789abcdef"
        self.agent.mkdir(parents=True)
        for path in AGENT.glob("*.py"):
            shutil.copy(path, self.agent)
        (self.agent / "device_test.py").write_text(DRIVER)
        (self.root / "store").mkdir()

    def start(self, request: dict, python: str = sys.executable) -> subprocess.Popen:
        body = {"schema_version": 1, "root": str(self.root), **request}
        process = subprocess.Popen(
            [python, str(self.agent / "agent.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        process.stdin.write(json.dumps(body).encode())
        process.stdin.close()
        process.stdin = None
        return process

    def ask(self, request: dict) -> dict:
        process = self.start(request)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return json.loads(out)

    def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        (self.root / "store" / name).write_bytes(data)
        return name

    def put_array(self, array, folder: Path) -> str:
        np.save(folder / "array.npy", array)
        return self.put((folder / "array.npy").read_bytes())

    def run_request(self, folder: Path, factor: float = 2.0, expected: float | None = None, **changes) -> dict:
        x = np.arange(15, dtype=np.float32).reshape(5, 3)
        main = str(factor).encode()
        health = None
        if expected is not None:
            y = self.put_array(x * np.float32(expected), folder)
            health = {"inputs": "golden", "expected": {"y": y}, "min_cosine": 0.99}
        return {
            "command": "run",
            "run_id": "r1",
            "runtime": {"kind": "host"},
            "model": {
                "name": "digits",
                "digest": f"digest{factor}",
                "main": "model.txt",
                "files": [{"path": "model.txt", "sha256": self.put(main), "bytes": len(main)}],
            },
            "driver": "device_test.py",
            "bindings": {},
            "options": {},
            "inputs": {"golden": {"x": self.put_array(x, folder)}},
            "health": health,
            "release": True,
            "keep_releases": 2,
            "workloads": [workload()],
        } | changes

    @property
    def current(self) -> str | None:
        link = self.root / "models" / "digits" / "current"
        return link.readlink().name if link.is_symlink() else None


def workload(kind: str = "outputs", **changes) -> dict:
    return {
        "kind": kind,
        "name": kind,
        "threads": 1,
        "inputs": "golden",
        "warmup_runs": 2,
        "min_runs": 3,
        "max_runs": 4,
        "min_seconds": 0.0,
        "max_seconds": 5.0,
        "processes": 1,
        "timeout_seconds": 30.0,
    } | changes


def a_wheel(path: Path, files: dict[str, str], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (modes or {}).get(name, 0o100644) << 16
            archive.writestr(entry, text)
    return path
