"""Chromium, found on this machine and driven by Playwright: one fresh browser for each process of a run."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError
from edgekit.core.extras import require

BINARY_VARIABLE = "EDGEKIT_BROWSER"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_LAUNCH_MS = 60_000
# A spare renderer would be a second candidate where the page's own is looked for.
_ARGUMENTS = ("--disable-features=SpareRendererForSitePerProcess", "--disable-background-networking")


def binary(chosen: str | None = None) -> str:
    """The browser: the one asked for, else `EDGEKIT_BROWSER`, else the first of the usual names on PATH.

    Raises:
        ConfigError: There is none.
    """
    chosen = chosen or os.environ.get(BINARY_VARIABLE)
    found = shutil.which(chosen) if chosen else next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        said = f"'{chosen}' is no program" if chosen else "No Chromium is on PATH"
        raise ConfigError(
            f"{said}; looked for: {', '.join(_NAMES)}.",
            f"sudo apt-get install chromium, or {BINARY_VARIABLE}=/path/to/chrome",
        )
    return found


class Page:
    """The page of a fresh browser.

    Args:
        browser: Playwright's browser.
        page: Playwright's page, on our address.
    """

    def __init__(self, browser: Any, page: Any) -> None:
        self._browser, self._page = browser, page
        self.version = str(browser.version)

    def call(self, function: str, task: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What one of the page's functions answers.

        Raises:
            StableDeviceError: It threw; the message is the page's.
            TransientDeviceError: The browser died, or did not answer in time.
        """
        # A race in the page itself: Playwright has no limit of its own on what a script may take.
        script = (
            "([name, task, ms]) => Promise.race([window.edgekit[name](task).then(value => ({value}),"
            " error => ({error: String(error)})), new Promise(done => setTimeout(() => done({late: true}), ms))])"
        )
        try:
            answer = self._page.evaluate(script, [function, task, seconds * 1000])
        except _errors() as error:
            raise TransientDeviceError(f"The browser ended while it ran the model: {_first_line(error)}") from error
        if answer.get("late"):
            raise TransientDeviceError(f"The page did not finish '{function}' within {seconds:g} s.")
        if "error" in answer:
            raise StableDeviceError(f"The browser's runtime refused: {answer['error']}")
        value: dict[str, Any] = answer["value"]
        return value

    def renderer(self) -> str | None:
        """The page's process, as its folder in /proc; None where the system has none. The others hold no page."""
        session = self._browser.new_browser_cdp_session()
        found = session.send("SystemInfo.getProcessInfo")["processInfo"]
        renderers = [(entry["cpuTime"], entry["id"]) for entry in found if entry["type"] == "renderer"]
        folder = Path("/proc") / str(max(renderers)[1]) if renderers else None
        return str(folder) if folder is not None and folder.is_dir() else None


@contextmanager
def opened(url: str, path: str) -> Iterator[Page]:
    """A fresh browser, the program at `path`, with a page at an address; both end with the block.

    Raises:
        ConfigError: No browser is here.
        MissingExtraError: Playwright is not installed.
        TransientDeviceError: The browser does not start, or the page does not load.
    """
    api = require("playwright.sync_api", "browser", "the browser runner")
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=path,
                args=list(_ARGUMENTS),
                timeout=_LAUNCH_MS,
                # The superuser's Chromium refuses to start inside its sandbox.
                chromium_sandbox=not _is_superuser(),
            )
        except api.Error as error:
            raise TransientDeviceError(
                f"'{path}' does not start: {_first_line(error)}",
                f"{BINARY_VARIABLE}=/path/to/chrome names another one.",
            ) from error
        try:
            page = browser.new_page()
            page.goto(url)
            page.wait_for_selector("html[data-ready=yes]", state="attached")
            yield Page(browser, page)
        except api.Error as error:
            raise TransientDeviceError(f"The page does not load in '{path}': {_first_line(error)}") from error
        finally:
            browser.close()


def _is_superuser() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _errors() -> tuple[type[Exception], ...]:
    return (importlib.import_module("playwright.sync_api").Error,)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
