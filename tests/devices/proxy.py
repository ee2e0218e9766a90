"""A TCP proxy that cuts the connection after so many bytes: a cable that is pulled at a chosen moment."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

_CHUNK_BYTES = 1 << 14


class CuttingProxy:
    """Forwards to a port on the loopback interface until `cut_after` bytes have passed, both directions together.

    Then the connection is reset on both sides, and every later one passes in full (the cable is in again) unless
    `stays_cut`. With `cut_after=None` nothing is cut and `transferred` tells what a piece of work needs. Use it as a
    context manager.

    Args:
        target_port: Port on 127.0.0.1 to forward to.
        cut_after: Bytes until the cut; exactly so many pass.
        stays_cut: Whether connections after the cut are reset at once.
    """

    def __init__(self, target_port: int, cut_after: int | None = None, *, stays_cut: bool = False) -> None:
        self._target_port = target_port
        self._cut_after = cut_after
        self._stays_cut = stays_cut
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._closing = False
        self.transferred = 0
        self.was_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> CuttingProxy:
        self._spawn(self._accept)
        return self

    def __exit__(self, *details: object) -> None:
        self._closing = True
        # Closing a listener does not wake its accept; a last connection does.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            self._threads[0].join(5)
        self._listener.close()
        self._reset_all()
        for thread in self._threads:
            thread.join(5)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if self._closing or (self.was_cut and self._stays_cut):
                _reset(near)
                if self._closing:
                    return
                continue
            far = socket.create_connection(("127.0.0.1", self._target_port))
            with self._lock:
                self._pairs.append((near, far))
            self._spawn(self._forward, near, far)
            self._spawn(self._forward, far, near)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the other direction was cut or has ended
            while data := source.recv(_CHUNK_BYTES):
                data, cut = self._account(data)
                sink.sendall(data)
                if cut:
                    self._reset_all()
                    return
            sink.shutdown(socket.SHUT_WR)

    def _account(self, data: bytes) -> tuple[bytes, bool]:
        with self._lock:
            if self._cut_after is None or self.was_cut:
                self.transferred += len(data)
                return data, False
            allowed = data[: self._cut_after - self.transferred]
            self.transferred += len(allowed)
            self.was_cut = self.transferred >= self._cut_after
            return allowed, self.was_cut

    def _reset_all(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _reset(end)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
