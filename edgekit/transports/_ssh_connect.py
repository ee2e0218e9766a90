"""Connecting to a device over SSH: sockets, jump hosts, the host key, the login."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from edgekit.core.errors import StableDeviceError, TransientDeviceError
from edgekit.core.extras import require
from edgekit.transports._ssh_errors import lost, translated
from edgekit.transports._ssh_keys import HostKey, judge, known_keys, preferred_algorithms
from edgekit.transports._ssh_route import Hop, SshOptions

LOG_CHANNEL = "edgekit.paramiko"
_DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
_CHANNEL_REQUEST = 98


class Connection:
    """An authenticated connection to a device, through its jump hosts.

    Args:
        hops: The hosts on the way; the last is the device.
        options: The device's options.
    """

    def __init__(self, hops: Sequence[Hop], options: SshOptions) -> None:
        self.hops = tuple(hops)
        self._options = options
        self._transports: list[Any] = []

    @property
    def transport(self) -> Any:
        """Paramiko's Transport to the device."""
        return self._transports[-1]

    def open(self) -> None:
        """Connect and log in, hop by hop; every host key is checked before anything is sent to its host.

        Raises:
            DeviceError: A host cannot be reached, its key is not trusted, or it refuses the login.
        """
        for hop in self.hops:
            judge(hop, self._dial(hop), known_keys(self._options, hop.key_name))
            self._log_in(hop)

    def first_stranger(self) -> tuple[Hop, HostKey]:
        """The first host on the way whose key is not trusted, or else the device; nothing is sent to it but hello.

        Raises:
            DeviceError: A host cannot be reached, or a jump host that is trusted refuses the login.
        """
        for hop in self.hops[:-1]:
            shown = self._dial(hop)
            try:
                judge(hop, shown, known_keys(self._options, hop.key_name))
            except StableDeviceError:
                return hop, shown
            self._log_in(hop)
        return self.hops[-1], self._dial(self.hops[-1])

    def close(self) -> None:
        """Disconnect, the device first."""
        while self._transports:
            self._transports.pop().close()

    def _dial(self, hop: Hop) -> HostKey:
        """Agree on encryption with a host, and see its key."""
        seconds = self._options.connect_timeout_seconds
        with translated(hop, "connecting"):
            transport = _transport_class()(self._socket(hop, seconds))
            self._transports.append(transport)
            transport.set_log_channel(_quiet_log())
            transport.auth_timeout = transport.channel_timeout = seconds
            # Longer than start_client waits, so that silence always ends the same way.
            transport.banner_timeout = 2 * seconds
            offered = transport.get_security_options()
            offered.key_types = preferred_algorithms(known_keys(self._options, hop.key_name), offered.key_types)
            # One pass over the data where paramiko's first choice takes two: a sixth less work for a push.
            offered.ciphers = sorted(offered.ciphers, key=lambda name: "gcm" not in name)
            transport.start_client(timeout=seconds)
            if not transport.is_active() or not transport.initial_kex_done:
                # start_client returns without a word when its time is up.
                raise TimeoutError
            key = transport.get_remote_server_key()
            return HostKey(key.get_name(), key.asbytes())

    def _socket(self, hop: Hop, seconds: float) -> Any:
        if self._transports:
            return self._transports[-1].open_channel(
                "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=seconds
            )
        connected = socket.create_connection((hop.host, hop.port), timeout=seconds)
        # Requests are small and wait for their answers: 40 ms each with Nagle's algorithm.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Else a device that loses its power in the middle of something is noticed only after many minutes.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            stall = round(self._options.stall_seconds * 1000)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall)
        return connected

    def _log_in(self, hop: Hop) -> None:
        with translated(hop, "logging in"):
            Login(self.transport, hop, self._options).run()
        if self._options.keepalive_seconds > 0:
            self.transport.set_keepalive(max(1, round(self._options.keepalive_seconds)))


