"""Host keys: known_hosts files as OpenSSH writes them, and the judgement over the key that a host shows."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edgekit.core.errors import ConfigError, StableDeviceError
from edgekit.core.files import write_atomic
from edgekit.transports._ssh_route import Hop, SshOptions

_RSA_ALGORITHMS = ("rsa-sha2-512", "rsa-sha2-256")


@dataclass(frozen=True)
class HostKey:
    """A public key that a host shows.

    Attributes:
        kind: Its type, as known_hosts files name it: `ssh-ed25519`.
        blob: The key in SSH's wire form.
    """

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """`SHA256:…`, as OpenSSH prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def __str__(self) -> str:
        family = self.kind.removeprefix("ssh-").removeprefix("sk-").split("-", 1)[0].upper()
        return f"{self.fingerprint} ({family})"


@dataclass(frozen=True)
class KnownKey:
    """One line of a known_hosts file.

    Attributes:
        hosts: Its first field: names, patterns, or a hashed name.
        key: The key.
        revoked: Whether the line says never to accept this key.
        where: `file:line`.
    """

    hosts: str
    key: HostKey
    revoked: bool
    where: str

    def applies_to(self, name: str) -> bool:
        """Whether the line is about the host of that known_hosts name."""
        if self.hosts.startswith("|1|"):
            return _hash_matches(self.hosts, name)
        patterns = self.hosts.lower().split(",")
        if any(pattern.startswith("!") and _glob(pattern[1:], name) for pattern in patterns):
            return False
        return any(_glob(pattern, name) for pattern in patterns if not pattern.startswith("!"))


def known_hosts_files(options: SshOptions) -> tuple[Path, ...]:
    """The files of trusted keys, in order; the last is the one that edgekit writes to."""
    if options.known_hosts is not None:
        return (Path(options.known_hosts).expanduser(),)
    own = os.environ.get("EDGEKIT_CONFIG_DIR") or platformdirs.user_config_dir("edgekit", appauthor=False)
    return (Path("~/.ssh/known_hosts").expanduser(), Path(own) / "known_hosts")


def known_keys(options: SshOptions, name: str) -> list[KnownKey]:
    """What the files of trusted keys hold on a host.

    Raises:
        ConfigError: A file exists and cannot be read.
    """
    found = [entry for path in known_hosts_files(options) for entry in _read(path)]
    return [entry for entry in found if entry.applies_to(name)]


def preferred_algorithms(known: Iterable[KnownKey], offered: Sequence[str]) -> list[str]:
    """The algorithms to negotiate, those of known keys first.

    Otherwise a host with several keys shows one that nobody recorded, and looks like a stranger.
    """
    kinds: list[str] = []
    for entry in known:
        if not entry.revoked:
            kinds.extend(_RSA_ALGORITHMS if entry.key.kind == "ssh-rsa" else (entry.key.kind,))
    return sorted(offered, key=lambda name: kinds.index(name) if name in kinds else len(kinds))


def judge(hop: Hop, shown: HostKey, known: Sequence[KnownKey]) -> None:
    """Accept the key that a host shows, or refuse it.

    Raises:
        StableDeviceError: It is unknown, revoked, or not the one that is on record.
    """
    trust = f"edgekit devices trust {hop.device}"
    revoked = [entry for entry in known if entry.revoked and entry.key == shown]
    if revoked:
        raise StableDeviceError(
            f"DANGER: {hop} shows the host key {shown}, which {revoked[0].where} marks as revoked. Not connected.",
            "Give the device a new host key; do not use it before.",
        )
    trusted = [entry for entry in known if not entry.revoked]
    if any(entry.key == shown for entry in trusted):
        return
    if trusted:
        old = "\n".join(f"  on record: {entry.key}  in {entry.where}" for entry in trusted)
        raise StableDeviceError(
            f"DANGER: the host key of {hop} has CHANGED. Somebody may be listening in, or the device was"
            f" reinstalled. Not connected.\n{old}\n  shown now: {shown}",
            f"Only if you know why it changed, and the fingerprint is the one on the device's own screen: {trust}",
        )
    raise StableDeviceError(
        f"The host key of {hop} is not known: {shown}. Not connected.",
        trust,
    )


def record(options: SshOptions, name: str, key: HostKey) -> Path:
    """Record a host's key as the only one that edgekit's own file has of it.

    Returns:
        The file that was written.
    """
    path = known_hosts_files(options)[-1].resolve()
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path.exists() else []
    kept = [line for line in lines if line.split(None, 1)[:1] != [name]]
    kept.append(f"{name} {key.kind} {base64.b64encode(key.blob).decode()}")
    write_atomic(path, ("\n".join(kept) + "\n").encode("utf-8", "surrogateescape"))
    return path


def _read(path: Path) -> list[KnownKey]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"The known hosts in '{path}' cannot be read: {error.strerror}.") from error
    entries = (_parse(line, f"{path}:{number}") for number, line in enumerate(text.splitlines(), 1))
    return [entry for entry in entries if entry is not None]


def _parse(line: str, where: str) -> KnownKey | None:
    """One line; None for what says nothing of a plain host key (comments, certificate authorities, nonsense)."""
    fields = line.split()
    marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
    if len(fields) < 3 or fields[0].startswith("#") or marker not in ("", "@revoked"):
        return None
    try:
        blob = base64.b64decode(fields[2], validate=True)
    except binascii.Error:
        return None
    return KnownKey(fields[0], HostKey(fields[1], blob), marker == "@revoked", where)


def _hash_matches(hashed: str, name: str) -> bool:
    try:
        _, _, salt, digest = hashed.split("|")
        expected = base64.b64decode(digest, validate=True)
        # SHA-1 is what the file format says; it hides names, it does not prove anything.
        found = hmac.new(base64.b64decode(salt, validate=True), name.encode(), hashlib.sha1).digest()
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(expected, found)


def _glob(pattern: str, name: str) -> bool:
    # Not fnmatch: the brackets of `[host]:port` are not a class of characters.
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name) is not None
