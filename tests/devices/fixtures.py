"""Fixtures for tests that need a device: a real SSH server, and the device's side of ADB, on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.devices.adb_daemon import AdbDaemon, tool
from tests.devices.pi import PI4_32BIT, PI4_BULLSEYE, EmulatedPi
from tests.devices.rootfs import UnavailableError
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


@contextlib.contextmanager
def _running(pi: EmulatedPi) -> Iterator[EmulatedPi]:
    """Started and stopped; the tests that ask for it are skipped where this machine cannot run it."""
    try:
        pi.start()
    except UnavailableError as error:
        pytest.skip(str(error))
    try:
        yield pi
    finally:
        pi.stop()


@pytest.fixture(scope="session")
def emulated_pi(tmp_path_factory: pytest.TempPathFactory, login_key: LoginKey) -> Iterator[EmulatedPi]:
    """An emulated Raspberry Pi 4 with the 64-bit system, behind a real SSH server."""
    with _running(EmulatedPi(tmp_path_factory.mktemp("pi") / "pi", login_key)) as pi:
        yield pi


@pytest.fixture(scope="session")
def emulated_pi_bullseye(tmp_path_factory: pytest.TempPathFactory, login_key: LoginKey) -> Iterator[EmulatedPi]:
    """The same with the system before: Python 3.9 and glibc 2.31."""
    with _running(EmulatedPi(tmp_path_factory.mktemp("pi39") / "pi", login_key, PI4_BULLSEYE)) as pi:
        yield pi


@pytest.fixture(scope="session")
def emulated_pi_32bit(tmp_path_factory: pytest.TempPathFactory, login_key: LoginKey) -> Iterator[EmulatedPi]:
    """One with the 32-bit system, which has NumPy of its own."""
    with _running(EmulatedPi(tmp_path_factory.mktemp("pi32") / "pi", login_key, PI4_32BIT, "rpi-32bit")) as pi:
        yield pi
