"""Messages and streams of the ADB transport protocol, on the device's side."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = (
    int.from_bytes(w, "little") for w in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
AUTH_TOKEN = 1
VERSION = 0x01000001
MAX_PAYLOAD = 256 << 10


class GoneError(Exception):
    """The other side is not there any more."""


@dataclass(frozen=True)
class Message:
    """One message."""

    command: int
    arg0: int
    arg1: int
    data: bytes = b""

    def encoded(self) -> bytes:
        """As it goes over the wire; the checksum is a sum of bytes, which newer hosts do not look at."""
        checksum = sum(self.data) & 0xFFFFFFFF if len(self.data) < 4096 else 0
        head = struct.pack(
            "<6I", self.command, self.arg0, self.arg1, len(self.data), checksum, self.command ^ 0xFFFFFFFF
        )
        return head + self.data


def read_exactly(peer: socket.socket, count: int) -> bytes:
    """Bytes of a socket.

    Raises:
        GoneError: It ended before.
    """
    data = bytearray()
    while len(data) < count:
        piece = peer.recv(count - len(data))
        if not piece:
            raise GoneError
        data += piece
    return bytes(data)


def read_message(peer: socket.socket) -> Message:
    """The next message."""
    command, arg0, arg1, length, _, magic = struct.unpack("<6I", read_exactly(peer, 24))
    if magic != command ^ 0xFFFFFFFF:
        raise GoneError
    return Message(command, arg0, arg1, read_exactly(peer, length))


class Stream:
    """One service's stream: bytes in both directions, one unacknowledged message at a time."""

    def __init__(self, local: int, remote: int, send: Callable[[Message], None]) -> None:
        self.local = local
        self.remote = remote
        self._send = send
        self._buffer = bytearray()
        self._condition = threading.Condition()
        self._credit = True
        self._lost = False

    def arrived(self, data: bytes) -> None:
        """Bytes of the host."""
        with self._condition:
            self._buffer += data
            self._condition.notify_all()

    def acknowledged(self) -> None:
        """The host took the last message."""
        with self._condition:
            self._credit = True
            self._condition.notify_all()

    def lose(self) -> None:
        """The host has closed it, or is gone."""
        with self._condition:
            self._lost = True
            self._condition.notify_all()

    @property
    def is_lost(self) -> bool:
        """Whether the host has closed it."""
        return self._lost

    def read(self, count: int) -> bytes:
        """Exactly so many bytes.

        Raises:
            GoneError: The host closed it before.
        """
        with self._condition:
            while len(self._buffer) < count:
                if self._lost:
                    raise GoneError
                self._condition.wait(0.5)
            data = bytes(self._buffer[:count])
            del self._buffer[:count]
            return data

    def write(self, data: bytes) -> None:
        """Bytes to the host.

        Raises:
            GoneError: The host closed it before.
        """
        for start in range(0, len(data), MAX_PAYLOAD):
            with self._condition:
                while not self._credit:
                    if self._lost:
                        raise GoneError
                    self._condition.wait(0.5)
                if self._lost:
                    raise GoneError
                self._credit = False
            self._send(Message(WRTE, self.local, self.remote, data[start : start + MAX_PAYLOAD]))
