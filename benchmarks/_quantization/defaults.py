"""What each library does by itself, with its defaults: `python -m benchmarks._quantization.defaults REQUEST.json`.

The request has `program` (a `.pt2`), `calibration` (input name → `.npy`), `examples` (how many of them), `kind`, `backend` and
`out`. Only the calls that the libraries' own guides show are made; where a guide leaves a choice that decides what can
be compared (float inputs and outputs), the choice is the one that edgekit makes, and stands in a comment.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ITERATIONS = 8
"""Layers that NNCF's accuracy control may put back into float."""
OUT = {"litert": "model.tflite", "openvino": "model.xml", "onnxruntime": "model.onnx"}


class Work:
    """One request, read.

    Args:
        request: See this file's head.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        import torch

        torch.set_num_threads(1)
        self.kind: str = request["kind"]
        self.out = Path(request["out"])
        self.exported = torch.export.load(request["program"])
        self.arrays = [np.load(path)[: request["examples"]] for path in request["calibration"].values()]
        self.request = request

    def rows(self) -> Iterator[list[np.ndarray]]:
        """Calibration examples, one at a time."""
        for row in range(len(self.arrays[0])):
            yield [np.ascontiguousarray(array[row : row + 1]) for array in self.arrays]


def litert(work: Work) -> None:
    import litert_torch

    path = work.out / OUT["litert"]
    plain = work.out / "float.tflite"
    litert_torch.convert(work.exported.module(), work.exported.example_inputs[0]).export(str(plain))
    if work.kind == "float32":
        plain.rename(path)
        return
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    worker = quantizer.Quantizer(str(plain), getattr(recipe, work.kind)())
    ranges = None
    if work.kind.startswith("static"):
        # Float inputs and outputs, as edgekit has them: with the recipe alone they are int8.
        for edge in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
            worker.update_quantization_recipe(".*", edge, algorithm_key=AlgorithmName.NO_QUANTIZE)
        (name,) = _signatures(plain)
        given = [f"args_{place}" for place in range(len(work.arrays))]
        samples = [dict(zip(given, row, strict=True)) for row in work.rows()]
        ranges = worker.calibrate({name: samples}, num_threads=1)
    worker.quantize(ranges).export_model(str(path))
    plain.unlink()


def _signatures(path: Path) -> list[str]:
    from ai_edge_litert.interpreter import Interpreter

    return list(Interpreter(model_path=str(path)).get_signature_list())


def openvino(work: Work) -> None:
    # An import that fails makes both libraries take their own silent stub: nothing is sent from a benchmark.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as ov

    model = ov.convert_model(work.exported)
    model.reshape({port: ov.PartialShape(list(a[:1].shape)) for port, a in zip(model.inputs, work.arrays, strict=True)})
    if work.kind != "float32":
        nncf = importlib.import_module("nncf")
        logging.getLogger("nncf").setLevel(logging.WARNING)
        model = {
            "static_wi8_ai8": lambda: nncf.quantize(
                model, nncf.Dataset(list(work.rows())), subset_size=len(work.arrays[0])
            ),
            "weight_only_wi8_afp32": lambda: nncf.compress_weights(model),
            "accuracy_control": lambda: _controlled(nncf, model, work),
        }[work.kind]()
    ov.save_model(model, str(work.out / OUT["openvino"]), compress_to_fp16=False)


def _controlled(nncf: Any, model: Any, work: Work) -> Any:
    """NNCF's own answer to lost accuracy: layers go back to float until agreement with float32 is within a point."""
    rows = np.load(work.request["validation"]["image"])
    wanted = np.load(work.request["validation_reference"]).argmax(1)
    items = [(rows[row : row + 1], int(wanted[row])) for row in range(len(rows))]

    def agreement(compiled: Any, data: Any) -> tuple[float, list[float]]:
        hits = [float(compiled(image)[0].argmax() == label) for image, label in data]
        return float(np.mean(hits)), hits

    return nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset([row[0] for row in work.rows()]),
        validation_dataset=nncf.Dataset(items, lambda item: item[0]),
        validation_fn=agreement,
        max_drop=0.01,
        subset_size=len(work.arrays[0]),
        # By default there is no limit, and one point of 48 crops is none of them: it went on for more than ten minutes.
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(max_num_iterations=ITERATIONS),
    )


def onnxruntime(work: Work) -> None:
    import torch

    path = work.out / OUT["onnxruntime"]
    plain = work.out / "float.onnx"
    torch.onnx.export(work.exported, (), str(plain), dynamo=True, external_data=False)
    if work.kind == "float32":
        plain.rename(path)
        return
    import onnxruntime as ort
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = work.out / "ready.onnx"
    quant_pre_process(str(plain), str(ready))
    if work.kind == "static_wi8_ai8":
        names = [i.name for i in ort.InferenceSession(str(ready), providers=["CPUExecutionProvider"]).get_inputs()]
        rows = work.rows()

        class Reader(quantization.CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                row = next(rows, None)
                return None if row is None else dict(zip(names, row, strict=True))

        quantization.quantize_static(str(ready), str(path), Reader())
    else:
        quantization.quantize_dynamic(str(ready), str(path))
    ready.unlink()
    plain.unlink()


if __name__ == "__main__":
    _request = json.loads(Path(sys.argv[1]).read_text())
    {"litert": litert, "openvino": openvino, "onnxruntime": onnxruntime}[_request["backend"]](Work(_request))
