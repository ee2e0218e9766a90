"""The stand-in of coremltools' ModelRunner app: answers the files that come to its folder until it is ended."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.backends._mil.evaluator import ReferenceEvaluator

TYPES = {"Float16": np.float16, "Float32": np.float32, "Float64": np.float64, "Int32": np.int32}


class App:
    """Models by their identity, and what is done with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, ReferenceEvaluator] = {}

    def load(self, request: dict[str, Any], resource: Path) -> dict[str, Any]:
        self.models[request["params"]["modelID"]] = ReferenceEvaluator(resource)
        return {}

    def predict(self, request: dict[str, Any], resource: Path) -> dict[str, Any]:
        raw, inputs = resource.read_bytes(), {}
        for name, tensor in request["params"]["inputs"].items():
            stored = tensor["storage"]
            data = np.frombuffer(raw[stored["offset"] :][: stored["size"]], TYPES[tensor["dataType"]])
            inputs[name] = data.reshape(tensor["shape"])
        outputs = self.models[request["params"]["modelID"]].run(inputs)
        described, offset = {}, 0
        with (self.reply(request) / "outputs.bin").open("wb") as stream:
            for name, output in outputs.items():
                value = np.ascontiguousarray(output)
                described[name] = {
                    "shape": list(value.shape),
                    "strides": [size // value.itemsize for size in value.strides],
                    "dataType": value.dtype.name.capitalize(),
                    "storage": {"offset": offset, "size": value.nbytes},
                }
                offset += stream.write(value.tobytes())
        return {"outputs": described}

    def reply(self, request: dict[str, Any]) -> Path:
        folder = self.folder / "responses" / request["id"]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def answer(self, message: Path) -> None:
        request = json.loads(message.read_text())
        resource = self.folder / "requests/resources" / request["id"] / request.get("resource", "")
        done = {"id": request["id"], "jsonrpc": "2.0"}
        kind = request["method"].removeprefix("MLModelService.")
        start = time.perf_counter_ns()
        if kind in ("Load", "Prediction"):
            result = (self.load if kind == "Load" else self.predict)(request, resource)
            duration = time.perf_counter_ns() - start
            done["result"] = {**result, "modelID": request["params"]["modelID"], "duration": duration}
            if kind == "Prediction":
                done["resource"] = "outputs.bin"
        else:
            done["error"] = {"code": -32601, "message": f"the stand-in has no {kind}"}
        path = self.reply(request) / "message.json"
        path.with_suffix(".part").write_text(json.dumps(done))
        path.with_suffix(".part").replace(path)


def main(folder: Path) -> None:
    app, seen = App(folder / "Documents/modelrunnerd"), set()
    mac = os.getppid()
    while os.getppid() == mac:
        for message in (app.folder / "requests/messages").glob("*/message.json"):
            if message not in seen:
                seen.add(message)
                app.answer(message)
        time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
