"""ONNX → torch: reads an ONNX network into a `torch.nn.Module`, so that passes and every backend can take it.

    loading     the file: complete, readable, weights found, opset known
    translate   walks the nodes; folds what is constant, refuses by name what cannot be taken
    graph       turns plain torch code, run on stand-ins of known shape, into a torch.fx graph
    registry    which function translates which operator, since which opset
    ops/        the translations, one module a family

An operator's translation is ordinary torch code. Given constants it computes them (that is the constant folding); given
a `Traced` value it writes nodes into the graph while torch's fake tensors work out every shape.

Importing this package imports neither torch nor onnx; `import_onnx` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.frontends._onnx_import.loading import load_checked

if TYPE_CHECKING:
    from edgekit.core.task import Array

__all__ = ["Imported", "import_onnx", "inputs_needed_constant", "load_checked"]


@dataclass(frozen=True)
class Imported:
    """What an ONNX model became.

    Attributes:
        module: An `nn.Module` (a `torch.fx.GraphModule`) in evaluation mode: positional tensors in, a tensor or, where
            there are several outputs, a tuple of tensors out. Shapes are static.
        input_names: The ONNX names of the inputs, in calling order.
        output_names: The ONNX names of the outputs, in order.
        input_shapes: Shape of each input, by name.
        input_dtypes: Element type of each input (`float32`, …), by name.
    """

    module: Any
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    input_dtypes: Mapping[str, str]


def import_onnx(
    model: Any,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    constants: Mapping[str, Array] | None = None,
) -> Imported:
    """Translate an ONNX model into torch.

    Args:
        model: A checked `onnx.ModelProto` with its weights loaded (see `load_checked`). Opsets older than 13 are first
            brought to 13 by ONNX's own version converter.
        shapes: Sizes of inputs whose ONNX shape is symbolic, by name.
        constants: Values of graph inputs that are to be constants (a `shape` or `axes` input, say), by name; such an
            input is no input of the module.

    Raises:
        ConfigError: `shapes` or `constants` name an input that the model does not have, or contradict it.
        UnsupportedModelError: An input has no static shape, or there are operators that cannot be imported: the message
            lists all of them, each with its node, domain, opset and the reason.
    """
    from edgekit.frontends._onnx_import.model import translate_model

    return translate_model(model, shapes or {}, constants or {})


def inputs_needed_constant(
    model: Any,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    constants: Mapping[str, Array] | None = None,
) -> frozenset[str]:
    """Names of the graph inputs that stand in the way of static shapes: `import_onnx` wants them as `constants`.

    Giving them can uncover more of them further down the graph: ask again until the answer is empty.
    """
    from edgekit.frontends._onnx_import.model import needed_constants

    return needed_constants(model, shapes or {}, constants or {})
