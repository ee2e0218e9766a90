"""A small SSH server that takes a password: OpenSSH's own would need an account of the system to test that."""

from __future__ import annotations

import contextlib
import socket
import threading

import paramiko


class _Rules(paramiko.ServerInterface):
    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_auth_password(self, username: str, password: str) -> int:
        right = (username, password) == (self._user, self._password)
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        def answer() -> None:
            # The client ends its input only once it was told that the command runs: nothing may overtake that.
            while channel.recv(1024):
                continue
            channel.sendall(command)
            channel.send_exit_status(0)
            channel.close()

        threading.Thread(target=answer, daemon=True).start()
        return True


class PasswordServer:
    """Answers a command with the command itself. Use it as a context manager.

    Args:
        user: Who may log in.
        password: With what.
    """

    def __init__(self, user: str, password: str) -> None:
        self._rules = _Rules(user, password)
        self._key = paramiko.ECDSAKey.generate()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sessions: list[paramiko.Transport] = []
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def known_hosts(self) -> str:
        """Its line of a known_hosts file."""
        return f"[127.0.0.1]:{self.port} {self._key.get_name()} {self._key.get_base64()}\n"

    def __enter__(self) -> PasswordServer:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for session in self._sessions:
            session.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            session = paramiko.Transport(connection)
            session.set_log_channel("edgekit.paramiko")
            session.add_server_key(self._key)
            self._sessions.append(session)
            session.start_server(event=threading.Event(), server=self._rules)
