"""Fixtures for tests that need a device: a real SSH server, and the device's side of ADB, on the loopback interface."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.devices.adb_daemon import AdbDaemon, tool
from tests.devices.sshd import LoginKey, Sshd, make_key


@pytest.fixture(scope="session")
def login_key(tmp_path_factory: pytest.TempPathFactory) -> LoginKey:
    """A key pair that the private servers let in."""
    return make_key(tmp_path_factory.mktemp("login") / "id_ed25519")


@pytest.fixture
def make_sshd(tmp_path: Path, login_key: LoginKey) -> Iterator[Callable[..., Sshd]]:
    """Starts private servers; takes the keyword arguments of `Sshd`."""
    with ExitStack() as stack:
        count = 0

        def make(**arguments: object) -> Sshd:
            nonlocal count
            count += 1
            arguments.setdefault("key", login_key)
            return stack.enter_context(Sshd(tmp_path / f"sshd{count}", **arguments))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    """A private server with an empty home folder of its own, `sshd.home`; `sshd.device()` is a Device for it."""
    return make_sshd()


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for edgekit's own side: keys and configuration of whoever runs the tests take no part."""
    home = tmp_path / "operator"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGEKIT_CONFIG_DIR", str(home / "edgekit"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture(scope="session")
def own_adb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An adb server of the tests' own, on a free port, with keys of its own: its environment. Ended with the tests."""
    home = tmp_path_factory.mktemp("adb-home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"HOME": str(home), "ANDROID_ADB_SERVER_PORT": str(port), "ADB_MDNS": "0", "TMPDIR": str(home)}
    adb = tool("adb")
    yield own
    subprocess.run([adb, "kill-server"], env={**os.environ, **own}, check=False, capture_output=True, timeout=30)


@pytest.fixture
def adb_server(own_adb: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """That server for this test, with no device on it, before and after; gives its environment."""
    adb = tool("adb")
    for name, value in own_adb.items():
        monkeypatch.setenv(name, value)
    environment = {**os.environ, **own_adb}
    yield own_adb
    subprocess.run([adb, "disconnect"], env=environment, check=False, capture_output=True, timeout=30)


@pytest.fixture
def make_adb_daemon(tmp_path: Path, adb_server: dict[str, str]) -> Iterator[Callable[..., AdbDaemon]]:
    """Starts devices that the real `adb` reaches over TCP; takes the keyword arguments of `AdbDaemon`."""
    with ExitStack() as stack:
        count = 0

        def make(**arguments: object) -> AdbDaemon:
            nonlocal count
            count += 1
            return stack.enter_context(AdbDaemon(tmp_path / f"android{count}", **arguments))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def adb_daemon(make_adb_daemon: Callable[..., AdbDaemon]) -> AdbDaemon:
    """A device with an empty /data/local/tmp, `adb_daemon.home`; `adb_daemon.device()` is a Device for it."""
    return make_adb_daemon()
