"""Whether a release is signed by whom the device trusts. Runs there: standard library only, Python 3.9 or newer.

The first signed release pins its key: `<root>/trusted-key`, 64 hexadecimal digits. From then on the device takes no
release and goes back to none that this key has not signed, until its owner removes that file.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import ed25519  # type: ignore[import-not-found]  # on a device these files lie side by side
import store  # type: ignore[import-not-found]
from store import AgentError, field, word

FILE = "trusted-key"
DOMAIN = b"edgekit release 1\n"
"""What every signed statement starts with, so that a signature made for something else is worth nothing here."""
_KEY = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
SIGNED = ("name", "digest", "main", "files", "driver", "bindings", "options", "runtime", "wheels", "agent")
"""What a signature is over: all that decides what will run; `wheels` are the hashes of the runtime's, sorted."""
Json = dict[str, Any]


def statement(release: Json) -> bytes:
    """The bytes that are signed: `DOMAIN`, then the release's parts as JSON with sorted keys and no blanks."""
    parts = {key: release[key] for key in SIGNED}
    return DOMAIN + json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def trusted_key(root: str) -> str | None:
    """The pinned key, or None where the device has seen none yet."""
    try:
        with open(os.path.join(root, FILE)) as stream:
            text = stream.read(200).strip()
    except FileNotFoundError:
        return None
    if not _KEY.fullmatch(text):
        # Not none: a damaged file must not open the device to everybody.
        raise AgentError("signature", f"'{os.path.join(root, FILE)}' does not hold a key")
    return text


def check(root: str, release: Json, signature: Json | None) -> Json | None:
    """Refuse a release that the device's key has not signed; pin the key of the first signed one.

    Args:
        root: The folder of ours.
        release: Has everything in `SIGNED`.
        signature: `{"key", "value"}` in hexadecimal digits; None for an unsigned release.

    Returns:
        `{"key", "pinned"}`, where `pinned` says that it was pinned now; None where nothing is signed or asked for.

    Raises:
        AgentError: Of the kind `signature`.
    """
    pinned = trusted_key(root)
    if signature is None:
        if pinned is not None:
            raise AgentError("signature", f"the release is not signed; this device takes what {pinned[:16]} signs")
        return None
    key = word(signature, "key", _KEY)
    if pinned is not None and key != pinned:
        raise AgentError(
            "signature", f"the release is signed by {key[:16]}; this device takes what {pinned[:16]} signs"
        )
    value = bytes.fromhex(word(signature, "value", _SIGNATURE))
    if not ed25519.verified(bytes.fromhex(key), statement(release), value):
        raise AgentError("signature", f"the signature by {key[:16]} is not of this release")
    if pinned is None:
        store.write_text(os.path.join(root, FILE), key + "\n")
    return {"key": key, "pinned": pinned is None}


def check_kept(root: str, folder: str) -> None:
    """Refuse to go back to a kept release that is not signed by the device's key, or whose files are not its own.

    Raises:
        AgentError: Of the kind `signature`, or `blob` for a file with other bytes.
    """
    record = store.read(os.path.join(folder, "release.json"), {})
    if trusted_key(root) is not None:
        missing = [key for key in SIGNED if key not in record]
        if missing:
            raise AgentError("signature", f"the release {os.path.basename(folder)[:16]} is not signed")
        check(root, record, record.get("signature"))
    for entry in record.get("files", []):
        path = os.path.join(folder, *store.relative(field(entry, "path", str)).split("/"))
        if not os.path.isfile(path) or store.digest_of(path) != entry.get("sha256"):
            raise AgentError("blob", f"the file {entry['path']} of that release was damaged or removed")
