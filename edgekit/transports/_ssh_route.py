"""Where an SSH device is: its address, what `~/.ssh/config` says of it, and the jump hosts on the way."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core.device import SecretReference
from edgekit.core.errors import ConfigError
from edgekit.core.extras import require

SSH_PORT = 22
_MAX_JUMPS = 8
_HOST = re.compile(r"^(?:\[(?P<bracketed>[^\[\]\s]+)\]|(?P<plain>[^:\[\]\s/]+))(?::(?P<port>\d{1,5}))?$")


@dataclass(frozen=True)
class SshOptions:
    """What `options:` of an SSH device may hold.

    Attributes:
        key: Private key file; only this one is tried. By default those of the ssh configuration, the agent's and
            `~/.ssh/id_*`.
        password: Where the login's password is to be found.
        passphrase: Where the passphrase of the private key is to be found.
        known_hosts: File of trusted host keys. By default `~/.ssh/known_hosts` and edgekit's own beside it.
        config: File in the form of ssh_config; by default `~/.ssh/config`.
        proxy_jump: Hosts to go through, as `ssh -J` takes them; `none` goes straight, whatever the configuration says.
        agent: Whether keys of a running ssh-agent are tried.
        connect_timeout_seconds: Given to each host on the way for connecting and again for logging in.
        keepalive_seconds: Something is sent after this much silence; 0 for never.
    """

    key: str | None = None
    password: SecretReference | None = None
    passphrase: SecretReference | None = None
    known_hosts: str | None = None
    config: str | None = None
    proxy_jump: str | None = None
    agent: bool = True
    connect_timeout_seconds: float = 15.0
    keepalive_seconds: float = 15.0

    @property
    def stall_seconds(self) -> float:
        """A transfer in which nothing moves for this long is given up: three keep-alives and one for the road."""
        return 4 * self.keepalive_seconds if self.keepalive_seconds > 0 else 60.0


@dataclass(frozen=True)
class Hop:
    """One host on the way to a device; the last is the device.

    Attributes:
        device: Name of the device that the way leads to.
        host: Name or IP address to connect to.
        port: TCP port.
        user: Login there.
        key_name: The name that known_hosts files have it under.
        identities: Private keys that the ssh configuration names for it.
        identities_only: Whether the agent's other keys are not to be offered.
        is_jump: Whether it is only passed through.
    """

    device: str
    host: str
    port: int
    user: str
    key_name: str
    identities: tuple[Path, ...] = ()
    identities_only: bool = False
    is_jump: bool = False

    @property
    def address(self) -> str:
        """`user@host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"

    def __str__(self) -> str:
        if self.is_jump:
            return f"the jump host {self.address} of the device '{self.device}'"
        return f"the device '{self.device}' ({self.address})"


def known_hosts_name(host: str, port: int) -> str:
    """The name of a host in a known_hosts file: the port is part of it unless it is 22."""
    return host.lower() if port == SSH_PORT else f"[{host.lower()}]:{port}"


def parse_address(text: str, device: str) -> tuple[str | None, str, int | None]:
    """User, host and port of `[user@]host[:port]`; an IPv6 address stands in brackets.

    Raises:
        ConfigError: It is not of that form.
    """
    user, at, place = text.removeprefix("ssh://").removesuffix("/").rpartition("@")
    match = _HOST.match(place)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (at and not user) or (port is not None and not 0 < port < 1 << 16):
        brackets = " An IPv6 address stands in brackets: [fe80::1]:22." if place.count(":") > 1 else ""
        raise ConfigError(
            f"The address '{text}' of the device '{device}' is not of the form [user@]host[:port].{brackets}",
            f"edgekit devices show {device}",
        )
    return user or None, match["bracketed"] or match["plain"], port


def route(address: str, options: SshOptions, device: str) -> tuple[Hop, ...]:
    """The hosts to connect to one after the other; the last is the device.

    Raises:
        ConfigError: The address or the ssh configuration is wrong, or asks for what is not supported.
    """
    config = _Config(options.config, device)
    hop, jumps = _resolve(address, config, device, is_jump=False)
    if options.proxy_jump is not None:
        jumps = _jump_list(options.proxy_jump)
    return (*_through(jumps, config, device, ()), hop)


def _through(jumps: tuple[str, ...], config: _Config, device: str, seen: tuple[str, ...]) -> tuple[Hop, ...]:
    """The hops of a jump list. As with ssh, only the first host of the list may have jump hosts of its own."""
    hops: list[Hop] = []
    for index, text in enumerate(jumps):
        if text in seen or len(seen) >= _MAX_JUMPS:
            raise ConfigError(
                f"The jump hosts of the device '{device}' lead in a circle: {' → '.join((*seen, text))}.",
                f"Mend ProxyJump in {config.path}",
            )
        hop, own = _resolve(text, config, device, is_jump=True)
        if index == 0:
            hops.extend(_through(own, config, device, (*seen, text)))
        hops.append(hop)
    return tuple(hops)


def _resolve(text: str, config: _Config, device: str, *, is_jump: bool) -> tuple[Hop, tuple[str, ...]]:
    user, alias, port = parse_address(text, device)
    entry = config.lookup(alias)
    host = str(entry.get("hostname", alias))
    port = port or _port(entry, config)
    alias_of_key = entry.get("hostkeyalias")
    hop = Hop(
        device=device,
        host=host,
        port=port,
        user=user or str(entry.get("user") or getpass.getuser()),
        key_name=str(alias_of_key).lower() if alias_of_key else known_hosts_name(host, port),
        identities=tuple(
            Path(file).expanduser() for file in entry.get("identityfile", ()) if str(file).lower() != "none"
        ),
        identities_only=str(entry.get("identitiesonly", "no")).lower() == "yes",
        is_jump=is_jump,
    )
    return hop, _jumps_of(entry, alias, config)


def _port(entry: Mapping[str, Any], config: _Config) -> int:
    text = str(entry.get("port", SSH_PORT))
    if not text.isdecimal():
        raise ConfigError(f"{config.path}: the port '{text}' is not a number.")
    return int(text)


def _jumps_of(entry: Mapping[str, Any], alias: str, config: _Config) -> tuple[str, ...]:
    # As in ssh, whichever of ProxyCommand and ProxyJump is obtained first wins; the lookup keeps that order.
    for key, value in entry.items():
        if key == "proxycommand":
            if value is None or str(value).lower() == "none":
                return ()
            raise ConfigError(
                f"{config.path}: '{alias}' has a ProxyCommand, which edgekit does not run.",
                "Use ProxyJump instead, or set proxy_jump: in the device's options",
            )
        if key == "proxyjump":
            return _jump_list(str(value))
    return ()


def _jump_list(text: str) -> tuple[str, ...]:
    if text.strip().lower() in ("", "none"):
        return ()
    return tuple(part.strip() for part in text.split(","))


class _Config:
    """A file in the form of ssh_config; empty where the default one does not exist."""

    def __init__(self, path: str | None, device: str) -> None:
        self.path = Path(path or "~/.ssh/config").expanduser()
        self._parsed: Any = None
        if not self.path.is_file():
            if path is not None:
                raise ConfigError(f"The device '{device}' names the ssh configuration '{path}', which does not exist.")
            return
        paramiko = require("paramiko", "ssh", "the ssh transport")
        try:
            self._parsed = paramiko.SSHConfig.from_path(str(self.path))
        except (OSError, UnicodeDecodeError, paramiko.SSHException) as error:
            raise ConfigError(f"'{self.path}' cannot be read: {error}.") from error

    def lookup(self, alias: str) -> Mapping[str, Any]:
        """What the configuration says of a host, by lower-case keyword, in the order in which it was obtained."""
        if self._parsed is None:
            return {}
        try:
            found: Mapping[str, Any] = self._parsed.lookup(alias)
        except Exception as error:
            # paramiko raises whatever its Match helpers do, ImportError for `Match exec` among it.
            raise ConfigError(f"'{self.path}' cannot be used for '{alias}': {error}.") from error
        return found
