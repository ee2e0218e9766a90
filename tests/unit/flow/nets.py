"""A network with what bisecting has to cope with, and ways to damage its artifacts."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np

MODEL = """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.act = nn.ReLU6()

        def forward(self, x):
            return x + self.act(self.norm(self.conv(x)))

    class Net(nn.Module):
        '''A residual block on each of two branches, joined; then one module that is called twice.'''

        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=2)
            self.left, self.right = Block(), Block()
            self.shared = nn.Conv2d(16, 16, 1)
            self.pool = nn.AvgPool2d(2)
            self.head = nn.Linear(16 * 16, 5, bias=False)

        def forward(self, image):
            x = self.stem(nn.functional.pad(image, (1, 1, 1, 1))).relu()
            y = torch.cat([self.left(x), self.right(x)], 1)
            y = self.shared(self.shared(y).relu()).tanh()
            return self.head(self.pool(y).flatten(1))

    def build():
        torch.manual_seed(0)
        net = Net()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        return net.eval(), {"image": torch.randn(1, 3, 16, 16)}
    """

WEIGHTS = {
    "stem": ((8, 3, 3, 3), 0),
    "left.conv": ((8, 8, 3, 3), 0),
    "right.conv": ((8, 8, 3, 3), 1),
    "shared": ((16, 16, 1, 1), 0),
}
"""Shape of each convolution's weights, and which of those of that shape they are."""


def spoiled(values: np.ndarray) -> np.ndarray:
    """The same weights with every third one's sign turned."""
    found = values.copy()
    found.reshape(-1)[::3] *= -1
    return found


def spoil_openvino(artifact: Path, layer: str) -> None:
    shape, place = WEIGHTS[layer]
    sizes = ", ".join(map(str, shape))
    found = re.findall(rf'shape="{sizes}" offset="(\d+)" size="(\d+)"', (artifact / "model.xml").read_text())
    offset, size = map(int, found[place])
    data = bytearray((artifact / "model.bin").read_bytes())
    data[offset : offset + size] = spoiled(np.frombuffer(bytes(data[offset : offset + size]), np.float32)).tobytes()
    (artifact / "model.bin").write_bytes(bytes(data))


def spoil_onnxruntime(artifact: Path, layer: str) -> None:
    import onnx
    from onnx import numpy_helper

    shape, place = WEIGHTS[layer]
    model = onnx.load(artifact / "model.onnx")
    tensor = [item for item in model.graph.initializer if tuple(item.dims) == shape][place]
    tensor.CopyFrom(numpy_helper.from_array(spoiled(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, artifact / "model.onnx")


def spoil_litert(artifact: Path, layer: str) -> None:
    """Turn signs in the bytes of the weights that the layer's convolution names."""
    from ai_edge_litert import schema_py_generated as tflite

    data = bytearray((artifact / "model.tflite").read_bytes())
    model = tflite.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    outs, depth, height, width = WEIGHTS[layer][0]
    weights = []
    for index in range(graph.OperatorsLength()):
        inputs = graph.Operators(index).InputsAsNumpy()
        if len(inputs) > 1:
            tensor = graph.Tensors(inputs[1])
            if not tensor.ShapeIsNone() and list(tensor.ShapeAsNumpy()) == [outs, height, width, depth]:
                weights.append(model.Buffers(tensor.Buffer()).DataAsNumpy())
    raw = weights[WEIGHTS[layer][1]]
    place = raw.ctypes.data - np.frombuffer(data, np.uint8).ctypes.data
    data[place : place + raw.nbytes] = spoiled(raw.view(np.float32)).tobytes()
    (artifact / "model.tflite").write_bytes(bytes(data))


def spoil_coreml(artifact: Path, layer: str) -> None:
    """Turn signs of the weights in the package's file of weights; the source's own values say where they are."""
    import torch

    scope: dict = {}
    exec(textwrap.dedent(MODEL), scope)
    wanted = scope["build"]()[0].get_submodule(layer).weight.detach().flatten(1)
    (path,) = artifact.rglob("weight.bin")
    data = bytearray(path.read_bytes())
    size = 2 * wanted.numel()
    # A folded normalization has scaled each channel.
    place = next(
        start
        for start in range(0, len(data) - size, 64)
        if torch.cosine_similarity(
            torch.frombuffer(data[start : start + size], dtype=torch.float16).view_as(wanted), wanted
        ).min()
        > 0.999
    )
    data[place : place + size] = spoiled(np.frombuffer(bytes(data[place : place + size]), np.float16)).tobytes()
    path.write_bytes(data)


SPOIL = {
    "openvino": spoil_openvino,
    "onnxruntime": spoil_onnxruntime,
    "litert": spoil_litert,
    "coreml": spoil_coreml,
}
