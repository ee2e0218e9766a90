"""A real OpenSSH server of one's own on the loopback interface, with a home folder of its own."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.core.device import Device

INSTALL = "apt-get install openssh-server openssh-client   (dnf: openssh-server openssh-clients)"
_START_SECONDS = 15.0
_SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")


@dataclass(frozen=True)
class LoginKey:
    """A key pair for logging in.

    Attributes:
        private: The private key's file; the public one has `.pub` appended.
    """

    private: Path

    @property
    def public(self) -> str:
        """The line for an authorized_keys file."""
        return Path(f"{self.private}.pub").read_text()


def make_key(path: Path, passphrase: str = "", kind: str = "ed25519") -> LoginKey:
    """A new key pair."""
    _tool("ssh-keygen")
    for old in (path, Path(f"{path}.pub")):
        old.unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "edgekit-test", "-f", str(path)], check=True
    )
    return LoginKey(path)


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether a condition comes to hold within some time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


class Sshd:
    """A private sshd: its own port, host key, authorized keys and home folder. Use it as a context manager.

    Args:
        folder: An empty folder for everything it needs.
        key: The key that may log in.
        home: Where logins start, for commands and SFTP alike; by default a new folder below `folder`.
        settings: More lines for its sshd_config.
        host_key_kinds: Kinds of its host keys.
    """

    def __init__(
        self,
        folder: Path,
        key: LoginKey,
        home: Path | None = None,
        settings: tuple[str, ...] = (),
        host_key_kinds: tuple[str, ...] = ("ed25519",),
    ) -> None:
        self.folder = folder
        self.key = key
        self.home = home or folder / "home"
        self.user = getpass.getuser()
        self.port = 0
        self._settings = settings
        self._kinds = host_key_kinds
        self.environment = {"HOME": str(self.home)}
        """Of every command and SFTP session on it."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`user@127.0.0.1:port`."""
        return f"{self.user}@127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the server has logged."""
        path = self.folder / "sshd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def known_hosts(self, port: int | None = None, kind: str | None = None) -> str:
        """Its lines of a known_hosts file, as seen on a port (a proxy's, maybe)."""
        kinds = (kind,) if kind else self._kinds
        keys = [" ".join(Path(f"{self._host_key(one)}.pub").read_text().split()[:2]) for one in kinds]
        return "".join(f"[127.0.0.1]:{port or self.port} {key}\n" for key in keys)

    def fingerprint(self, kind: str | None = None) -> str:
        """`SHA256:…` of a host key, as ssh-keygen says it."""
        listing = subprocess.run(
            ["ssh-keygen", "-lf", f"{self._host_key(kind or self._kinds[0])}.pub"],
            check=True,
            capture_output=True,
            text=True,
        )
        return listing.stdout.split()[1]

    def device(self, name: str = "pi", *, port: int | None = None, trusted: bool = True, **options: object) -> Device:
        """A device that is this server; its host key is on record if `trusted`.

        Args:
            name: Its name.
            port: Another port than the server's own: a proxy's.
            trusted: Whether its host key is on record.
            options: More options of the transport; those given here win.
        """
        known = self.folder / f"known_hosts_{name}"
        if trusted:
            known.write_text(self.known_hosts(port))
        else:
            known.unlink(missing_ok=True)
        defaults: dict[str, object] = {
            "key": str(self.key.private),
            "known_hosts": str(known),
            "agent": False,
            "config": str(self._empty_config()),
        }
        return Device(
            name=name,
            target="rpi4",
            transport="ssh",
            address=f"{self.user}@127.0.0.1:{port or self.port}",
            options={**defaults, **options},
        )

    def start(self) -> None:
        """Start it, on the port it had before if there was one."""
        self._prepare()
        for attempt in range(5):
            if not self.port or attempt:
                self.port = _free_port()
            self._write_config()
            with (self.folder / "sshd.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [*self._program(), "-D", "-e", "-f", str(self.folder / "sshd_config")],
                    stdin=subprocess.DEVNULL,
                    stderr=log,
                )
            if self._answers():
                return
            self.stop()
        raise RuntimeError(f"sshd did not start:\n{self.log}")

    def stop(self) -> None:
        """Stop it and everything it started."""
        if self._process is None:
            return
        children = _descendants(self._process.pid)
        self._process.kill()
        self._process.wait()
        self._process = None
        _kill(children)

    def kill_connections(self) -> int:
        """Kill every session of it with all commands in them, as a device that loses its power does.

        Returns:
            How many processes were killed.
        """
        return _kill(_descendants(self.pid))

    @property
    def pid(self) -> int:
        """The server's own process."""
        assert self._process is not None
        return self._process.pid

    def rotate_host_key(self) -> None:
        """Give it new host keys, as after a reinstallation; it restarts on the same port."""
        self.stop()
        for kind in self._kinds:
            make_key(self._host_key(kind), kind=kind)
        self.start()

    def revoke_key(self) -> None:
        """Let the key log in no more."""
        (self.folder / "authorized_keys").write_text("")

    def wrap(self, shell: str) -> None:
        """Have a line of shell done at the start of every command and SFTP session: a limit, a trap, a refusal."""
        home = shlex.quote(str(self.home))
        wrapper = self.folder / "login.sh"
        wrapper.write_text(
            f'#!/bin/sh\ncd {home} || exit 1\nexport HOME={home}\n{shell}\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        wrapper.chmod(0o755)

    def __enter__(self) -> Sshd:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(parents=True, exist_ok=True)
        authorized = self.folder / "authorized_keys"
        if not authorized.exists():
            authorized.write_text(self.key.public)
        for kind in self._kinds:
            if not self._host_key(kind).exists():
                make_key(self._host_key(kind), kind=kind)
        if os.geteuid() == 0:
            # sshd insists on this folder as root, and asks for nothing of the kind otherwise.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        # One wrapper for commands and SFTP, so that both start in the same folder, which is HOME to both.
        if not (self.folder / "login.sh").exists():
            self.wrap("")

    def _write_config(self) -> None:
        sftp = next((path for path in _SFTP_SERVERS if Path(path).exists()), None)
        assert sftp is not None, f"There is no sftp-server in any of {_SFTP_SERVERS}: {INSTALL}"
        lines = [
            *self._settings,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            *(f"HostKey {self._host_key(kind)}" for kind in self._kinds),
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            f"PidFile {self.folder / 'sshd.pid'}",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "AllowTcpForwarding yes",
            "MaxStartups 100",
            "UseDNS no",
            f"Subsystem sftp {sftp}",
            f"ForceCommand {self.folder / 'login.sh'}",
            # Before the wrapper's own: the login's shell reads .bashrc of its home, and what stands there (pyenv takes a
            # lock) would be killed in the middle by the tests that kill everything.
            # On one line: of several the server takes the first.
            "SetEnv " + " ".join(f'"{name}={value}"' for name, value in self.environment.items()),
        ]
        path = self.folder / "sshd_config"
        path.write_text("\n".join(lines) + "\n")
        if self._has_penalties(path):
            path.write_text("PerSourcePenalties no\n" + path.read_text())

    def _program(self) -> list[str]:
        """The server's program, without its options."""
        return [_tool("sshd")]

    def _has_penalties(self, config: Path) -> bool:
        """Whether it is one that shuts out an address after failed logins, which is what some tests are made of."""
        penalties = [*self._program(), "-t", "-f", str(config), "-o", "PerSourcePenalties=no"]
        return subprocess.run(penalties, check=False, capture_output=True).returncode == 0

    def _host_key(self, kind: str) -> Path:
        return self.folder / f"host_{kind}"

    def _empty_config(self) -> Path:
        path = self.folder / "ssh_config"
        if not path.exists():
            path.write_text("")
        return path

    def _answers(self) -> bool:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                return False
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    return probe.recv(4) == b"SSH-"
            except OSError:
                time.sleep(0.02)
        return False


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise RuntimeError(f"These tests need '{name}': {INSTALL}")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _descendants(pid: int) -> list[int]:
    """All processes below one, from /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything; what follows its last parenthesis is regular.
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended while we looked
    found: list[int] = []
    below = [pid]
    while below:
        current = below.pop()
        children = [child for child, parent in parents.items() if parent == current]
        found.extend(children)
        below.extend(children)
    return found


def _kill(pids: list[int]) -> int:
    killed = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            continue  # it ended while we looked
    return killed
