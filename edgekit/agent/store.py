"""What is kept on a device: blobs, runtimes, releases. Runs there: standard library only, Python 3.9 or newer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

DAY = 86400.0
NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
SHA256 = re.compile(r"[0-9a-f]{64}")
Json = dict[str, Any]


class AgentError(Exception):
    """What an answer with `"ok": false` is made of."""

    def __init__(self, kind: str, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.kind, self.detail = kind, detail


# --- requests -------------------------------------------------------------------------------------------------------


def field(mapping: Json, key: str, kind: Any) -> Any:
    """A value of a request that must be there and of a type."""
    value = mapping.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise AgentError("request", f"`{key}` is missing or is of the wrong type")
    return value


def word(mapping: Json, key: str, pattern: re.Pattern[str] = NAME) -> str:
    """A value of a request that becomes part of a path here."""
    value = field(mapping, key, str)
    if not pattern.fullmatch(value):
        raise AgentError("request", f"`{key}` cannot be {value!r}")
    return str(value)


def relative(path: str) -> str:
    """`path`, when it stays below the folder it is joined to."""
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise AgentError("request", f"the path {path!r} leaves its folder")
    return path


# --- files ----------------------------------------------------------------------------------------------------------


def sync(path: str) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: str, value: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(value, sort_keys=True))


def write_text(path: str, text: str) -> None:
    """A text file, whole or not at all."""
    temporary = f"{path}.{os.getpid()}.part"
    with open(temporary, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync(os.path.dirname(path))


def read(path: str, otherwise: Any) -> Any:
    """A JSON file of ours, or `otherwise` where it is missing or broken."""
    try:
        with open(path) as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return otherwise


def names(folder: str) -> list[str]:
    """What is in a folder; nothing where there is none."""
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def remove(path: str) -> None:
    """A file or a tree, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def is_old(path: str) -> bool:
    """Whether it was last changed or used more than a day ago."""
    try:
        return time.time() - os.lstat(path).st_mtime > DAY
    except FileNotFoundError:
        return False


def place(final: str, fill: Callable[[str], None]) -> None:
    """A folder that is there whole or not at all; one already there is replaced."""
    staging = os.path.join(os.path.dirname(final), f".{os.path.basename(final)}.{os.getpid()}.part")
    remove(staging)
    os.makedirs(staging)
    try:
        fill(staging)
        if os.path.isdir(final):
            os.rename(final, staging + ".old")
        os.rename(staging, final)
        sync(os.path.dirname(final))
    finally:
        remove(staging)
        remove(staging + ".old")


class Store:
    """Blobs by content; each is hashed once a request, when it is first used."""

    def __init__(self, root: str) -> None:
        self.folder = os.path.join(root, "store")
        self._good: set[str] = set()

    def path(self, sha256: str) -> str:
        """The file of a blob whose bytes are what its name says."""
        path = os.path.join(self.folder, sha256)
        if sha256 in self._good:
            return path
        if not os.path.isfile(path):
            raise AgentError("blob", f"the blob {sha256[:12]} is not here", sha256=sha256)
        if digest_of(path) != sha256:
            os.unlink(path)
            raise AgentError("blob", f"the blob {sha256[:12]} had other bytes than its name says", sha256=sha256)
        self._good.add(sha256)
        return path


def partial_bytes(root: str, missing: list[str]) -> int:
    """What has arrived of blobs whose upload was cut off: the host's next upload goes on from there."""
    paths = [os.path.join(root, "store", f".{sha256}.{sha256[:16]}.part") for sha256 in missing]
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path))


