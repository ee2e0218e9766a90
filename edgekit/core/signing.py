"""Signing releases with Ed25519 (RFC 8032): the key on the host; the device verifies with its agent's own code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core import schema
from edgekit.core.errors import ConfigError
from edgekit.core.extras import require
from edgekit.core.places import config_dir

KEY_VARIABLE = "EDGEKIT_SIGNING_KEY"
PASSWORD_VARIABLE = "EDGEKIT_SIGNING_PASSWORD"  # noqa: S105 - the name of a variable, no password
DOMAIN = b"edgekit release 1\n"
"""As in `edgekit/agent/signing.py`, which verifies."""
SIGNED = ("name", "digest", "main", "files", "driver", "bindings", "options", "runtime", "wheels", "agent")
_WHY = "signing releases"


@dataclass(frozen=True)
class Signer:
    """A private key that signs releases.

    Attributes:
        public: The public key, 64 hexadecimal digits.
        path: Where the private key is.
    """

    public: str
    path: Path
    _private: Any

    @property
    def short(self) -> str:
        """Enough of the public key to tell it from others."""
        return self.public[:16]

    def signature(self, release: Mapping[str, Any]) -> dict[str, str]:
        """`{"key", "value"}` for a release: hexadecimal digits."""
        return {"key": self.public, "value": self._private.sign(statement(release)).hex()}


def statement(release: Mapping[str, Any]) -> bytes:
    """The bytes that are signed: `DOMAIN`, then the parts in `SIGNED` as JSON with sorted keys and no blanks."""
    # Not `schema.canonical_json`: the device has the standard library only, and both must write numbers alike.
    parts = schema.to_plain({key: release[key] for key in SIGNED})
    return DOMAIN + json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def key_path() -> Path:
    """The file of the private key: `EDGEKIT_SIGNING_KEY`, else one in the person's settings."""
    chosen = os.environ.get(KEY_VARIABLE)
    return Path(chosen) if chosen else config_dir() / "keys" / "release.pem"


def signer() -> Signer | None:
    """The person's key; None where none was made.

    Raises:
        ConfigError: The key that is asked for is not there, is damaged, is not of this kind, or its password is wrong.
        MissingExtraError: The library for keys is not installed.
    """
    path = key_path()
    if not path.is_file():
        if os.environ.get(KEY_VARIABLE):
            raise ConfigError(f"{KEY_VARIABLE} names '{path}', which is no file.", "edgekit keys make")
        return None
    serialization = require("cryptography.hazmat.primitives.serialization", "ssh", _WHY)
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "ssh", _WHY)
    password = os.environ.get(PASSWORD_VARIABLE)
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), password.encode() if password else None)
    except (ValueError, TypeError) as error:
        # The library's own words may quote the file.
        raise ConfigError(
            f"'{path}' is not a private key that can be read: damaged, or its password is missing or wrong.",
            f"Set {PASSWORD_VARIABLE} where the key has a password.",
        ) from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"The key in '{path}' is not an Ed25519 key.", "edgekit keys make")
    return Signer(private.public_key().public_bytes_raw().hex(), path, private)


def make() -> Signer:
    """A new private key at `key_path()`, readable by its owner only; with a password where one is set.

    Raises:
        ConfigError: There is one already.
    """
    path = key_path()
    if path.exists():
        raise ConfigError(
            f"There is a key at '{path}' already; devices that pinned it take no other.",
            f"{KEY_VARIABLE}=OTHER_FILE edgekit keys make",
        )
    serialization = require("cryptography.hazmat.primitives.serialization", "ssh", _WHY)
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "ssh", _WHY)
    password = os.environ.get(PASSWORD_VARIABLE)
    private = ed25519.Ed25519PrivateKey.generate()
    content = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption(),
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Made with its mode before anything secret is in it.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    path.write_bytes(content)
    return Signer(private.public_key().public_bytes_raw().hex(), path, private)
