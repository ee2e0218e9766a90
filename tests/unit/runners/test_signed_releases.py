"""Signed releases, through the real agent: what a device takes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgekit.core import signing
from edgekit.core.errors import ConfigError, StableDeviceError
from edgekit.core.progress import Silent
from edgekit.runners.agent import AgentRunner


class Told(Silent):
    """Keeps the notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Chooses the key by its name; none to begin with."""
    monkeypatch.setenv("EDGEKIT_CONFIG_DIR", str(tmp_path / "config"))

    def choose(name):
        monkeypatch.setenv(signing.KEY_VARIABLE, str(tmp_path / f"{name}.pem"))
        return signing.signer() if (tmp_path / f"{name}.pem").exists() else signing.make()

    choose.nobody = lambda: monkeypatch.delenv(signing.KEY_VARIABLE)
    return choose


def deploy(job, local, progress=None):
    return AgentRunner().execute(job, local.transport, progress or Silent())


def root(local):
    return local.transport.home / ".edgekit"


def test_without_a_key_nothing_is_signed_and_nothing_pinned(job, local, keys):
    assert deploy(job, local).released is True
    assert not (root(local) / "trusted-key").exists()


def test_the_first_signed_release_pins_its_key_and_says_so(job, local, keys):
    ours, told = keys("ours"), Told()
    assert deploy(job, local, told).released is True
    assert (root(local) / "trusted-key").read_text() == ours.public + "\n"
    assert any(ours.short in note for note in told.notes)
    told.notes.clear()
    assert deploy(job, local, told).released is True
    assert not [note for note in told.notes if "signed" in note]


def test_another_key_and_no_key_are_refused_before_anything_is_sent(job, local, keys):
    keys("ours")
    deploy(job, local)
    pushed = []
    local.transport.push = lambda *args, **options: pushed.append(args)
    theirs = keys("theirs")
    with pytest.raises(StableDeviceError, match=theirs.short):
        deploy(job, local)
    keys.nobody()
    with pytest.raises(StableDeviceError, match="there is no signing key here") as caught:
        deploy(job, local)
    assert "trusted-key" in caught.value.hint
    assert pushed == []


def test_measuring_without_a_release_needs_no_signature(job, local, keys):
    keys("ours")
    deploy(job, local)
    keys.nobody()
    assert deploy(replace(job, release=False), local).released is False


def test_the_device_itself_refuses_a_signature_of_something_else(job, local, keys, monkeypatch):
    keys("ours")
    deploy(job, local)
    statement = signing.statement
    monkeypatch.setattr(signing, "statement", lambda release: statement({**release, "digest": "another"}))
    with pytest.raises(StableDeviceError, match="is not of this release"):
        deploy(job, local)


def test_a_host_that_lies_about_its_key_gets_no_further(job, local, keys, monkeypatch):
    keys("ours")
    deploy(job, local)
    pinned = (root(local) / "trusted-key").read_text().strip()
    theirs = keys("theirs")
    lying = signing.Signer(pinned, theirs.path, theirs._private)
    monkeypatch.setattr(signing, "signer", lambda: lying)
    with pytest.raises(StableDeviceError, match="is not of this release"):
        deploy(job, local)


def test_a_damaged_key_file_opens_the_device_to_nobody(job, local, keys):
    keys("ours")
    deploy(job, local)
    (root(local) / "trusted-key").write_text("not a key")
    with pytest.raises(StableDeviceError, match="does not hold a key"):
        deploy(job, local)


def second(job, tmp_path):
    """Another release of the same model: its inputs' specs are the same, its file has one more byte of metadata."""
    from edgekit.core.artifact import describe_files, load_artifact

    folder = tmp_path / "second"
    folder.mkdir()
    for path in job.artifact.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "note.txt").write_text("second")
    (folder / "manifest.json").unlink()
    document["files"] = [
        {"path": entry.path, "sha256": entry.sha256, "bytes": entry.bytes} for entry in describe_files(folder)
    ]
    (folder / "manifest.json").write_text(json.dumps(document))
    return replace(job, artifact=load_artifact(folder))


def test_a_rollback_goes_to_a_signed_release_with_whole_files_only(job, local, keys, tmp_path):
    keys("ours")
    deploy(job, local)
    deploy(second(job, tmp_path), local)
    folder = root(local) / "models/tiny/releases" / job.artifact.digest
    record = json.loads((folder / "release.json").read_text())
    (folder / "release.json").write_text(json.dumps({**record, "main": "other.onnx"}))
    with pytest.raises(StableDeviceError, match="is not of this release"):
        AgentRunner().rollback(local.transport, "tiny")
    (folder / "release.json").write_text(json.dumps(record))
    model = folder / record["main"]
    content = model.read_bytes()
    model.unlink()
    model.write_bytes(content[:-1] + b"x")
    with pytest.raises(Exception, match="was damaged or removed"):
        AgentRunner().rollback(local.transport, "tiny")
    model.write_bytes(content)
    assert AgentRunner().rollback(local.transport, "tiny").current == job.artifact.digest


def test_a_key_is_never_overwritten(keys):
    made = keys("ours")
    with pytest.raises(ConfigError, match="already"):
        signing.make()
    assert signing.signer().public == made.public


def test_a_key_is_readable_by_its_owner_only(keys):
    assert keys("ours").path.stat().st_mode & 0o777 == 0o600


def test_a_password_protects_the_key_and_is_in_no_error(keys, monkeypatch):
    monkeypatch.setenv(signing.PASSWORD_VARIABLE, "open sesame")
    made = keys("ours")
    assert b"ENCRYPTED" in made.path.read_bytes()
    monkeypatch.setenv(signing.PASSWORD_VARIABLE, "wrong guess")
    with pytest.raises(ConfigError) as caught:
        signing.signer()
    assert "guess" not in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_a_key_that_is_asked_for_and_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(signing.KEY_VARIABLE, str(tmp_path / "absent.pem"))
    with pytest.raises(ConfigError, match=r"absent\.pem"):
        signing.signer()


def test_host_and_device_sign_the_same_bytes():
    import importlib.util
    import sys

    from tests.unit.agent.kit import AGENT

    sys.path.insert(0, str(AGENT))
    try:
        spec = importlib.util.spec_from_file_location("agent_signing", AGENT / "signing.py")
        device = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(device)
    finally:
        sys.path.remove(str(AGENT))
    release = dict.fromkeys(device.SIGNED)
    release |= {
        "options": {"rate": 1e-7, "großes": 1e22, "n": np.float64(0.1).item()},
        "files": [{"path": "ü", "bytes": 1}],
    }
    assert (device.SIGNED, device.DOMAIN) == (signing.SIGNED, signing.DOMAIN)
    assert device.statement(release) == signing.statement(release)
