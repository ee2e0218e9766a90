"""Unsigned 8-bit inputs and outputs around a graph whose scheme is signed."""

from __future__ import annotations

from typing import Any

from edgekit.backends._litert import flatbuffer


def unsigned_edges(model: Any) -> None:
    """Make the 8-bit inputs and outputs of every signature unsigned, in place: the scheme itself is signed.

    int8 → graph → int8    becomes    uint8 → QUANTIZE → int8 → graph → int8 → QUANTIZE → uint8
    """
    for signature in model.signatureDefs:
        graph = flatbuffer.Graph(model, model.subgraphs[signature.subgraphIndex])
        subgraph = graph.subgraph
        before = {int(tensor): _unsigned(graph, int(tensor)) for tensor in subgraph.inputs}
        for inner, outer in before.items():
            if outer != inner:
                graph.op("QUANTIZE", [outer], [inner], flatbuffer.schema().QuantizeOptionsT())
        graph.operators += subgraph.operators
        after = {int(tensor): _unsigned(graph, int(tensor)) for tensor in subgraph.outputs}
        for inner, outer in after.items():
            if outer != inner:
                graph.op("QUANTIZE", [inner], [outer], flatbuffer.schema().QuantizeOptionsT())
        graph.close([before[int(tensor)] for tensor in subgraph.inputs], [after[int(t)] for t in subgraph.outputs])
        for side, places in ((signature.inputs, before), (signature.outputs, after)):
            for mapped in side:
                mapped.tensorIndex = places[int(mapped.tensorIndex)]


def _unsigned(graph: flatbuffer.Graph, tensor: int) -> int:
    """An unsigned tensor that stands for the same values; the tensor itself where it is no signed 8-bit one."""
    signed = graph.subgraph.tensors[tensor]
    scale = signed.quantization.scale if signed.quantization is not None else None
    if flatbuffer.type_name(signed.type) != "int8" or scale is None or len(scale) != 1:
        return tensor
    made = graph.tensor(graph.shape(tensor), "uint8")
    tflite = flatbuffer.schema()
    zero_point = int(signed.quantization.zeroPoint[0]) + 128
    graph.subgraph.tensors[made].quantization = tflite.QuantizationParametersT(
        scale=[float(scale[0])], zeroPoint=[zero_point]
    )
    return made
