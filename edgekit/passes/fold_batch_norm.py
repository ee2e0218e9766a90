"""Fold batch normalization into the layer before it.

In evaluation mode a batch norm is an affine map per channel, so a convolution or linear layer whose only reader is a
batch norm can carry it in its own weights (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2)::

    before   conv ──▶ batch_norm ──▶ relu
    after    conv' ──────────────▶ relu       W' = W·γ/σ,  b' = (b − μ)·γ/σ + β

Converters fold too, each in its own way; doing it here gives every backend, and every later pass, the same weights.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from edgekit.core.errors import PassError
from edgekit.core.extras import require
from edgekit.core.model import Model
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.task import Task
from edgekit.passes._graph import LAYER_OPERATORS, distance, module_path, shortened
from edgekit.passes.base import NoOptions, Pass, PassContext, PassResult

_SHOWN = 3
_NORM = "aten.batch_norm.default"
_TOLERANCE = 1e-3
"""Of the largest output: far above what rounding in another order does, far below a wrong fold."""


class FoldBatchNorm(Pass):
    """Folds each batch norm into the convolution or linear layer that alone feeds it."""

    summary: ClassVar[str] = "fold batch normalization into the layer before it"
    Options: ClassVar[type[Any]] = NoOptions
    before: ClassVar[tuple[str, ...]] = ("quantize_aware",)

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`."""
        program = model.program
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        pairs, skipped = _pairs(program)
        folded = _folded(program, pairs)
        unusual = [pair for pair in pairs if not _is_plain(program.module.get_submodule(pair[0]), *_layer_forwards())]
        if unusual and not distance(program, folded)[1] <= _TOLERANCE:
            # A layer with a forward of its own may not use the bias that it is given; the others can still be folded.
            pairs = [pair for pair in pairs if pair not in unusual]
            skipped += [f"{norm} stays: '{layer}' does more than a plain layer does" for layer, norm in unusual]
            folded = _folded(program, pairs)
        if not pairs:
            return PassResult(
                model, modified=False, notes=("there is no batch norm to fold", *shortened(skipped, _SHOWN, "stay"))
            )
        notes = (f"{len(pairs)} batch norms folded", *shortened(skipped, _SHOWN, "stay"))
        return PassResult(
            replace(model, program=folded, digest=folded.digest()),
            modified=True,
            notes=notes,
            structure={"pairs": [list(pair) for pair in pairs]},
        )

    def ensures(self, before: Model, after: Model) -> None:
        """See `Pass.ensures`; folding must not change what the model computes."""
        super().ensures(before, after)
        name, apart = distance(before.program, after.program)
        if not apart <= _TOLERANCE:
            raise PassError(
                f"Folding batch norms changed the output '{name}' by {apart:.3g} of its largest value.",
                "Leave out fold_batch_norm for this model.",
            )

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`."""
        _fold(module, [(layer, norm) for layer, norm in structure["pairs"]], weights=False)
        return module


def _folded(program: TorchProgram, pairs: Sequence[tuple[str, str]]) -> TorchProgram:
    module = copy.deepcopy(program.module)
    _fold(module, pairs, weights=True)
    return program.with_module(module.eval())


def _pairs(program: TorchProgram) -> tuple[list[tuple[str, str]], list[str]]:
    """Module paths of (layer, batch norm) that can be folded, and a note for each batch norm that cannot."""
    nodes = list(program.exported.graph.nodes)
    weights = program.exported.graph_signature.inputs_to_parameters
    counted = {*LAYER_OPERATORS, _NORM}
    calls = Counter(module_path(node) for node in nodes if str(node.target) in counted)
    modules = dict(program.module.named_modules())
    pairs, skipped = [], []
    for node in nodes:
        if node.op != "call_function" or str(node.target) != _NORM:
            continue
        norm, source = module_path(node), node.args[0]
        weight: Any = source.args[1] if len(source.args) > 1 else None
        layer = module_path(source) if source.op == "call_function" else ""
        reason = ""
        if not norm or not hasattr(modules.get(norm), "running_mean") or modules[norm].running_mean is None:
            reason = "it is not a module with running statistics"
        elif not _is_plain(modules[norm], _norm_forward()):
            reason = "its module does more than normalize"
        elif str(getattr(source, "target", "")) not in LAYER_OPERATORS or not hasattr(modules.get(layer), "weight"):
            reason = "what feeds it is neither a convolution nor a linear layer"
        elif len(source.users) > 1:
            reason = f"something else reads the output of '{layer}' too"
        elif modules[layer]._forward_hooks or modules[layer]._forward_pre_hooks:
            reason = f"'{layer}' has hooks"
        elif calls[layer] > 1 or calls[norm] > 1:
            reason = "a module of the pair is used more than once"
        elif str(source.target) == "aten.linear.default" and source.meta["val"].dim() != 2:
            reason = "its channels are not the linear layer's outputs"
        elif getattr(modules[layer], "transposed", False) and modules[layer].groups > 1:
            reason = "its layer is a grouped transposed convolution"
        elif _is_shared(program.module, modules[layer]) or len(weight.users) > 1:
            reason = f"the weights of '{layer}' are shared with another layer"
        elif weights.get(weight.name) != f"inner.{layer}.weight":
            reason = f"'{layer}' computes its weight"
        if reason:
            skipped.append(f"{norm or node.name} stays: {reason}")
        else:
            pairs.append((layer, norm))
    return pairs, skipped


def _layer_forwards() -> tuple[Any, ...]:
    torch = require("torch", TORCH_EXTRA, "the pass fold_batch_norm")
    nn = torch.nn
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
    return tuple(kind.forward for kind in kinds)


def _norm_forward() -> Any:
    torch = require("torch", TORCH_EXTRA, "the pass fold_batch_norm")
    return torch.nn.modules.batchnorm._BatchNorm.forward


def _is_plain(module: Any, *forwards: Any) -> bool:
    """Whether a module does what torch's own does and nothing else: no forward of its own, no hooks."""
    return type(module).forward in forwards and not (module._forward_hooks or module._forward_pre_hooks)


def _is_shared(root: Any, layer: Any) -> bool:
    owners = [m for m in root.modules() if any(p is layer.weight for p in m.parameters(recurse=False))]
    return len(owners) > 1


def _fold(root: Any, pairs: Sequence[tuple[str, str]], *, weights: bool) -> None:
    """Put the folded structure in place; with `weights` also its values, else they are loaded afterwards."""
    torch = require("torch", TORCH_EXTRA, "the pass fold_batch_norm")
    for layer_path, norm_path in pairs:
        layer, norm = root.get_submodule(layer_path), root.get_submodule(norm_path)
        if layer.bias is None:
            channels = norm.running_mean.shape[0]
            layer.register_parameter("bias", torch.nn.Parameter(torch.zeros(channels, dtype=layer.weight.dtype)))
        if weights:
            with torch.no_grad():
                scale, shift = _affine(norm)
                layer.weight.copy_(layer.weight * scale.reshape(_weight_shape(layer, torch)))
                layer.bias.copy_(layer.bias * scale + shift)
        root.set_submodule(norm_path, torch.nn.Identity())


def _affine(norm: Any) -> tuple[Any, Any]:
    """The batch norm as a scale and a shift per channel."""
    sigma = (norm.running_var + norm.eps).sqrt()
    gamma = norm.weight if norm.weight is not None else 1.0
    beta = norm.bias if norm.bias is not None else 0.0
    scale = gamma / sigma
    return scale, beta - norm.running_mean * scale


def _weight_shape(layer: Any, torch: Any) -> list[int]:
    """The shape in which a scale per output channel multiplies the layer's weight.

    A transposed convolution keeps (in, out / groups, …): its output channels are the second axis (one group: `_pairs` takes no other).
    """
    dimensions = layer.weight.dim()
    if isinstance(layer, torch.nn.modules.conv._ConvTransposeNd):
        return [1, -1] + [1] * (dimensions - 2)
    return [-1] + [1] * (dimensions - 1)
