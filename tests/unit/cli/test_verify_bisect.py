from __future__ import annotations

import shutil

import pytest

from tests.e2e.kit import write
from tests.unit.flow import nets


@pytest.fixture
def compiled(person):
    files = {"edgekit.yaml": "schema_version: 1\nname: net\nsource: model.py:build\ntargets: [intel-cpu]\n"}
    write(person.cwd, files | {"model.py": nets.MODEL})
    person.run("compile", "--min-snr-db", "70").check()
    return person


ARTIFACT = "build/net/intel-cpu-openvino-float32"


def test_bisect_names_the_layer_that_a_damaged_file_hits(compiled):
    assert "No layer diverges (tolerance: 70 dB" in compiled.run("verify", ARTIFACT, "--bisect").check().out
    shutil.copytree(compiled.cwd / ARTIFACT, compiled.cwd / "bad")
    nets.spoil_openvino(compiled.cwd / "bad", "right.conv")
    said = compiled.run("verify", "bad", "--bisect")
    assert said.code == 1
    assert "First layer that diverges: right.conv (conv2d) (tolerance: 70 dB" in said.out
    assert "the last good one before it is the model itself (relu) at 1" in said.out
    assert "'model.bin' of the artifact 'bad' is not what its manifest says" in said.err
    document = compiled.run("verify", "bad", "--bisect", "--json").json
    assert document["ok"] is False
    assert document["bisection"]["first"]["path"] == "right.conv"
    assert {layer["status"] for layer in document["bisection"]["layers"]} == {"same", "fused", "diverged"}
    assert compiled.run("verify", "bad").code == 2


def test_bisect_refuses_another_source_and_a_source_wants_bisect(compiled):
    write(compiled.cwd, {"other.py": nets.MODEL.replace("manual_seed(0)", "manual_seed(1)")})
    said = compiled.run("verify", ARTIFACT, "--bisect", "--source", "other.py:build")
    assert said.code == 2
    assert "made from another model than other.py:build gives now: it came from model.py:build" in said.err
    said = compiled.run("verify", ARTIFACT, "--source", "other.py:build")
    assert (said.code, "Add --bisect" in said.err) == (2, True)
