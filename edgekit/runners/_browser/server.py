"""The server on loopback that a page gets its model and inputs from, and sends its outputs to."""

from __future__ import annotations

import http.server
import secrets
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

_HERE = Path(__file__).resolve().parent
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".wasm": "application/wasm"}
_ISOLATION = {
    # Without these two no page may use threads, and its clock is coarse.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
_CHUNK_BYTES = 1 << 20


class Server(AbstractContextManager["Server"]):
    """Serves the files it was told of and nothing else, below a path that nobody can guess.

    Args:
        model: The `.tflite` file.
        packages: Folders of LiteRT.js by package.
        inputs: Files of raw values by set and by the model's own name of the input.
        outputs: The folder that outputs are appended to: `<set>/<place of the output>.bin`.
        allowed: The most bytes that an output may have, by set and by the model's own name of it; None until the model
            has told its outputs, and nothing is taken before.
    """

    def __init__(
        self, model: Path, packages: Mapping[str, Path], inputs: Mapping[str, Mapping[str, Path]], outputs: Path
    ) -> None:
        self.files = {"page.html": _HERE / "page.html", "page.js": _HERE / "page.js", "model.tflite": model}
        self.packages = {name: folder.resolve() for name, folder in packages.items()}
        self.inputs = inputs
        self.outputs = outputs
        self.allowed: dict[tuple[str, str], int] = {}
        self.refused = ""
        self._secret = secrets.token_urlsafe(16)
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://127.0.0.1:{self._http.server_port}/{self._secret}/page.html"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def found(self, path: str) -> Path | None:
        """The file behind a path of the page's, or None."""
        parts = self._parts(path)
        match parts:
            case [name] if name in self.files:
                return self.files[name]
            case ["inputs", chosen, name]:
                return self.inputs.get(chosen, {}).get(name)
            case ["litertjs", package, *rest] if package in self.packages:
                file = self.packages[package].joinpath(*rest).resolve()
                return file if file.is_relative_to(self.packages[package]) and file.is_file() else None
        return None

    def sink(self, path: str) -> tuple[Path, int] | None:
        """The file that an output is appended to, and how many bytes it may have; None where nothing is expected."""
        parts = self._parts(path)
        if len(parts) != 3 or parts[0] != "outputs" or (parts[1], parts[2]) not in self.allowed:
            return None
        return self.file_of(parts[1], parts[2]), self.allowed[parts[1], parts[2]]

    def file_of(self, chosen: str, output: str) -> Path:
        """Where the values of an output of a set are: named by its place, for its own name may be no file's."""
        names = [name for of, name in self.allowed if of == chosen]
        return self.outputs / chosen / f"{names.index(output)}.bin"

    def _parts(self, path: str) -> list[str]:
        parts = [unquote(part) for part in path.partition("?")[0].split("/")]
        return parts[2:] if parts[:2] == ["", self._secret] else []


class _Http(http.server.ThreadingHTTPServer):
    daemon_threads = True
    owner: Server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_GET(self) -> None:
        file = self.server.owner.found(self.path)
        if file is None:
            self._answer(404)
            return
        self.send_response(200)
        self._headers(file.stat().st_size, _TYPES.get(file.suffix, "application/octet-stream"))
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                self.wfile.write(chunk)

    def do_POST(self) -> None:
        owner = self.server.owner
        sink = owner.sink(self.path)
        length = int(self.headers.get("Content-Length", "0"))
        if sink is None:
            self.close_connection = True
            self._answer(404)
            return
        file, most = sink
        has = file.stat().st_size if file.exists() else 0
        if length < 0 or has + length > most:
            owner.refused = f"more than the {most} bytes that the model's outputs can have"
            self.close_connection = True
            self._answer(413)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as stream:
            while length > 0 and (chunk := self.rfile.read(min(length, _CHUNK_BYTES))):
                stream.write(chunk)
                length -= len(chunk)
        self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self._headers(0, "text/plain")

    def _headers(self, length: int, kind: str) -> None:
        for name, value in _ISOLATION.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's own name
        """Requests are no news."""
