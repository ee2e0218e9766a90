from __future__ import annotations

import numpy as np
import pytest

import edgekit
from edgekit.core.errors import ConfigError, VerificationError
from edgekit.core.user_code import fresh_modules
from edgekit.flow.measure import Settings
from edgekit.flow.store import Store
from tests.unit.flow import kit

QUICK = Settings(processes=2, warmup_runs=1, min_runs=3, min_seconds=0.0, max_seconds=2.0)


@pytest.fixture
def project(tasked, monkeypatch):
    monkeypatch.delenv("EDGEKIT_RESULTS", raising=False)
    return edgekit.load(tasked)


def test_a_project_is_loaded_from_its_folder_and_a_source_from_anywhere(plain, tmp_path, monkeypatch):
    assert edgekit.load(plain).name == "digits"
    monkeypatch.chdir(plain)
    assert edgekit.load().source == "model.py:build"
    monkeypatch.chdir(tmp_path)
    alone = edgekit.load("plain/model.py:build", name="other")
    assert (alone.name, alone.source) == ("other", str(plain / "model.py:build"))


def test_compress_gives_the_live_model_with_its_history(tasked):
    (tasked / "recipe.yaml").write_text("schema_version: 1\npasses: [{fold_batch_norm: {}}]\n")
    model = edgekit.compress(edgekit.load(tasked, recipe="recipe.yaml"))
    assert [record.name for record in model.history] == ["fold_batch_norm"]
    assert model.program.run(model.example_inputs)["output"].shape == (1, 3)


@pytest.mark.slow
def test_a_model_goes_to_this_machine_and_comes_back_as_numbers(project, tmp_path):
    artifact = edgekit.compile(project, target="intel-cpu", out=tmp_path / "out")
    assert artifact.path == tmp_path / "out"
    assert artifact.manifest.backend == "openvino"

    (result,) = edgekit.deploy(project, target="intel-cpu", settings=QUICK)
    assert (result.model, result.backend, result.device, result.transport) == ("digits", "openvino", "local", "local")
    assert (result.released, result.artifact_digest) == (True, artifact.digest)
    latency = result.measured("latency_ms")
    assert (latency.unit, latency.kind, len(latency.processes)) == ("ms", "samples", 2)
    assert min(latency.values) > 0
    assert result.accuracy.examples == 5
    assert result.accuracy.device == pytest.approx(result.accuracy.host)
    assert result.accuracy.agreement == {"output": 1.0}
    assert [parity.output for parity in result.parity] == ["output"]

    (again,) = edgekit.measure(project, target="intel-cpu", settings=QUICK)
    assert (again.released, again.conversion.cached) == (False, True)
    with Store.open(project.root / ".edgekit" / "results.sqlite") as store:
        assert {found.id for found in store.results()} == {result.id, again.id}


@pytest.mark.slow
def test_a_release_that_computes_something_else_on_the_device_is_not_switched_to(project, tmp_path):
    from edgekit.flow.build import Builder
    from edgekit.flow.deploy import deploy
    from edgekit.flow.export import export_artifact, open_artifact
    from edgekit.flow.verify import local_device

    built = Builder(project, kit.Heard()).build(kit.intel())
    out = export_artifact(built, tmp_path / "out")
    expected = out / "golden" / "expected" / "output.npy"
    np.save(expected, -np.load(expected))
    with Store.open(tmp_path / "results.sqlite") as store, pytest.raises(VerificationError, match="health check"):
        deploy(open_artifact(out), [local_device(kit.intel())], QUICK, store, kit.Heard())


def test_a_target_and_a_device_that_are_unknown_are_named(project):
    with pytest.raises(ConfigError, match="no target 'intel-cpuu'.*intel-cpu"):
        edgekit.compile(project, target="intel-cpuu")
    with pytest.raises(ConfigError):
        edgekit.deploy(project, target="rpi4")


def test_an_edited_source_is_seen_by_the_next_call(project):
    first = edgekit.compress(project).digest
    model = project.root / "model.py"
    model.write_text(model.read_text().replace("manual_seed(0)", "manual_seed(12)"))
    assert edgekit.compress(project).digest != first
    with fresh_modules():
        assert edgekit.compress(project).digest != first
