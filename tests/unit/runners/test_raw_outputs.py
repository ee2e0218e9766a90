"""Inputs as raw bytes and outputs as `.npy`: several of each, batches, and layouts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgekit.core.errors import ConfigError, StableDeviceError
from edgekit.core.model import TensorSpec
from edgekit.core.workload import RunPlan, RuntimeRequirement
from edgekit.runners._raw_outputs import RawOutputs
from edgekit.runners.base import Job
from tests.unit.agent.models import artifact_in, tflite_model


@pytest.fixture
def make_raw(tmp_path):
    artifact = artifact_in(tmp_path / "artifact", tflite_model, backend="litert")

    def make(arrays, inputs, outputs, **options):
        files = {}
        for name, array in arrays.items():
            files[name] = tmp_path / f"{name}.npy"
            np.save(files[name], array)
        manifest = replace(artifact.manifest, inputs=inputs, outputs=outputs)
        plan = RunPlan("litert", "device_litert.py", "model.tflite", RuntimeRequirement(()), (), options=options)
        job = Job(replace(artifact, manifest=manifest), plan, tmp_path / "outputs", {"set": files})
        return RawOutputs(job, "set", "set")

    return make


def blob(raw):
    with raw.blob() as (path, _):
        return path.read_bytes()


A, B = np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3, dtype=np.int64).reshape(3, 1)
TWO = (TensorSpec("a", (2, 2)), TensorSpec("b", (2, 1), dtype="int64"))
OUT = (TensorSpec("y", (2, 3)), TensorSpec("z", (2,), dtype="int32"))


def test_a_call_has_its_inputs_one_after_the_other_and_the_last_is_filled_up(make_raw):
    raw = make_raw({"a": A, "b": B}, TWO, OUT)
    assert (raw.examples, raw.calls, raw.call_bytes) == (3, 2, 2 * 2 * 4 + 2 * 8)
    filled = A[2:].tobytes() * 2 + B[2:].tobytes() * 2
    assert blob(raw) == A[:2].tobytes() + B[:2].tobytes() + filled
    assert raw.shapes == [("a", "float32", (2, 2)), ("b", "int64", (2, 1))]


def test_outputs_come_apart_again_without_the_filling(make_raw, tmp_path):
    raw = make_raw({"a": A, "b": B}, TWO, OUT)
    y, z = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4, dtype=np.int32)
    (tmp_path / "raw").write_bytes(b"".join(y[i : i + 2].tobytes() + z[i : i + 2].tobytes() for i in (0, 2)))
    found = raw.read(tmp_path / "raw", "box")
    np.testing.assert_array_equal(np.load(found["y"]), y[:3])
    np.testing.assert_array_equal(np.load(found["z"]), z[:3])


def test_outputs_of_the_wrong_size_are_refused(make_raw, tmp_path):
    raw = make_raw({"a": A, "b": B}, TWO, OUT)
    (tmp_path / "raw").write_bytes(b"short")
    with pytest.raises(StableDeviceError, match=r"'box' gave 5 bytes for 'y', 'z'; .* make 64"):
        raw.read(tmp_path / "raw", "box")


def test_arrays_of_exactly_the_models_shapes_are_one_call(make_raw):
    inputs = (TensorSpec("a", (3, 2)), TensorSpec("b", (1,)))
    raw = make_raw({"a": A, "b": np.zeros(1, np.float32)}, inputs, (TensorSpec("y", (5,)),))
    assert raw.calls == 1
    assert raw.shapes == [("a", "float32", (3, 2)), ("b", "float32", (1,))]


def test_a_layout_of_the_files_own_is_made_here(make_raw):
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    raw = make_raw({"a": image}, (TensorSpec("a", (1, 4, 5, 3)),), OUT, permute={"a": [0, 2, 3, 1]})
    assert (raw.calls, raw.shapes) == (2, [("a", "float32", (1, 4, 5, 3))])
    assert blob(raw) == np.ascontiguousarray(image.transpose(0, 2, 3, 1)).tobytes()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [({"a": A}, "inputs are a, b; the set 'set' has a"), ({"a": A, "b": B[:2]}, "do not have the same number")],
)
def test_a_set_that_does_not_fit_is_refused(arrays, words, make_raw):
    with pytest.raises(ConfigError, match=words):
        make_raw(arrays, TWO, OUT)
