"""Models of one matrix product, y = x · WEIGHTS with x [batch, 4], made in milliseconds for each runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgekit.core import schema
from edgekit.core.artifact import Artifact, Manifest, describe_files, load_artifact
from edgekit.core.lowering import Lowering
from edgekit.core.model import TensorSpec

Maker = Callable[[Path, int], tuple[str, dict[str, str]]]
"""Writes a model of a batch size into a folder; gives its main file and bindings."""

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 10


def onnx_model(folder: Path, batch: int) -> tuple[str, dict[str, str]]:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return "model.onnx", {}


# OpenVINO's own format, by hand: its Python package looks up an analytics host when it is asked to convert.
_IR = """<?xml version="1.0"?>
<net name="matmul" version="11">
  <layers>
    <layer id="0" name="x" type="Parameter" version="opset1"><data shape="{batch},4" element_type="f32"/>
      <output><port id="0" precision="FP32" names="x"><dim>{batch}</dim><dim>4</dim></port></output></layer>
    <layer id="1" name="w" type="Const" version="opset1"><data element_type="f32" shape="4,3" offset="0" size="48"/>
      <output><port id="0" precision="FP32"><dim>4</dim><dim>3</dim></port></output></layer>
    <layer id="2" name="y" type="MatMul" version="opset1"><data transpose_a="false" transpose_b="false"/>
      <input><port id="0" precision="FP32"><dim>{batch}</dim><dim>4</dim></port>
        <port id="1" precision="FP32"><dim>4</dim><dim>3</dim></port></input>
      <output><port id="2" precision="FP32" names="y"><dim>{batch}</dim><dim>3</dim></port></output></layer>
    <layer id="3" name="y/sink" type="Result" version="opset1">
      <input><port id="0" precision="FP32"><dim>{batch}</dim><dim>3</dim></port></input></layer>
  </layers>
  <edges>
    <edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
    <edge from-layer="1" from-port="0" to-layer="2" to-port="1"/>
    <edge from-layer="2" from-port="2" to-layer="3" to-port="0"/>
  </edges>
</net>
"""


def openvino_model(folder: Path, batch: int) -> tuple[str, dict[str, str]]:
    (folder / "model.xml").write_text(_IR.format(batch=batch))
    (folder / "model.bin").write_bytes(WEIGHTS.tobytes())
    return "model.xml", {}


def tflite_model(folder: Path, batch: int, weights: np.ndarray = WEIGHTS) -> tuple[str, dict[str, str]]:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def buffer(array=None):
        made = schema.BufferT()
        made.data = None if array is None else np.frombuffer(array.tobytes(), np.uint8)
        return made

    def tensor(name, shape, index):
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name.encode(), list(shape), index
        made.type = schema.TensorType.FLOAT32
        return made

    def named(name, index):
        made = schema.TensorMapT()
        made.name, made.tensorIndex = name.encode(), index
        return made

    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    wide, narrow = weights.shape
    graph.tensors = [tensor("serving_x", (batch, wide), 0), tensor("w", (narrow, wide), 1)]
    graph.tensors.append(tensor("serving_y", (batch, narrow), 0))
    graph.inputs, graph.outputs, graph.operators, graph.name = [0], [2], [operator], b"main"
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    signature = schema.SignatureDefT()
    signature.inputs, signature.outputs = [named("args_0", 0)], [named("output_0", 2)]
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.signatureDefs = 3, [code], [graph], [signature]
    model.buffers = [buffer(), buffer(np.ascontiguousarray(weights.T))]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    (folder / "model.tflite").write_bytes(bytes(builder.Output()))
    return "model.tflite", {"inputs.x": "args_0", "outputs.y": "output_0"}


def artifact_in(
    folder: Path,
    make: Maker,
    *,
    backend: str,
    batch: int = 2,
    target: str = "here",
    source: str = "model.py",
    sizes: tuple[int, int] = WEIGHTS.shape,
) -> Artifact:
    """An artifact of one of these models, named tiny; what else is in the folder already is part of it; `sizes` are x's and y's."""
    folder.mkdir(parents=True, exist_ok=True)
    main, bindings = make(folder, batch)
    manifest = Manifest(
        schema_version=1,
        name="tiny",
        backend=backend,
        target=target,
        main=main,
        files=describe_files(folder),
        inputs=(TensorSpec("x", (batch, sizes[0])),),
        outputs=(TensorSpec("y", (batch, sizes[1])),),
        lowering=Lowering(),
        history=(),
        source=source,
        source_digest="0",
        bindings=bindings,
    )
    (folder / "manifest.json").write_text(schema.to_json(manifest))
    return load_artifact(folder)
