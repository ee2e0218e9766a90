"""Control flow, and lists of tensors (which converted loops keep their results in)."""

from __future__ import annotations

from typing import Any

from edgekit.backends._mil.operators import Args, operator

_MAX_ITERATIONS = 1_000_000


@operator("cond")
def cond(_torch: Any, args: Args) -> Any:
    """The outputs of the first block where the condition holds, else of the second."""
    chosen = args.blocks[0] if args.flag("pred") else args.blocks[1]
    return tuple(chosen(()))


@operator("while_loop")
def while_loop(_torch: Any, args: Args) -> Any:
    """The loop's variables after the second block has run as long as the first says so."""
    test, body = args.blocks
    values = args.tensors("loop_vars")
    for _ in range(_MAX_ITERATIONS):
        if not bool(test(values)[0]):
            return tuple(values)
        values = body(values)
    raise args.refuse(f"more than {_MAX_ITERATIONS} iterations")


class TensorList:
    """A MIL list. Operators give a new one and leave theirs alone, as values in MIL never change."""

    def __init__(self, items: list[Any], shape: tuple[int, ...]) -> None:
        self.items = items
        self.shape = shape

    def item(self, torch: Any, place: int) -> Any:
        """The tensor at one place; zeros where none was written."""
        found = self.items[place] if place < len(self.items) else None
        return torch.zeros(self.shape) if found is None else found

    def with_item(self, place: int, value: Any) -> TensorList:
        """The list with one place written, longer where it must be."""
        items = self.items + [None] * max(0, place + 1 - len(self.items))
        items[place] = value
        return TensorList(items, tuple(value.shape))


@operator("make_list")
def make_list(_torch: Any, args: Args) -> Any:
    """A list of `init_length` places."""
    shape = args.ints("elem_shape", ())
    return TensorList([None] * args.integer("init_length", 1), shape)


@operator("list_write")
def list_write(_torch: Any, args: Args) -> Any:
    """The list with a tensor at an index."""
    return args.value("ls").with_item(args.integer("index"), args.tensor("value"))


@operator("list_read")
def list_read(torch: Any, args: Args) -> Any:
    """The tensor at an index."""
    return args.value("ls").item(torch, args.integer("index"))


@operator("list_gather")
def list_gather(torch: Any, args: Args) -> Any:
    """The tensors at indices, stacked."""
    return torch.stack([args.value("ls").item(torch, place) for place in args.ints("indices")])


@operator("list_scatter")
def list_scatter(_torch: Any, args: Args) -> Any:
    """The list with tensors at indices, one for each along the first axis of `value`."""
    found = args.value("ls")
    for place, value in zip(args.ints("indices"), args.tensor("value"), strict=True):
        found = found.with_item(place, value)
    return found


@operator("list_length")
def list_length(torch: Any, args: Args) -> Any:
    """The number of places."""
    return torch.tensor(len(args.value("ls").items))
