from __future__ import annotations

import json

import numpy as np
import pytest

from edgekit.core.artifact import Parity, load_artifact
from edgekit.core.errors import ConfigError, MissingExtraError, VerificationError
from edgekit.core.files import sha256_file
from edgekit.core.lowering import Scheme
from edgekit.flow.cache import Cache
from edgekit.flow.evaluate import reference_outputs
from edgekit.flow.export import export_artifact
from edgekit.flow.verify import TOLERANCES, Verification, agreement, compare, require_parity, run_on_host
from tests.unit.flow import kit


def noisy(scale, shape=(64, 10)):
    generator = np.random.default_rng(0)
    reference = generator.normal(size=shape).astype(np.float32)
    return reference, (reference + scale * generator.normal(size=shape)).astype(np.float32)


def test_equal_outputs_are_as_close_as_can_be():
    reference, _ = noisy(0)
    parity = compare("y", reference, reference.copy())
    assert parity == Parity("y", 64, 0.0, 0.0, 1.0, 999.0, 1.0)


@pytest.mark.parametrize("scale, snr", [(0.1, 20), (0.01, 40), (0.001, 60)])
def test_noise_is_told_in_decibels(scale, snr):
    parity = compare("y", *noisy(scale))
    assert parity.snr_db == pytest.approx(snr, abs=1)
    assert parity.cosine == pytest.approx(1 / np.sqrt(1 + scale**2), abs=1e-3)
    assert parity.max_abs == pytest.approx(parity.max_rel * np.abs(noisy(0)[0]).max())


def test_another_shape_is_refused():
    with pytest.raises(VerificationError, match=r"'y' has the shape \(3, 2\); the model gives \(2, 3\)"):
        compare("y", np.zeros((2, 3)), np.zeros((3, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    reference, got = noisy(0.01)
    got[3, 4] = bad
    with pytest.raises(VerificationError, match="'y' has 1 values that are not finite"):
        compare("y", reference, got)


def test_a_mask_of_infinities_is_right_where_both_have_it():
    reference, got = noisy(0.001)
    reference[:, 7:] = got[:, 7:] = -np.inf
    assert compare("y", reference, got).snr_db > 55
    for wrong in (np.inf, -1e9):
        got[0, 7] = wrong
        with pytest.raises(VerificationError, match="has 1 values"):
            compare("y", reference, got)


def test_where_the_model_itself_gives_nan_nothing_is_compared():
    reference, got = noisy(0.001)
    reference[0, 0] = np.nan
    assert compare("y", reference, got).snr_db > 55


def test_a_constant_zero_is_no_division_by_zero():
    zeros = np.zeros((4, 3), np.float32)
    assert compare("y", zeros, zeros).cosine == 1.0
    assert compare("y", zeros, zeros + 1).snr_db == -999.0


def test_integers_and_truth_values_are_compared_too():
    ids = np.arange(12).reshape(4, 3)
    assert compare("y", ids, ids.astype(np.int32)).snr_db == 999.0
    assert compare("y", ids > 3, ids > 3).cosine == 1.0


def test_agreement_is_the_share_of_equal_first_choices():
    scores = np.eye(4, dtype=np.float32)
    other = scores.copy()
    other[0] = [0, 1, 0, 0]
    assert agreement(scores, other) == 0.75
    assert agreement(scores.astype(int), other) is None
    assert agreement(scores[0], other[0]) is None
    assert agreement(scores[:, :1], other[:, :1]) is None


def test_every_precision_has_a_tolerance():
    # The ladder is no precision: it becomes one before anything is converted.
    assert set(TOLERANCES) == {"float32", *Scheme.__args__} - {"auto"}


@pytest.mark.parametrize("precision, fine", [("float32", False), ("float16", True), ("static_wi8_ai8", True)])
def test_the_tolerance_follows_the_precision(precision, fine):
    parity = {"golden": (compare("y", *noisy(0.01)),)}
    assert (Verification(precision, TOLERANCES[precision], parity).failures() == []) is fine


def test_a_failure_is_told_with_its_output_and_numbers(built):
    verification = Verification("float32", TOLERANCES["float32"], {"golden": (compare("y", *noisy(0.1)),)})
    with pytest.raises(VerificationError) as caught:
        require_parity(built.artifact, verification)
    for part in ("openvino", "digits", "'y' on golden", "cosine 0.99", "dB"):
        assert part in caught.value.message


@pytest.fixture
def builder(built_once):
    return built_once[0]


@pytest.fixture
def built(built_once):
    return built_once[1]


def again(builder, built, artifact):
    source = builder.source
    sets = built.sets[:1]
    references = {s.name: reference_outputs(source.info.digest, source.live, s, Cache(), kit.Heard()) for s in sets}
    return run_on_host(artifact, built.target, sets, references, Cache(), kit.Heard())


def test_an_artifact_with_damaged_weights_is_caught(builder, built, tmp_path):
    folder = export_artifact(built, tmp_path / "out")
    weights = folder / "model.bin"
    values = np.fromfile(weights, np.float32)
    values[:36] *= -1
    values.tofile(weights)
    with pytest.raises(ConfigError, match=r"model\.bin"):
        load_artifact(folder).verify_files()
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        entry["sha256"] = sha256_file(folder / entry["path"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    artifact = load_artifact(folder)
    artifact.verify_files()
    host = again(builder, built, artifact)
    assert host.verification.failures()
    with pytest.raises(VerificationError, match="does not compute what the model computes"):
        require_parity(artifact, host.verification)


def test_without_the_runtime_the_extra_is_named(builder, built, monkeypatch):
    monkeypatch.setattr("edgekit.backends.openvino.OpenVino.can_run", lambda self: False)
    with pytest.raises(MissingExtraError) as caught:
        again(builder, built, built.artifact)
    assert "edgekit[openvino]" in caught.value.hint
