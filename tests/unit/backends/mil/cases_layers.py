"""Operators that are layers: convolutions, pools, norms, products, recurrence, control flow, detection."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.unit.backends.mil.cases_elementwise import A, Case, X, floats, unary
from tests.unit.backends.mil.cases_shape import one_input

F = torch.nn.functional
IMAGE = floats(2, 4, 9, 8)
SEQUENCE = floats(2, 4, 11)
VOLUME = floats(1, 2, 5, 6, 4)
W = floats(6, 4, 3, 3)
DEPTHWISE = floats(8, 1, 3, 2)
BIAS = floats(6)


def t(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


CONVOLUTIONS = [
    one_input(
        "conv",
        IMAGE,
        lambda x: F.conv2d(x, t(W), t(BIAS), stride=2, padding=1),
        "custom",
        weight=W,
        bias=BIAS,
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    one_input(
        "conv",
        IMAGE,
        lambda x: F.conv2d(F.pad(x, (1, 0, 2, 1)), t(W)),
        "uneven",
        weight=W,
        pad_type="custom",
        pad=[2, 1, 1, 0],
    ),
    one_input(
        "conv", IMAGE, lambda x: F.conv2d(x, t(W), dilation=2), "dilated", weight=W, dilations=[2, 2], pad_type="valid"
    ),
    one_input(
        "conv",
        IMAGE,
        lambda x: F.conv2d(F.pad(x, (0, 1, 1, 1)), t(W), stride=2),
        "same",
        weight=W,
        strides=[2, 2],
        pad_type="same",
    ),
    one_input(
        "conv",
        IMAGE,
        lambda x: F.conv2d(F.pad(x, (1, 0, 1, 1)), t(W), stride=2),
        "same-lower",
        weight=W,
        strides=[2, 2],
        pad_type="same_lower",
    ),
    one_input("conv", IMAGE, lambda x: F.conv2d(x, t(DEPTHWISE), groups=4), "groups", weight=DEPTHWISE, groups=4),
    one_input("conv", SEQUENCE, lambda x: F.conv1d(x, t(W[..., 0]), stride=2), "1d", weight=W[..., 0], strides=[2]),
    one_input(
        "conv",
        VOLUME,
        lambda x: F.conv3d(x, t(floats(3, 2, 2, 2, 2) * 0 + 0.5)),
        "3d",
        weight=np.full((3, 2, 2, 2, 2), 0.5, np.float32),
    ),
]
TW = floats(4, 3, 3, 2)
T_BIAS = floats(3)
TRANSPOSED = [
    one_input(
        "conv_transpose",
        IMAGE,
        lambda x: F.conv_transpose2d(x, t(TW), t(T_BIAS), stride=2),
        "valid",
        weight=TW,
        bias=T_BIAS,
        strides=[2, 2],
    ),
    one_input(
        "conv_transpose",
        IMAGE,
        lambda x: F.conv_transpose2d(x, t(TW), stride=2, padding=1),
        "custom",
        weight=TW,
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    one_input(
        "conv_transpose",
        IMAGE,
        lambda x: F.conv_transpose2d(x, t(TW), t(T_BIAS), stride=3, padding=1, output_padding=2),
        "output-shape",
        weight=TW,
        bias=T_BIAS,
        strides=[3, 3],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        output_shape=[2, 3, 27, 23],
    ),
    one_input(
        "conv_transpose",
        SEQUENCE,
        lambda x: F.conv_transpose1d(x, t(TW[..., 0]), dilation=2),
        "1d",
        weight=TW[..., 0],
        dilations=[2],
    ),
    one_input(
        "conv_transpose",
        IMAGE,
        lambda x: F.conv_transpose2d(x, t(DEPTHWISE[:4]), groups=4),
        "groups",
        weight=DEPTHWISE[:4],
        groups=4,
    ),
    one_input(
        "conv_transpose",
        IMAGE,
        lambda x: F.conv_transpose2d(x, t(TW), stride=2)[:, :, :18, :16],
        "same",
        weight=TW,
        strides=[2, 2],
        pad_type="same",
    ),
]

POOLS = [
    one_input(
        "max_pool",
        IMAGE,
        lambda x: F.max_pool2d(x, 3, 2, 1),
        "custom",
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    one_input(
        "max_pool",
        IMAGE,
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        "ceil",
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
    ),
    one_input(
        "max_pool", SEQUENCE, lambda x: F.max_pool1d(x, 2), "1d", kernel_sizes=[2], strides=[2], pad_type="valid"
    ),
    one_input(
        "avg_pool",
        IMAGE,
        lambda x: F.avg_pool2d(x, 3, 2, 1),
        "padding-counted",
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    one_input(
        "avg_pool",
        IMAGE,
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        "padding-left-out",
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        exclude_padding_from_average=True,
    ),
    one_input(
        "avg_pool",
        IMAGE,
        lambda x: F.avg_pool2d(x, 2, 2, 0, ceil_mode=True),
        "ceil",
        kernel_sizes=[2, 2],
        strides=[2, 2],
        pad_type="valid",
        ceil_mode=True,
    ),
    one_input(
        "avg_pool", SEQUENCE, lambda x: F.avg_pool1d(x, 3), "1d", kernel_sizes=[3], strides=[3], pad_type="valid"
    ),
    one_input(
        "avg_pool",
        VOLUME,
        lambda x: F.avg_pool3d(x, 2, 2),
        "3d",
        kernel_sizes=[2, 2, 2],
        strides=[2, 2, 2],
        pad_type="valid",
    ),
    one_input(
        "l2_pool", IMAGE, lambda x: F.lp_pool2d(x, 2.0, 2, 2), "", kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"
    ),
]

GAMMA, BETA, MEAN, VARIANCE = floats(4), floats(4), floats(4), floats(4, low=0.2, high=2.0)
NORMS = [
    unary(
        "batch_norm",
        IMAGE,
        lambda x: F.batch_norm(x, t(MEAN), t(VARIANCE), t(GAMMA), t(BETA)),
        mean=MEAN,
        variance=VARIANCE,
        gamma=GAMMA,
        beta=BETA,
    ),
    unary("instance_norm", IMAGE, lambda x: F.instance_norm(x, weight=t(GAMMA), bias=t(BETA)), gamma=GAMMA, beta=BETA),
    unary("layer_norm", A, lambda x: F.layer_norm(x, (4,), t(GAMMA), t(BETA)), axes=[-1], gamma=GAMMA, beta=BETA),
    one_input("layer_norm", X, lambda x: F.layer_norm(x, (4, 5)), "plain", axes=[2, 3]),
    unary("l2_norm", X, lambda x: x / (x.square().sum((1, 2, 3), keepdim=True) + 1e-6).sqrt()),
    unary(
        "local_response_norm",
        IMAGE,
        lambda x: F.local_response_norm(x, 3, 1e-2, 0.7, 1.1),
        size=3,
        alpha=np.float32(1e-2),
        beta=np.float32(0.7),
        k=np.float32(1.1),
    ),
]

M, N = floats(2, 3, 4), floats(2, 5, 4)
Q, K, V = floats(2, 2, 4, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 6)
MASK = np.tril(np.ones((4, 5), bool))
PRODUCTS = [
    unary("linear", A, lambda x: F.linear(x, t(floats(1, 4) * 0 + 0.5)), weight=np.full((1, 4), 0.5, np.float32)),
    Case(
        "matmul",
        {"x": M, "y": N},
        lambda mb, x, y: mb.matmul(x=x, y=y, transpose_y=True),
        lambda x, y: x @ y.transpose(1, 2),
    ),
    Case(
        "matmul",
        {"x": M, "y": floats(2, 3, 5)},
        lambda mb, x, y: mb.matmul(x=x, y=y, transpose_x=True),
        lambda x, y: x.transpose(1, 2) @ y,
        label="left",
    ),
    Case(
        "einsum",
        {"x": floats(2, 3, 4, 5), "y": floats(2, 5, 4, 6)},
        lambda mb, x, y: mb.einsum(values=(x, y), equation="bchw,bwhu->bchu"),
        lambda x, y: torch.einsum("bchw,bwhu->bchu", x, y),
    ),
    Case(
        "scaled_dot_product_attention",
        {"q": Q, "k": K, "v": V},
        lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        F.scaled_dot_product_attention,
        release="iOS18",
    ),
    Case(
        "scaled_dot_product_attention",
        {"q": Q, "k": K, "v": V},
        lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=MASK),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, t(MASK)),
        release="iOS18",
        label="mask",
    ),
]

STEPS, HIDDEN = floats(5, 2, 3), 4
LSTM = torch.nn.LSTM(3, HIDDEN, bidirectional=True)
GRU = torch.nn.GRU(3, HIDDEN)
RNN = torch.nn.RNN(3, HIDDEN)
H0, C0 = floats(2, 8), floats(2, 8)


def arranged(layer: torch.nn.Module, name: str, order: tuple[int, ...]) -> np.ndarray:
    pieces = np.split(getattr(layer, name).detach().numpy(), len(order))
    return np.concatenate([pieces[gate] for gate in order])


def lstm_side(suffix: str, back: str = "") -> dict[str, np.ndarray]:
    order = (0, 1, 3, 2)
    bias = arranged(LSTM, f"bias_ih_l0{suffix}", order) + arranged(LSTM, f"bias_hh_l0{suffix}", order)
    return {
        f"weight_ih{back}": arranged(LSTM, f"weight_ih_l0{suffix}", order),
        f"weight_hh{back}": arranged(LSTM, f"weight_hh_l0{suffix}", order),
        f"bias{back}": bias,
    }


def torch_lstm(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    halves = [torch.stack([t(array)[:, :HIDDEN], t(array)[:, HIDDEN:]]) for array in (H0, C0)]
    with torch.no_grad():
        sequence, (h, c) = LSTM(x, tuple(halves))
    return sequence, torch.cat([h[0], h[1]], 1), torch.cat([c[0], c[1]], 1)


def forward_lstm() -> torch.nn.LSTM:
    layer = torch.nn.LSTM(3, HIDDEN)
    layer.load_state_dict({name: value for name, value in LSTM.state_dict().items() if "reverse" not in name})
    return layer


def backwards_lstm(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The outputs come in the order in which they were computed."""
    zeros = torch.zeros(1, 2, HIDDEN)
    with torch.no_grad():
        sequence, (h, c) = forward_lstm()(x.flip(0), (zeros, zeros))
    return sequence, h[0], c[0]


