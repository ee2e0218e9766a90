"""Fixtures for tests that need a device: a real SSH server on the loopback interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

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
