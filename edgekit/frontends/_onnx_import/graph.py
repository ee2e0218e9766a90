"""Turns torch code, run on stand-ins for values that are not known yet, into a torch.fx graph.

A `Traced` behaves like a tensor in expressions and as an argument of torch functions. Each use writes a node and, through
torch's fake tensors, works out shape and type of the result, so that code that asks for `x.shape` sees numbers.
"""

from __future__ import annotations

import keyword
import operator
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

from edgekit.frontends._onnx_import.errors import Refused
from edgekit.frontends._onnx_import.fusion import merge_biases
from edgekit.frontends._onnx_import.libs import fx, nn, torch

_RESERVED = ("device", "fx_pytree", "inf", "math", "nan", "operator", "pytree", "self", "torch")
"""Names that the generated forward function uses itself: an input of such a name would hide them."""
_METHODS = (types.MethodDescriptorType, types.WrapperDescriptorType)


class Traced:
    """A value that depends on the graph's inputs.

    Attributes:
        builder: Where its uses are written.
        node: The fx node that computes it.
        fake: A fake tensor of its shape and type.
    """

    __slots__ = ("builder", "fake", "node")

    def __init__(self, builder: Builder, node: Any, fake: Any) -> None:
        self.builder = builder
        self.node = node
        self.fake = fake

    @property
    def shape(self) -> tuple[int, ...]:
        """Static sizes."""
        return tuple(self.fake.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.fake.ndim)

    @property
    def dtype(self) -> Any:
        """The torch dtype."""
        return self.fake.dtype

    def numel(self) -> int:
        """Number of elements."""
        return int(self.fake.numel())

    def is_floating_point(self) -> bool:
        """Whether it holds floating-point numbers."""
        return bool(self.fake.is_floating_point())

    @classmethod
    def __torch_function__(
        cls, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """A torch function was called with a Traced among its arguments."""
        builder = next(leaf.builder for leaf in leaves((args, kwargs or {})) if isinstance(leaf, Traced))
        if isinstance(func, _METHODS):
            return builder.method(func.__name__, args, kwargs or {})
        return builder.function(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or not callable(getattr(torch.Tensor, name, None)):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.builder.method(name, (self, *args), kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self.builder.function(operator.getitem, (self, index), {})

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        raise Refused("its translation would branch on a value that is only known when the model runs")


def _attach(name: str, function: Callable[..., Any], reflected: bool) -> None:
    def forward(self: Traced, *others: Any) -> Any:
        return self.builder.function(function, (self, *others), {})

    def backward(self: Traced, other: Any) -> Any:
        return self.builder.function(function, (other, self), {})

    setattr(Traced, f"__{name}__", forward)
    if reflected:
        setattr(Traced, f"__r{name}__", backward)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "matmul"):
    _attach(_name.rstrip("_"), getattr(operator, _name), reflected=True)
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "invert"):
    _attach(_name, getattr(operator, _name), reflected=False)


class Builder:
    """Writes the graph and owns what it refers to: submodules, parameters, buffers.

    Attributes:
        scope: Name of the ONNX node that is being translated; names of what is written derive from it.
    """

    def __init__(self) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.scope = "value"
        self._mode = torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
        self._constants: dict[int, tuple[Any, Traced]] = {}
        self._names: dict[int, tuple[Any, str]] = {}
        self._taken = set(_RESERVED)
        self._shapes: dict[Any, tuple[int, ...]] = {}

    def placeholder(self, name: str, shape: tuple[int, ...], dtype: Any) -> Traced:
        """A new input."""
        node = self.graph.placeholder(self._unique(identifier(name)))
        node.meta["onnx_input"] = name
        with self._mode:
            return Traced(self, node, torch.empty(shape, dtype=dtype))

    def named(self, tensor: Any, name: str) -> Any:
        """Remember what a constant is called in the ONNX model, for the case that it ends up in the module."""
        self._names[id(tensor)] = (tensor, name)
        return tensor

    def function(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Write a call of a torch function."""
        return self._write("call_function", function, function, args, kwargs)

    def method(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Write a call of a tensor's method."""

        def run(this: Any, *rest: Any, **more: Any) -> Any:
            return getattr(this, name)(*rest, **more)

        return self._write("call_method", name, run, args, kwargs)

    def module(self, module: Any, *args: Any) -> Any:
        """Add a submodule, named after the ONNX node, and write its call; run it at once where all is known."""
        module.eval()
        if not any(isinstance(leaf, Traced) for leaf in leaves(args)):
            with torch.no_grad():
                return module(*args)
        name = self._unique(self.scope)
        self.root.add_module(name, module)
        return self._write("call_module", name, module, args, {})

    def parameter(self, tensor: Any) -> Traced:
        """A trainable constant."""
        return self._constant(tensor, trainable=True)

    def finish(self, outputs: list[Any]) -> Any:
        """The `GraphModule` that computes `outputs`."""
        nodes = []
        self.scope = "output"
        for value in outputs:
            traced = value if isinstance(value, Traced) else self._constant(value)
            if traced.node.op in ("get_attr", "placeholder"):
                # An output that is an input or a weight itself is an alias, which exporters take badly.
                traced = torch.clone(traced)
            nodes.append(traced.node)
        self.graph.output(nodes[0] if len(nodes) == 1 else tuple(nodes))
        _drop_unused(self.graph)
        merge_biases(self.root, self.graph, self._shapes)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, "ImportedOnnx").eval()

    def _write(self, kind: str, target: Any, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = fx.node.map_aggregate((args, kwargs), self._operand)
        node_args, node_kwargs = fx.node.map_aggregate((args, kwargs), lambda a: a.node if isinstance(a, Traced) else a)
        fakes, fake_kwargs = fx.node.map_aggregate((args, kwargs), lambda a: a.fake if isinstance(a, Traced) else a)
        with torch.no_grad(), self._mode:
            result = run(*fakes, **fake_kwargs)
        name = target if kind == "call_module" else self.scope
        node = self.graph.create_node(kind, target, node_args, node_kwargs, name=name)
        return self._wrap(node, result)

    def _operand(self, leaf: Any) -> Any:
        return self._constant(leaf) if isinstance(leaf, torch.Tensor) else leaf

    def _wrap(self, node: Any, result: Any) -> Any:
        if isinstance(result, torch.Tensor):
            self._shapes[node] = tuple(result.shape)
            return Traced(self, node, result)
        if isinstance(result, tuple | list):
            parts = [self.graph.call_function(operator.getitem, (node, i)) for i in range(len(result))]
            return tuple(self._wrap(part, item) for part, item in zip(parts, result, strict=True))
        raise Refused(f"its translation asks torch for a {type(result).__name__}, which a graph cannot hold")

    def _constant(self, tensor: Any, trainable: bool = False) -> Traced:
        known = self._constants.get(id(tensor))
        if known is not None:
            return known[1]
        _, hint = self._names.get(id(tensor), (None, f"{self.scope}_constant"))
        name = self._unique(identifier(hint))
        held = tensor.detach().contiguous()
        if trainable and held.is_floating_point():
            self.root.register_parameter(name, nn.Parameter(held))
        else:
            self.root.register_buffer(name, held)
        # The module does not exist yet, so fx cannot see that the attribute will be there.
        node = self.graph.create_node("get_attr", name, name=name)
        self._shapes[node] = tuple(held.shape)
        traced = Traced(self, node, self._mode.from_tensor(held))
        self._constants[id(tensor)] = (tensor, traced)
        return traced

    def _unique(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._taken or hasattr(fx.GraphModule, name) or hasattr(self.root, name):
            name, count = f"{wanted}_{count}", count + 1
        self._taken.add(name)
        return name


def identifier(name: str) -> str:
    """An ONNX name as a Python identifier: `/layer1/0/conv/Conv` becomes `layer1_0_conv_Conv`."""
    cleaned = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    if not cleaned or cleaned[0].isdigit():
        return f"n{cleaned}"
    return f"{cleaned}_" if keyword.iskeyword(cleaned) else cleaned


def leaves(value: Any) -> Iterator[Any]:
    """Everything inside nested tuples, lists and dicts."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    else:
        yield value


def roots(value: Any) -> frozenset[str]:
    """ONNX names of the graph inputs that `value` is computed from."""
    found: set[str] = set()
    seen: set[Any] = set()
    queue = [leaf.node for leaf in leaves(value) if isinstance(leaf, Traced)]
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder":
            found.add(node.meta["onnx_input"])
        queue.extend(node.all_input_nodes)
    return frozenset(found)


def _drop_unused(graph: Any) -> None:
    """Erase nodes without users. Not fx's own: it needs the module to judge whether calling one is pure."""
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)