def digest_of(path: str) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(root: str, seconds: float, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The only one who changes anything below `root`; `waiting` is called again and again until that is so."""
    with open(os.path.join(root, "lock"), "a") as handle:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise AgentError("busy", f"another run has held the device for {seconds:.0f} s") from None
                waiting()
                time.sleep(0.1)
        yield


# --- runtimes -------------------------------------------------------------------------------------------------------


def unpack(wheel: str, folder: str) -> None:
    """A wheel's modules into a folder; refuses one that would write anywhere else."""
    try:
        archive = zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        raise AgentError("request", f"'{os.path.basename(wheel)}' is not a wheel: {error}") from error
    with archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            parts = relative(entry.filename).split("/")
            mode = entry.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise AgentError("request", f"the wheel's entry {entry.filename!r} is not a plain file")
            if parts[0].endswith(".data"):
                if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            target = os.path.join(folder, *parts)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(entry) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            os.chmod(target, 0o755 if mode & 0o111 else 0o644)


def install(root: str, store: Store, runtime: Json) -> str | None:
    """The folder of the runtime that a request names; None for the interpreter's own."""
    kind = field(runtime, "kind", str)
    if kind == "host":
        return None
    if kind != "wheels":
        raise AgentError("request", f"a runtime is `host` or `wheels`, not {kind!r}")
    folder = os.path.join(root, "runtimes", word(runtime, "digest"))
    if not os.path.isdir(folder):
        wheels = [word(wheel, "sha256", SHA256) for wheel in field(runtime, "wheels", list)]

        def fill(staging: str) -> None:
            for sha256 in wheels:
                unpack(store.path(sha256), staging)
            # One call for some thousand small files; syncing each takes minutes on a memory card.
            os.sync()

        place(folder, fill)
        for sha256 in wheels:
            remove(os.path.join(store.folder, sha256))
    os.utime(folder)
    return folder


# --- releases -------------------------------------------------------------------------------------------------------


def lay_out(store: Store, files: list[Json], folder: str) -> None:
    """The files of an artifact, as links into the store; copies where the file system has no links."""
    for entry in files:
        target = os.path.join(folder, *relative(field(entry, "path", str)).split("/"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        source = store.path(word(entry, "sha256", SHA256))
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS):
                raise
            shutil.copyfile(source, target)
        sync(target)


class Releases:
    """The releases of one model: those that were in force, the last of them current."""

    def __init__(self, root: str, model: str) -> None:
        self.folder = os.path.join(root, "models", model)
        self.all = os.path.join(self.folder, "releases")
        self._history = os.path.join(self.folder, "history.json")

    @property
    def current(self) -> str | None:
        """The digest in force."""
        link = os.path.join(self.folder, "current")
        return os.path.basename(os.readlink(link)) if os.path.islink(link) else None

    @property
    def history(self) -> list[str]:
        """Digests in the order in which they were switched to."""
        return [str(digest) for digest in read(self._history, [])]

    def add(self, store: Store, model: Json, record: Json) -> str:
        """The folder of a release, made where it is not there or is not what it should be."""
        files = field(model, "files", list)
        final = os.path.join(self.all, word(model, "digest"))

        def is_whole(entry: Json) -> bool:
            path = os.path.join(final, *relative(entry["path"]).split("/"))
            return os.path.isfile(path) and digest_of(path) == entry["sha256"]

        if not all(is_whole(entry) for entry in files) or read(os.path.join(final, "release.json"), None) != record:

            def fill(staging: str) -> None:
                lay_out(store, files, staging)
                write(os.path.join(staging, "release.json"), record)

            os.makedirs(self.all, exist_ok=True)
            place(final, fill)
        return final

    def switch(self, digest: str, history: list[str]) -> None:
        """Make `digest` current: programs see the old release or the new one, never none."""
        write(self._history, history)
        if self.current != digest:
            temporary = os.path.join(self.folder, f".current.{os.getpid()}")
            remove(temporary)
            os.symlink(os.path.join("releases", digest), temporary)
            os.replace(temporary, os.path.join(self.folder, "current"))
            sync(self.folder)

    def notify(self, previous: str | None) -> Json | None:
        """Run the hook `on-switch`, where the device's owner put one, and say how it ended."""
        hook = os.path.join(self.folder, "on-switch")
        if not os.access(hook, os.X_OK):
            return None
        try:
            argv = [hook, os.path.join(self.folder, "current"), previous or ""]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=2, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"returncode": None, "message": str(error)}
        return {"returncode": done.returncode, "message": ""}

    def prune(self, keep: int) -> None:
        """Remove what is neither current nor one of the `keep` releases before it."""
        stay = {self.current, *self.history[-keep - 1 :]}
        for digest in names(self.all):
            if digest not in stay:
                remove(os.path.join(self.all, digest))


def prune(root: str, runtime: str | None, agent: str) -> None:
    """Remove blobs, runtimes and agents that no release needs and that nobody used for a day."""
    blobs: set[str] = set()
    runtimes = {runtime}
    for model in names(os.path.join(root, "models")):
        for digest in names(os.path.join(root, "models", model, "releases")):
            record = read(os.path.join(root, "models", model, "releases", digest, "release.json"), {})
            blobs.update(entry["sha256"] for entry in record.get("files", []))
            runtimes.add(record.get("runtime"))
    for folder, needed in (("store", blobs), ("runtimes", runtimes), ("agent", {agent})):
        for name in names(os.path.join(root, folder)):
            path = os.path.join(root, folder, name)
            if name not in needed and is_old(path):
                remove(path)


def tidy(root: str) -> None:
    """Remove what crashed runs left."""
    for folder in ("runtimes", *(os.path.join("models", m, "releases") for m in names(os.path.join(root, "models")))):
        for name in names(os.path.join(root, folder)):
            if name.startswith("."):  # only a run makes these, and none is going on
                remove(os.path.join(root, folder, name))
    for folder, pattern in (("runs", None), ("store", SHA256)):
        for name in names(os.path.join(root, folder)):
            path = os.path.join(root, folder, name)
            if is_old(path) and not (pattern and pattern.fullmatch(name)):
                remove(path)
