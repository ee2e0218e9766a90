"""The drivers with their real runtimes, each in the worker's real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unit.agent.kit import AGENT, workload
from tests.unit.agent.models import WEIGHTS, onnx_model, openvino_model, tflite_model

MAKERS = {"onnxruntime": onnx_model, "openvino": openvino_model, "litert": tflite_model}


@pytest.fixture(params=sorted(MAKERS))
def task(request, tmp_path):
    main, bindings = MAKERS[request.param](tmp_path, batch=2)
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    return workload("outputs") | {
        "driver": str(AGENT / f"device_{request.param}.py"),
        "path": str(tmp_path / main),
        "bindings": bindings,
        "options": {},
        "inputs": {"x": str(tmp_path / "x.npy")},
        "out": str(tmp_path / "out"),
    }


def work(task, home):
    home.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "CI" and not key.startswith("XDG_")}
    process = subprocess.Popen(
        [sys.executable, str(AGENT / "worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    process.stdin.write(json.dumps(task).encode() + b"\n")
    process.stdin.flush()
    out = process.stdout.read()
    err = process.stderr.read()
    process.communicate()
    return json.loads(out), err


def test_a_driver_computes_what_the_model_says(task, tmp_path):
    answer, _ = work(task, tmp_path / "home")
    run = answer["run"]
    assert run["examples"] == 3
    expected = np.arange(12, dtype=np.float32).reshape(3, 4) @ WEIGHTS
    assert np.allclose(np.load(tmp_path / "out" / "y.npy"), expected, atol=1e-5)
    assert run["runtime"]["threads"] == 1
    assert run["runtime"]["runtime_version"][0].isdigit()


def test_a_runtime_writes_nothing_to_the_home_folder(task, tmp_path):
    work(task, tmp_path / "home")
    assert not list((tmp_path / "home").rglob("*"))


def test_a_file_that_is_no_model_is_an_error_of_the_model(task, tmp_path):
    Path(task["path"]).write_bytes(b"not a model")
    answer, _ = work(task, tmp_path / "home")
    assert answer["error"]["kind"] == "model"


def test_an_unknown_option_is_named_with_those_there_are(task, tmp_path):
    answer, _ = work(task | {"options": {"presicion": "f16"}}, tmp_path / "home")
    assert answer["error"]["kind"] == "request"
    assert "has no option 'presicion'; it has: " in answer["error"]["message"]


def test_an_input_of_another_type_is_named(task, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.int8))
    answer, _ = work(task, tmp_path / "home")
    assert answer["error"] == {
        "kind": "model",
        "message": "the model's input 'x' is float32, the input set's is int8",
    }


@pytest.mark.parametrize("applied", [True, False])
def test_litert_tells_whether_xnnpack_was_applied(tmp_path, applied):
    main, bindings = tflite_model(tmp_path, batch=2)
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    task = workload("latency") | {
        "driver": str(AGENT / "device_litert.py"),
        "path": str(tmp_path / main),
        "bindings": bindings,
        "options": {"xnnpack": applied},
        "inputs": {"x": str(tmp_path / "x.npy")},
    }
    answer, _ = work(task, tmp_path / "home")
    assert answer["run"]["runtime"]["xnnpack_applied"] is applied


def test_openvino_computes_in_float32_unless_told_otherwise(tmp_path):
    main, bindings = openvino_model(tmp_path, batch=2)
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    task = workload("latency") | {
        "driver": str(AGENT / "device_openvino.py"),
        "path": str(tmp_path / main),
        "bindings": bindings,
        "options": {},
        "inputs": {"x": str(tmp_path / "x.npy")},
    }
    answer, _ = work(task, tmp_path / "home")
    assert answer["run"]["runtime"]["precision"] == "f32"