def torch_gru(x: torch.Tensor, flipped: bool = False) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        sequence, h = GRU(x.flip(0) if flipped else x, t(H0[None, :, :HIDDEN]))
    return sequence, h[0]


def reset_before_gru(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Core ML's own form: the reset gate acts on the state before the product, with one bias."""
    w_ih, w_hh = (t(arranged(GRU, name, (0, 2, 1))) for name in ("weight_ih_l0", "weight_hh_l0"))
    bias = t(arranged(GRU, "bias_ih_l0", (0, 2, 1)))
    h, states = torch.zeros(2, HIDDEN), []
    for step in x:
        into = F.linear(step, w_ih, bias)
        r = torch.sigmoid(into[:, :4] + h @ w_hh[:4].T)
        z = torch.sigmoid(into[:, 8:] + h @ w_hh[8:].T)
        h = (1 - z) * torch.tanh(into[:, 4:8] + (r * h) @ w_hh[4:8].T) + z * h
        states.append(h)
    return torch.stack(states), h


def torch_rnn(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        sequence, h = RNN(x, t(H0[None, :, :HIDDEN]))
    return sequence[-1:], h[0]


GRU_PARTS = {
    name: arranged(GRU, f"{part}_l0", (0, 2, 1))
    for name, part in (
        ("weight_ih", "weight_ih"),
        ("weight_hh", "weight_hh"),
        ("input_bias", "bias_ih"),
        ("bias", "bias_hh"),
    )
}
ZERO_STATE = np.zeros((2, HIDDEN), np.float32)

RECURRENT = [
    one_input(
        "lstm",
        STEPS,
        torch_lstm,
        "both-ways",
        initial_h=H0,
        initial_c=C0,
        direction="bidirectional",
        output_sequence=True,
        **lstm_side(""),
        **lstm_side("_reverse", "_back"),
    ),
    one_input(
        "lstm",
        STEPS,
        backwards_lstm,
        "reverse",
        initial_h=ZERO_STATE,
        initial_c=ZERO_STATE,
        direction="reverse",
        output_sequence=True,
        **lstm_side(""),
    ),
    one_input(
        "gru",
        STEPS,
        torch_gru,
        "torch",
        release="iOS18",
        initial_h=H0[:, :HIDDEN],
        reset_after=True,
        output_sequence=True,
        **GRU_PARTS,
    ),
    one_input(
        "gru",
        STEPS,
        lambda x: torch_gru(x, flipped=True),
        "torch-reverse",
        release="iOS18",
        initial_h=H0[:, :HIDDEN],
        reset_after=True,
        output_sequence=True,
        direction="reverse",
        **GRU_PARTS,
    ),
    one_input(
        "gru",
        STEPS,
        reset_before_gru,
        "reset-before",
        initial_h=ZERO_STATE,
        output_sequence=True,
        weight_ih=GRU_PARTS["weight_ih"],
        weight_hh=GRU_PARTS["weight_hh"],
        bias=GRU_PARTS["input_bias"],
    ),
    one_input(
        "rnn",
        STEPS,
        torch_rnn,
        "",
        initial_h=H0[:, :HIDDEN],
        weight_ih=RNN.weight_ih_l0.detach().numpy(),
        weight_hh=RNN.weight_hh_l0.detach().numpy(),
        bias=(RNN.bias_ih_l0 + RNN.bias_hh_l0).detach().numpy(),
    ),
]


def build_cond(mb: Any, x: Any) -> Any:
    pred = mb.greater(x=mb.reduce_sum(x=x, keep_dims=False), y=0.0)
    return mb.cond(pred=pred, _true_fn=lambda: mb.mul(x=x, y=2.0), _false_fn=lambda: mb.sub(x=x, y=1.0))


def build_while(mb: Any, x: Any, n: Any) -> Any:
    def body(i: Any, value: Any) -> Any:
        return mb.add(x=i, y=1), mb.mul(x=value, y=1.5)

    count = mb.squeeze(x=n, axes=[0])
    return mb.while_loop(_cond=lambda i, value: mb.less(x=i, y=count), _body=body, loop_vars=(0, x))[1]


def build_list(mb: Any, x: Any) -> Any:
    made = mb.make_list(init_length=3, elem_shape=(4,), dtype="fp32")
    first = mb.slice_by_index(x=x, begin=[0, 0], end=[1, 4], squeeze_mask=[True, False])
    made = mb.list_write(ls=made, index=1, value=first)
    made = mb.list_scatter(ls=made, indices=[0, 2], value=mb.slice_by_index(x=x, begin=[1, 0], end=[3, 4]))
    together = mb.list_gather(ls=made, indices=[0, 1, 2])
    return together, mb.list_read(ls=made, index=2), mb.expand_dims(x=mb.list_length(ls=made), axes=[0])


def suppressed(boxes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of three boxes the second overlaps the first by four fifths and has a lower score."""
    order = torch.tensor([0, 2])
    pad = torch.nn.functional.pad
    return pad(boxes[:, :, order], (0, 1)), pad(scores[:, :, order], (0, 1)), torch.tensor([[0, 2, -1]])


CENTRES = np.array([[[5, 5, 10, 10], [6, 5, 10, 10], [20, 20, 4, 4]]], np.float32)
SCORES = np.array([[[0.9, 0.1], [0.2, 0.8], [0.3, 0.1]]], np.float32)

CONTROL = [
    Case("cond", {"x": np.abs(A)}, build_cond, lambda x: x * 2, label="true"),
    Case("cond", {"x": -np.abs(A)}, build_cond, lambda x: x - 1, label="false"),
    Case("while_loop", {"x": A, "n": np.array([3], np.int32)}, build_while, lambda x, n: x * 1.5**3),
    Case(
        "list_gather",
        {"x": floats(3, 4)},
        build_list,
        lambda x: (torch.stack([x[1], x[0], x[2]]), x[2], torch.tensor([3])),
    ),
    Case(
        "non_maximum_suppression",
        {"boxes": CENTRES.transpose(0, 2, 1).copy(), "scores": SCORES.transpose(0, 2, 1).copy()},
        lambda mb, boxes, scores: mb.non_maximum_suppression(
            boxes=boxes, scores=scores, iou_threshold=0.5, max_boxes=3
        ),
        suppressed,
    ),
    Case(
        "non_maximum_suppression",
        {"boxes": CENTRES, "scores": SCORES},
        lambda mb, boxes, scores: mb.non_maximum_suppression(
            boxes=boxes, scores=scores, iou_threshold=0.5, score_threshold=0.5, max_boxes=2, per_class_suppression=True
        ),
        lambda boxes, scores: (boxes[:, :2], scores[:, :2], torch.tensor([[0, 1]]), torch.tensor([2])),
        release="iOS16",
        label="by-class",
    ),
]

CASES = [*CONVOLUTIONS, *TRANSPOSED, *POOLS, *NORMS, *PRODUCTS, *RECURRENT, *CONTROL]