class Login:
    """Proving to one host who we are: its keys in turn, then the password.

    Args:
        transport: paramiko's Transport, its host key checked.
        hop: The host.
        options: The device's options. A jump host is offered the key, never the password.
    """

    def __init__(self, transport: Any, hop: Hop, options: SshOptions) -> None:
        self._transport = transport
        self._hop = hop
        self._options = options
        self._tried: list[str] = []
        self._accepted: tuple[str, ...] = ()

    def run(self) -> None:
        """Log in.

        Raises:
            DeviceError: Nothing that we have is accepted, or a key that the device's options name cannot be used.
        """
        reference = None if self._hop.is_jump else self._options.password
        with contextlib.closing(self._keys()) as keys:
            for label, key in keys:
                if self._offer(label, key):
                    return
                if self._accepted and "publickey" not in self._accepted:
                    break
        # Resolved only now: where a key is enough the password need not be at hand.
        if reference and self._offer_password(f"the password in {reference.env}", reference.resolve()):
            return
        tried = len(self._tried)
        # Asked only now, since it costs a round trip: a refusal alone does not say what would be accepted.
        if not self._accepted and self._attempt("", lambda: self._transport.auth_none(self._hop.user)):
            return
        del self._tried[tried:]
        raise self._refused()

    def _offer(self, label: str, key: Any) -> bool:
        return self._attempt(label, lambda: self._transport.auth_publickey(self._hop.user, key))

    def _offer_password(self, label: str, password: str) -> bool:
        return self._attempt(label, lambda: self._transport.auth_password(self._hop.user, password))

    def _attempt(self, label: str, authenticate: Any) -> bool:
        """Whether one way of logging in was all that the host wanted."""
        paramiko = require("paramiko", "ssh", "the ssh transport")
        self._tried.append(label)
        try:
            self._accepted = tuple(authenticate())
        except paramiko.BadAuthenticationType as error:
            self._accepted = tuple(error.allowed_types)
        except paramiko.AuthenticationException as error:
            if not self._transport.is_active():
                raise self._cut_off() from error
            if "timeout" in str(error).lower():
                raise TimeoutError from error
        return bool(self._transport.is_authenticated())

    def _cut_off(self) -> StableDeviceError | TransientDeviceError:
        if len(self._tried) > 1:
            # Servers hang up after a few keys (MaxAuthTries): offering the same ones again ends the same way.
            return self._refused()
        return lost(self._hop, "logging in")

    def _refused(self) -> StableDeviceError:
        hop, options = self._hop, self._options
        tried = f"Tried: {'; '.join(self._tried)}." if self._tried else "There was nothing to try: no key, no password."
        accepts = f" It accepts: {', '.join(self._accepted)}." if self._accepted else ""
        key = f" -i {options.key}" if options.key else ""
        host = hop.host
        return StableDeviceError(
            f"The login on {hop} was refused. {tried}{accepts}",
            f"ssh-copy-id{key} -p {hop.port} {hop.user}@{host}   (or set `key:` or `password: {{env: NAME}}`"
            f" in the options of '{hop.device}')",
        )

    def _keys(self) -> Generator[tuple[str, Any], None, None]:
        """The keys to offer, each with what it is called; a key is read only when its turn has come."""
        if self._options.key is not None and not self._hop.is_jump:
            yield from self._named_key(Path(self._options.key).expanduser())
            return
        extra = (Path(self._options.key).expanduser(),) if self._options.key is not None else ()
        yield from self._files((*extra, *self._hop.identities))
        if self._options.agent and not self._hop.identities_only:
            for key in _agent_keys():
                yield f"the agent's key {key.comment or HostKey(key.get_name(), key.asbytes()).fingerprint}", key
        if not self._hop.identities:
            yield from self._files(tuple(Path(name).expanduser() for name in _DEFAULT_KEYS))

    def _files(self, paths: Sequence[Path]) -> Generator[tuple[str, Any], None, None]:
        for path in paths:
            if not path.is_file():
                continue
            try:
                yield f"the key {path}", self._load(path)
            except StableDeviceError as error:
                # One of several keys that merely happen to be there: said only if no other one fits.
                self._tried.append(error.message.rstrip("."))

    def _named_key(self, path: Path) -> Generator[tuple[str, Any], None, None]:
        """The one key that the device's options name; where it is locked, the agent may hold it open."""
        try:
            key = self._load(path)
        except _LockedKeyError:
            public = path.with_name(path.name + ".pub")
            fields = public.read_text().split() if self._options.agent and public.is_file() else []
            held = False
            for key in _agent_keys():
                if key.get_base64() in fields:
                    held = True
                    yield f"the key {path}, held by the agent", key
            if not held:
                raise
        else:
            yield f"the key {path}", key

    def _load(self, path: Path) -> Any:
        paramiko = require("paramiko", "ssh", "the ssh transport")
        reference = self._options.passphrase
        try:
            return paramiko.PKey.from_path(path)
        except FileNotFoundError as error:
            raise StableDeviceError(
                f"The private key '{path}' for {self._hop} does not exist.",
                f"ssh-keygen -t ed25519 -f {path}   (or correct `key:` of '{self._hop.device}')",
            ) from error
        except OSError as error:
            raise StableDeviceError(f"The private key '{path}' cannot be read: {error.strerror}.") from error
        except (TypeError, paramiko.PasswordRequiredException) as error:
            if reference is None:
                raise _LockedKeyError(
                    f"The private key '{path}' needs a passphrase.",
                    f"Set `passphrase: {{env: NAME}}` in the options of '{self._hop.device}', or: ssh-add {path}",
                ) from error
        except (ValueError, paramiko.SSHException, paramiko.UnknownKeyType) as error:
            raise StableDeviceError(
                f"'{path}' is not a private key that edgekit can read.", f"ssh-keygen -y -f {path}"
            ) from error
        passphrase = reference.resolve().encode()
        try:
            return paramiko.PKey.from_path(path, passphrase)
        except (ValueError, TypeError, paramiko.SSHException):
            # Without `from`: what a crypto library says of a wrong passphrase is not ours to vouch for.
            raise StableDeviceError(
                f"The passphrase in {reference.env} does not open the private key '{path}'.", f"ssh-keygen -y -f {path}"
            ) from None


