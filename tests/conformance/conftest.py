"""One unit a transport for the contract: a transport that has a fixture `unit_<name>` here is tested with no other code."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit.core.device import Device


@dataclass(frozen=True)
class Unit:
    """A device that a transport reaches, seen from both sides.

    Attributes:
        device: The device.
        home: Its home folder, as this machine sees it.
        take_away_hashes: Makes its programs that hash fail from now on.
    """

    device: Device
    home: Path
    take_away_hashes: Callable[[], object] = lambda: None


@pytest.fixture
def unit_local(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    return Unit(Device("local", "here", "local"), tmp_path / "cache" / "devices" / "local")


@pytest.fixture
def unit_ssh(sshd, own_home):
    bare = sshd.folder / "bare"
    bare.mkdir()
    for name in ("sha256sum", "shasum"):
        (bare / name).write_text("#!/bin/sh\nexit 127\n")
        (bare / name).chmod(0o755)
    return Unit(sshd.device(), sshd.home, lambda: sshd.wrap(f"PATH={shlex.quote(str(bare))}:$PATH"))


@pytest.fixture
def unit_adb(adb_daemon):
    return Unit(adb_daemon.device(), adb_daemon.home, (adb_daemon.bin / "sha256sum").unlink)


@pytest.fixture
def unit_adb_legacy(make_adb_daemon):
    """An older Android: one stream for both outputs and no exit status."""
    daemon = make_adb_daemon(features=("cmd",))
    return Unit(daemon.device(), daemon.home, (daemon.bin / "sha256sum").unlink)
