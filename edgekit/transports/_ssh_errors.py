"""What paramiko and sockets raise, said in our own words: what happened, to whom, and what to do next."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from edgekit.core.errors import DeviceError, EdgekitError, StableDeviceError, TransientDeviceError
from edgekit.core.extras import require
from edgekit.transports._ssh_route import Hop

_CONNECT_FAILED = 2
_RESOURCE_SHORTAGE = 4


class RemoteFileError(Exception):
    """The SFTP server answered a request with an error.

    Attributes:
        code: Its status code.
        text: What it says.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@contextlib.contextmanager
def translated(hop: Hop, doing: str) -> Iterator[None]:
    """Turn whatever the library raises in the block into a DeviceError.

    Args:
        hop: The host that is talked to.
        doing: What was being done, as a phrase: "connecting", "pushing 'x'".
    """
    paramiko = require("paramiko", "ssh", "the ssh transport")
    try:
        yield
    except (EdgekitError, OSError, EOFError, paramiko.SSHException, paramiko.SFTPError) as error:
        stop = _interruption(error)
        if stop is not None:
            # What failed after Ctrl-C failed because of it: told as a lost connection it would be tried again.
            raise stop from None
        if isinstance(error, EdgekitError):
            raise
        raise explain(error, hop, doing) from error


def _interruption(error: BaseException) -> BaseException | None:
    """The Ctrl-C, or the order to end, in whose wake an error came."""
    seen: BaseException | None = error
    while seen is not None and isinstance(seen, Exception):
        seen = seen.__context__
    return seen


def explain(error: BaseException, hop: Hop, doing: str) -> DeviceError:
    """The DeviceError for what a connection, a login or a transfer raised."""
    paramiko = require("paramiko", "ssh", "the ssh transport")
    probe = f"edgekit devices probe {hop.device}"
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return TransientDeviceError(f"The name of {hop} cannot be looked up at the moment.", probe)
        return StableDeviceError(
            f"There is no host '{hop.host}': {hop} cannot be found.", f"edgekit devices show {hop.device}"
        )
    if isinstance(error, paramiko.IncompatiblePeer):
        return StableDeviceError(
            f"{capitalized(hop)} and edgekit have no encryption in common: {error}.",
            "Update the SSH server there, or paramiko here: pip install --upgrade paramiko",
        )
    if isinstance(error, paramiko.ChannelException):
        return _refused_channel(error.code, hop, doing)
    if isinstance(error, TimeoutError):
        return TransientDeviceError(f"{capitalized(hop)} did not answer in time while {doing}.", probe)
    if isinstance(error, ConnectionRefusedError):
        return TransientDeviceError(
            f"{capitalized(hop)} refused the connection: no SSH server listens on port {hop.port}.",
            f"Is it on, and its SSH server running? Then: {probe}",
        )
    if isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN):
        return TransientDeviceError(
            f"{capitalized(hop)} cannot be reached: {error.strerror}.", f"Is it on, and in this network? Then: {probe}"
        )
    text = str(error).rstrip(": ") if isinstance(error, paramiko.SSHException) else ""
    # That one says the same again.
    detail = f" ({text})" if text and text != "Server connection dropped" else ""
    return TransientDeviceError(f"The connection to {hop} was lost while {doing}{detail}.", probe)


def lost(hop: Hop, doing: str) -> TransientDeviceError:
    """The error for a connection that is gone."""
    return TransientDeviceError(
        f"The connection to {hop} was lost while {doing}.", f"edgekit devices probe {hop.device}"
    )


def _refused_channel(code: int, hop: Hop, doing: str) -> DeviceError:
    if code == _CONNECT_FAILED:
        return TransientDeviceError(
            f"{capitalized(hop)} cannot be reached from the jump host before it.",
            f"Is it on, and its SSH server running? Then: edgekit devices probe {hop.device}",
        )
    if code == _RESOURCE_SHORTAGE:
        return TransientDeviceError(
            f"{capitalized(hop)} has no room for another session while {doing}.", f"edgekit devices probe {hop.device}"
        )
    return StableDeviceError(
        f"An SSH server on the way refused to open a channel to {hop} while {doing}.",
        "Check AllowTcpForwarding (of a jump host) and MaxSessions in its sshd_config.",
    )


def capitalized(hop: Hop) -> str:
    """The host's description at the beginning of a sentence."""
    text = str(hop)
    return text[0].upper() + text[1:]
