"""The SSH transport: one connection a job, commands as one exec each, files over one SFTP session.

`address` in devices.yaml is `[user@]host[:port]`, an IPv6 address in brackets, or a name of `~/.ssh/config`. Host keys
are always checked, of jump hosts too, whatever the ssh configuration says.
"""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError
from edgekit.core.extras import is_installed, require
from edgekit.core.units import format_bytes
from edgekit.transports._partial import HASH_PREFIX, RESUMABLE_BYTES, digest_in, hash_seconds, prefix_sha256
from edgekit.transports._sftp import (
    ChangedError,
    NotAFileError,
    TakenError,
    TooLargeError,
    Upload,
    download,
    free_bytes,
    is_folder,
)
from edgekit.transports._ssh_connect import Connection
from edgekit.transports._ssh_errors import capitalized, lost, translated
from edgekit.transports._ssh_exec import Execution, OutputTooLargeError
from edgekit.transports._ssh_keys import HostKey, known_keys, record
from edgekit.transports._ssh_route import Hop, SshOptions, route
from edgekit.transports.base import MAX_OUTPUT_BYTES, CommandResult, Transport

_RECORDED_FIRST = "Call trust() first: only a key that was shown can be recorded."


class SshTransport(Transport):
    """A way to a device over SSH, as paramiko speaks it.

    Args:
        device: The unit; its `address` is `[user@]host[:port]` or a name of the ssh configuration.
        options: The typed options.
    """

    summary: ClassVar[str] = "SSH and SFTP, for boards, PCs and Macs in the network"
    extra: ClassVar[str | None] = "ssh"
    Options: ClassVar[type[Any]] = SshOptions

    def __init__(self, device: Device, options: SshOptions) -> None:
        super().__init__(device, options)
        self._connection: Connection | None = None
        self._sftp: Any = None
        self._shown: tuple[Hop, HostKey] | None = None

    @classmethod
    def missing(cls) -> str | None:
        """The pip line where paramiko is not installed."""
        return None if is_installed("paramiko") else "pip install 'edgekit[ssh]'"

    def open(self) -> None:
        """Connect and log in, through the jump hosts if there are any.

        Raises:
            ConfigError: The address or the ssh configuration is wrong, or a secret is not in the environment.
            TransientDeviceError: A host cannot be reached at the moment.
            StableDeviceError: A host key is unknown, revoked or has changed, or the login is refused.
        """
        self.close()
        self._connection = self._new_connection()
        self._connection.open()

    def close(self) -> None:
        """Disconnect."""
        # The SFTP session ends with its connection; saying goodbye in it fails where the connection is gone.
        self._sftp = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def trust(self) -> str:
        """The key of the first host on the way that is not trusted yet, else the device's: fetched, not trusted.

        Returns:
            Its fingerprint (`SHA256:… (ED25519)`), followed by what is to be known before one says yes: that it is a
            jump host's, or that another key is on record.
        """
        connection = self._new_connection()
        try:
            hop, key = connection.first_stranger()
        finally:
            connection.close()
        self._shown = hop, key
        others = (
            f"{'REVOKED' if entry.revoked else 'on record until now'}: {entry.key} in {entry.where}"
            for entry in known_keys(self.options, hop.key_name)
            if entry.key != key or entry.revoked
        )
        return "\n".join((f"{key} of {hop}" if hop.is_jump else str(key), *others))

    def record_trust(self) -> str:
        """Record the key that `trust` showed last, in edgekit's own file, in place of what it held on that host.

        Returns:
            Which host is trusted from now on, and the file that says so.
        """
        if self._shown is None:
            raise ConfigError(_RECORDED_FIRST, f"edgekit devices trust {self.device.name}")
        hop, key = self._shown
        path = record(self.options, hop.key_name, key)
        return f"{hop.key_name} {key} in {path}"

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        on_stderr: Callable[[str], None] | None = None,
    ) -> CommandResult:
        """Run a command through the login's shell, which must take POSIX quoting.

        Raises:
            ConfigError: `argv` is empty or holds a NUL.
            TransientDeviceError: The connection is lost, or the command takes longer than `timeout`.
            StableDeviceError: It prints more than MAX_OUTPUT_BYTES.
        """
        if not argv or any("\0" in word for word in argv):
            raise ConfigError("A command must have a program, and no NUL in its arguments.")
        command = shlex.join(argv).encode("utf-8", "surrogateescape")
        connection, hop, program = self._opened(), self._hop, argv[0]
        started = time.monotonic()
        with translated(hop, f"running '{program}'"):
            channel = connection.transport.open_session(timeout=timeout)
            try:
                execution = Execution(channel, stdin, on_stderr, MAX_OUTPUT_BYTES)
                returncode = execution.run(command, started + timeout)
            except TimeoutError as error:
                raise TransientDeviceError(
                    f"'{program}' on {hop} did not end within {timeout:g} s.", f"edgekit devices probe {hop.device}"
                ) from error
            except OutputTooLargeError as error:
                raise StableDeviceError(
                    f"'{program}' on {hop} printed more than {format_bytes(MAX_OUTPUT_BYTES)}; its output was refused.",
                    f"edgekit devices probe {hop.device}",
                ) from error
            finally:
                channel.close()
        if returncode < 0:
            raise lost(hop, f"running '{program}'")
        return CommandResult(returncode, bytes(execution.stdout), bytes(execution.stderr), time.monotonic() - started)

    def push(self, local: Path, remote: str, on_bytes: Callable[[int], None] | None = None) -> None:
        """Copy a file to the device: to a temporary name, its size checked, then renamed. Makes the folders.

        A large file whose upload was cut off goes on from there, where the device's own hash of what it has is right.

        Raises:
            ConfigError: The file here cannot be read.
            TransientDeviceError: The connection is lost; a file `.<name>.<letters>.part` may be left.
            StableDeviceError: The disk is full, or the device refuses for another reason.
        """
        try:
            stream = local.open("rb")
        except OSError as error:
            raise ConfigError(f"'{local}' cannot be read: {error.strerror}.") from error
        with stream, self._transfer(f"pushing '{remote}'") as sftp:
            facts = os.fstat(stream.fileno())
            sha256 = prefix_sha256(stream, facts.st_size) if facts.st_size >= RESUMABLE_BYTES else None
            upload = Upload(sftp, remote, sha256)
            try:
                self._send(upload, stream, facts, on_bytes)
                upload.finish(bool(facts.st_mode & stat.S_IXUSR))
            except BaseException as error:
                taken = isinstance(error, TakenError)
                if taken and self._hash_there(remote, facts.st_size) == sha256:
                    # The other upload has done it; its file is whole, or the hash would be another.
                    return
                problem = self._push_problem(error, sftp, upload, remote, facts.st_size)
                unusable = isinstance(error, ChangedError) or isinstance(problem, StableDeviceError)
                # Where it was taken, what is there under its name by now is the other upload's.
                if (sha256 is None or unusable) and not taken:
                    upload.discard()
                if problem is None:
                    raise
                raise problem from error

    def _send(
        self, upload: Upload, stream: BinaryIO, facts: os.stat_result, on_bytes: Callable[[int], None] | None
    ) -> None:
        """Bring the temporary file to the stream's content, which was of this size and age when it was hashed."""
        start = 0 if upload.sha256 is None else self._trusted(upload, stream, facts.st_size)
        upload.send(stream, start, on_bytes)
        now = os.fstat(stream.fileno())
        if (now.st_size, now.st_mtime_ns) != (facts.st_size, facts.st_mtime_ns):
            raise ChangedError(f"'{stream.name}' here changed while it was sent")
        # Since the look at the first part another upload may have begun the file anew.
        if start and self._hash_there(upload.temporary, facts.st_size) != upload.sha256:
            raise ChangedError("what an earlier upload left and the rest do not make the whole")

    def _trusted(self, upload: Upload, stream: BinaryIO, size: int) -> int:
        """How many bytes of an earlier upload can be built on; what cannot is removed."""
        found = upload.found()
        if found == 0:
            return 0
        if found <= size and self._hash_there(upload.temporary, found) == prefix_sha256(stream, found):
            return found
        upload.discard()
        return 0

    def _hash_there(self, path: str, size: int) -> str | None:
        """SHA-256 of a file's first bytes, as the device says; None where it cannot tell."""
        argv = ["sh", "-c", HASH_PREFIX, "sh", path, str(size)]
        return digest_in(self.run(argv, timeout=hash_seconds(size)).stdout)

    def pull(self, remote: str, local: Path, max_bytes: int) -> None:
        """Copy a file from the device. Atomic here.

        Raises:
            ConfigError: It cannot be written here.
            TransientDeviceError: The connection is lost, or the file changed meanwhile.
            StableDeviceError: It does not exist, may not be read, is no file, or is larger than `max_bytes`.
        """
        hop = self._hop
        with self._transfer(f"pulling '{remote}'") as sftp:
            try:
                download(sftp, remote, local, max_bytes)
            except TooLargeError as error:
                raise StableDeviceError(
                    f"'{remote}' on {hop} has {format_bytes(error.args[0])}; at most {format_bytes(max_bytes)} are"
                    " taken.",
                    f"edgekit devices probe {hop.device}",
                ) from error
            except NotAFileError as error:
                raise StableDeviceError(f"'{remote}' on {hop} is not a file.") from error
            except ChangedError as error:
                raise TransientDeviceError(f"'{remote}' on {hop}: {error}.", "Try again.") from error
            except OSError as error:
                problem = self._file_problem(error, remote)
                if problem is None:
                    raise
                raise problem from error

    @property
    def _hop(self) -> Hop:
        return self._opened().hops[-1]

    def _new_connection(self) -> Connection:
        return Connection(route(self.device.address, self.options, self.device.name), self.options)

    def _opened(self) -> Connection:
        if self._connection is None:
            raise TransientDeviceError(
                f"There is no open connection to the device '{self.device.name}'.",
                f"edgekit devices probe {self.device.name}",
            )
        return self._connection

    @contextmanager
    def _transfer(self, doing: str) -> Iterator[Any]:
        """The SFTP session, made when the first file goes over it and kept."""
        connection, hop = self._opened(), self._hop
        with translated(hop, doing):
            if self._sftp is None:
                self._sftp = self._start_sftp(connection, hop)
            yield self._sftp

    def _start_sftp(self, connection: Connection, hop: Hop) -> Any:
        paramiko = require("paramiko", "ssh", "the ssh transport")
        transport = connection.transport
        try:
            sftp = paramiko.SFTPClient.from_transport(transport)
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, EOFError) as error:
            if not transport.is_active():
                raise
            raise StableDeviceError(
                f"The SSH server of {hop} offers no SFTP, which files are copied with.",
                "Add to its sshd_config: Subsystem sftp internal-sftp   (Dropbear: install openssh-sftp-server)",
            ) from error
        sftp.get_channel().settimeout(self.options.stall_seconds)
        return sftp

    def _file_problem(self, error: OSError, remote: str) -> StableDeviceError | None:
        """The error for what the device says of a file; None where it is the connection that failed."""
        hop = self._hop
        if isinstance(error, FileNotFoundError):
            return StableDeviceError(f"There is no '{remote}' on {hop}.", f"edgekit devices probe {hop.device}")
        if isinstance(error, PermissionError):
            return StableDeviceError(
                f"The login on {hop} may not touch '{remote}': permission denied.",
                f"Choose another `root:` for '{hop.device}' in devices.yaml, or mend the permissions there.",
            )
        if error.errno is None and self._opened().transport.is_active() and not isinstance(error, TimeoutError):
            return StableDeviceError(
                f"{capitalized(hop)} refuses '{remote}': {error}.",
                f"edgekit devices probe {hop.device}",
            )
        return None

    def _push_problem(
        self, error: BaseException, sftp: Any, upload: Upload, remote: str, size: int
    ) -> StableDeviceError | TransientDeviceError | None:
        hop = self._hop
        if isinstance(error, ChangedError):
            return TransientDeviceError(f"'{remote}' on {hop}: {error}.", "Try again.")
        if not isinstance(error, OSError):
            return None
        problem = self._file_problem(error, remote)
        if problem is None or error.errno is not None:
            return problem
        # SFTP has one word, "Failure", for a full disk and for everything else.
        free = free_bytes(sftp, upload.folder)
        if free is not None and free < max(1, size - upload.acknowledged):
            return StableDeviceError(
                f"Disk full on {hop}: '{remote}' needs {format_bytes(size)}, and"
                f" {format_bytes(free + upload.acknowledged)} are free in '{upload.folder}'.",
                f"Make room there; edgekit devices probe {hop.device} shows what is free.",
            )
        if is_folder(sftp, remote):
            return StableDeviceError(f"'{remote}' on {hop} is a folder.", "Remove it, or choose another `root:`.")
        return problem
