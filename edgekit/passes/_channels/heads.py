"""Heads of attention that a module of the person's own computes from linear layers.

A head is its rows of the projections to queries, keys and values, and its columns of the output projection; what is
left has the same width a head, so that nothing else changes. nn.MultiheadAttention cannot have fewer: its width is
that of its input.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekit.core.program import TorchProgram
from edgekit.passes._channels.check import runs_right
from edgekit.passes._channels.groups import Group, Slice, torch_
from edgekit.passes._graph import tied_parameters

_COUNTS = ("num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads")
_WIDTHS = ("all_head_size", "inner_dim", "attn_dim")
_OTHER_WIDTHS = ("embed_dim", "hidden_size", "d_model", "dim")
"""Names that stand for the width of the heads in some code, for that of the input in other."""
_FUSED = ("qkv", "to_qkv", "in_proj", "qkv_proj", "c_attn", "query_key_value")
_SEPARATE = (
    ("q", "k", "v"),
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("q_lin", "k_lin", "v_lin"),
)
_OUTPUTS = ("proj", "out_proj", "o_proj", "to_out", "to_out.0", "out", "dense", "wo", "out_lin", "o", "c_proj")


def find_heads(program: TorchProgram) -> tuple[list[Group], dict[str, str]]:
    """The attention modules of a model, each as a group whose units are its heads.

    Each is proved: without one head the module has to compute what it does where nothing reads that head.

    Returns:
        The groups; and the attention modules that stay, by path, with the reason.
    """
    nn = torch_().nn
    groups: list[Group] = []
    stays: dict[str, str] = {}
    tied = tied_parameters(program.module)
    for path, module in program.module.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            stays[path] = "nn.MultiheadAttention cannot have fewer heads: its width is that of its input"
            continue
        count = next((name for name in _COUNTS if _is_count(getattr(module, name, None))), None)
        if count is None:
            continue
        candidates = list(_candidates(program.module, path, module, count))
        if not candidates or any(f"{one.path}.weight" in tied for one in candidates[0].slices):
            reason = "its projections are shared" if candidates else "its projections are not known by their names"
            stays[path] = f"the heads of '{path}' stay: {reason}"
            continue
        proved = next((one for one in candidates if runs_right(program, [(one, one.removal(one.units[0]), 1)])), None)
        if proved is None:
            stays[path] = "its forward counts on all heads: reshape to -1 in place of the width"
        else:
            groups.append(proved)
    return groups, stays


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _candidates(root: Any, path: str, module: Any, count: str) -> Iterator[Group]:
    """The ways in which the module may be built; only running it tells which."""
    nn = torch_().nn
    heads = int(getattr(module, count))
    linear = {name: one for name, one in module.named_modules() if isinstance(one, nn.Linear)}
    fused = next((name for name in _FUSED if name in linear), None)
    separate = next((names for names in _SEPARATE if all(name in linear for name in names)), None)
    if fused is not None:
        width = linear[fused].out_features // 3
        if linear[fused].out_features != 3 * width:
            return
    elif separate is not None:
        width = linear[separate[0]].out_features
        if any(linear[name].out_features != width for name in separate):
            return
    else:
        return
    output = _output_of(root, path, linear, width)
    if width % heads or output is None:
        return
    one_head = width // heads
    layouts = _fused_layouts(heads, one_head) if fused is not None else [tuple(range(width))]
    projections = [fused] if fused is not None else list(separate or ())
    for layout, widths in itertools.product(layouts, ((*_WIDTHS,), (*_WIDTHS, *_OTHER_WIDTHS))):
        slices = [
            *(Slice(_joined(path, name), "out", tuple(range(len(layout))), layout) for name in projections),
            Slice(output, "in", tuple(range(width)), tuple(range(width))),
        ]
        less = {name: 1 for name in _COUNTS if getattr(module, name, None) == heads}
        less |= {name: one_head for name in widths if getattr(module, name, None) == width}
        yield _group(path, heads, one_head, slices, {path: less})


def _fused_layouts(heads: int, width: int) -> list[tuple[int, ...]]:
    """Which channel of the heads each row of a fused projection belongs to: three blocks of heads, or heads of three."""
    blocks = tuple(itertools.chain.from_iterable(range(heads * width) for _ in range(3)))
    by_head = tuple(head * width + place for head in range(heads) for _ in range(3) for place in range(width))
    return [blocks, by_head]


def _group(
    path: str, heads: int, width: int, slices: Sequence[Slice], attributes: Mapping[str, Mapping[str, int]]
) -> Group:
    def removal(channels: Sequence[int]) -> tuple[Slice, ...]:
        gone = set(channels)
        kept = []
        for one in slices:
            pairs = [(index, root) for index, root in zip(one.indices, one.roots, strict=True) if root in gone]
            kept.append(Slice(one.path, one.role, tuple(i for i, _ in pairs), tuple(r for _, r in pairs)))
        return tuple(kept)

    units = tuple(tuple(range(head * width, (head + 1) * width)) for head in range(heads))
    return Group((path,), heads * width, units, tuple(slices), removal, attributes, heads=True)


def _output_of(root: Any, path: str, linear: Mapping[str, Any], width: int) -> str | None:
    """The output projection: in the module, or beside it as `output.dense`, as BERT has it."""
    name = next((name for name in _OUTPUTS if name in linear and linear[name].in_features == width), None)
    if name is not None:
        return _joined(path, name)
    parent = path.rpartition(".")[0]
    beside = _joined(parent, "output.dense")
    layers = dict(root.named_modules())
    return beside if beside in layers and getattr(layers[beside], "in_features", 0) == width else None


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


__all__ = ["find_heads"]