class _LockedKeyError(StableDeviceError):
    """A private key is encrypted and its passphrase was not given."""


def _agent_keys() -> Generator[Any, None, None]:
    """The keys of a running ssh-agent; open as long as the iteration lasts, for they sign through it."""
    paramiko = require("paramiko", "ssh", "the ssh transport")
    try:
        agent = paramiko.Agent()
    except (OSError, paramiko.SSHException) as error:
        logging.getLogger(LOG_CHANNEL).info("the ssh-agent cannot be used: %s", error)
        return
    try:
        yield from agent.get_keys()
    finally:
        agent.close()


@functools.cache
def _quiet_log() -> str:
    """The channel that paramiko logs to: one that prints nothing unless somebody gives it a handler."""
    log = logging.getLogger(LOG_CHANNEL)
    log.addHandler(logging.NullHandler())
    log.propagate = False
    return LOG_CHANNEL


@functools.cache
def _transport_class() -> Any:
    """Paramiko's Transport, taught to hear that a signal ended a command: it drops that message."""
    paramiko = require("paramiko", "ssh", "the ssh transport")
    ordinary = paramiko.Transport._channel_handler_table[_CHANNEL_REQUEST]

    def channel_request(channel: Any, message: Any) -> None:
        start = message.packet.tell()
        if message.get_text() == "exit-signal":
            message.get_boolean()
            name = f"SIG{message.get_text()}"
            number = signal.Signals[name].value if name in signal.Signals.__members__ else 0
            channel.exit_status = 128 + number
            channel.status_event.set()
            return
        message.packet.seek(start)
        ordinary(channel, message)

    table = {**paramiko.Transport._channel_handler_table, _CHANNEL_REQUEST: channel_request}
    return type("Transport", (paramiko.Transport,), {"_channel_handler_table": table})
