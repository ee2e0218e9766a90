"""Runs an `.mlpackage` on an iPhone that is attached to this Mac, by coremltools' MLModelBenchmarker and its ModelRunner app.

Every call is a file to the phone and one back (a second or two): the times are those that the app takes on the phone.
numpy and coremltools 9 only, Python 3.9 or newer. Unverified on hardware: no phone has run it yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import device_coreml  # type: ignore[import-not-found]  # beside this file, as in agent.py

TUNNEL_SECONDS = 60.0
HERE = os.path.dirname(os.path.abspath(__file__))


class PhoneError(Exception):
    """The phone, its app, or the app's build failed."""


class Kept:
    """coremltools' model on the phone, that keeps what it computed: the benchmarker itself throws it away."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.outputs: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    async def predict(self, inputs: dict[str, Any], state: Any = None) -> dict[str, Any]:
        """See `MLModelAsyncWrapper.predict`."""
        self.outputs = await self._model.predict(inputs, state)
        return self.outputs


class Driver(device_coreml.Driver):  # type: ignore[misc]  # pushed beside this file, so mypy sees Any
    """One model in the ModelRunner app of one phone.

    Args:
        path: See the driver of Core ML on a Mac.
        threads: Not used.
        bindings: See there.
        options: `compute_units`; `udid` of the phone; who signs the app: `development_team`, `provisioning_profile`,
            `bundle_identifier`.
    """

    OPTIONS = ("compute_units", "udid", "development_team", "provisioning_profile", "bundle_identifier")

    def __init__(self, path: str, threads: int, bindings: dict[str, str], options: dict[str, Any]) -> None:
        super().__init__(path, threads, bindings, options)
        from coremltools.models.ml_program.experimental import perf_utils, remote_device

        self._remote, self._perf = remote_device, perf_utils
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._device: Any = None
        self._benchmarker: Any = None
        self._kept: Any = None
        self.load_ms = 0.0
        self.invoke_ms = 0.0

    def load(self) -> None:
        """Put the ModelRunner app on the phone, start it, and have it load the model."""
        add_to_path(find_devicectl())
        self._model = self._tools.models.MLModel(self._path, compute_units=self._units, skip_model_load=True)
        self._describe()
        refuse(self.inputs)
        self._device = self._done(self._prepared())
        self._benchmarker = self._perf.MLModelBenchmarker(self._model, self._device)
        self.load_ms = self._done(self._benchmarker.benchmark_load(iterations=1)).samples[0]
        # Its private place for the model that it loaded: nowhere else are the outputs to be had.
        self._kept = self._benchmarker._loaded_model = Kept(self._benchmarker._loaded_model)

    async def _prepared(self) -> Any:
        device = connected(self._remote, self._options["udid"])
        credentials = self._remote.AppSigningCredentials(
            development_team=self._options.get("development_team", ""),
            provisioning_profile_uuid=self._options.get("provisioning_profile"),
            bundle_identifier=self._options.get("bundle_identifier"),
        )
        # coremltools takes any app that it finds where it builds, whoever signed it.
        signed = hashlib.sha256(repr(credentials).encode()).hexdigest()[:8]
        folder = Path(HERE).parent / f"modelrunner-{self._tools.__version__}-{signed}"
        # coremltools 9.0 confuses this folder with the one it builds in: both have to be there.
        (folder / "build").mkdir(parents=True, exist_ok=True)
        try:
            return await device.prepare_for_model_debugging(credentials=credentials, working_directory=folder)
        except BaseException:
            # What a failed build leaves would be taken for the app the next time.
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _done(self, action: Any) -> Any:
        try:
            return self._loop.run_until_complete(action)
        except PhoneError:
            raise
        except Exception as error:
            raise PhoneError(explained(error)) from error

    def invoke(self) -> None:
        """One inference on the phone; `invoke_ms` is how long it took there."""
        found = self._done(self._benchmarker.benchmark_predict(self._feeds, iterations=1))
        self.invoke_ms = found.samples[0]
        self._values = self._kept.outputs

    def facts(self) -> dict[str, Any]:
        """What ran, as far as the runtime tells."""
        return dict(super().facts(), runtime="Core ML on the phone")

    def _operations(self) -> Any:
        try:
            found = self._done(self._benchmarker.benchmark_operation_execution(self._feeds, iterations=1))
        except PhoneError as error:
            return {"unavailable": str(error)}
        return device_coreml.summary(found)

    def close(self) -> None:
        """End the app, and remove what went to and fro."""
        session = None if self._device is None else self._device.session
        if session is not None:
            # coremltools' own `stop` does not wait for the end.
            session.stop()
            try:
                session._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                session._process.kill()
            shutil.rmtree(session.working_directory, ignore_errors=True)


def refuse(inputs: list[dict[str, Any]]) -> None:
    """Say which inputs coremltools cannot send to a phone: it knows tensors of four types only."""
    for spec in inputs:
        if spec["kind"] != "array" or spec["dtype"] not in ("float16", "float32", "float64", "int32"):
            what = "an image" if spec["kind"] == "image" else spec["dtype"]
            raise PhoneError(f"coremltools cannot send the input '{spec['name']}' to a phone: it is {what}")


def find_devicectl() -> str:
    """The folder of Xcode's `devicectl`."""
    done = subprocess.run(["xcrun", "--find", "devicectl"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PhoneError(f"Xcode's devicectl is not there: {done.stderr.strip()}")
    return os.path.dirname(done.stdout.strip())


def add_to_path(folder: str) -> None:
    """Let coremltools call `devicectl` by its bare name, as it does beside `xcrun devicectl`."""
    if folder not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] += os.pathsep + folder


def connected(remote: Any, udid: str) -> Any:
    """coremltools' record of the phone, with a tunnel to it: where there is none yet, a question to the phone opens it."""
    device = attached(remote, udid)
    if device.state != remote.DeviceState.CONNECTED:
        open_tunnel(device)
        device = attached(remote, udid)
    if device.state != remote.DeviceState.CONNECTED:
        raise PhoneError(f"there is no connection to '{device.name}': its tunnel is {device.state.value}")
    return device


def attached(remote: Any, udid: str) -> Any:
    """coremltools' record of the phone."""
    found = {device.udid: device for device in remote.Device.get_devices()}
    if udid not in found:
        raise PhoneError(f"the phone {udid} is no longer attached; there are: {', '.join(found) or 'none'}")
    return found[udid]


def open_tunnel(device: Any) -> None:
    """Ask the phone something."""
    argv = ["xcrun", "devicectl", "device", "info", "details", "--device", device.identifier, "--timeout", "30"]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TUNNEL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise PhoneError(f"'{device.name}' did not answer for {TUNNEL_SECONDS:.0f} s") from None
    if done.returncode != 0:
        raise PhoneError(f"'{device.name}' does not answer: {last_errors(done.stderr or done.stdout)}")


def explained(error: BaseException) -> str:
    """What went wrong, with what the program said that failed: coremltools keeps it in the error before."""
    parts = [f"{type(error).__name__}: {text(getattr(error, 'message', None) or error)}"]
    before = error.__cause__ or error.__context__
    if isinstance(before, subprocess.CalledProcessError):
        parts.append(last_errors(text(before.stderr or before.stdout or "")))
    return " ".join(part for part in parts if part)


def text(value: Any) -> str:
    """Whatever it is, as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def last_errors(printed: str) -> str:
    """The lines that name an error, else the last ones."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    named = [line for line in lines if "error" in line.lower()]
    return " ".join(dict.fromkeys(named or lines[-3:]))[-700:]
