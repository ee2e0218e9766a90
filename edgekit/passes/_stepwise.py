"""A torch program run node by node on all calibration examples at once, stopping where a pass wants to look.

One run of the network is enough to visit every layer with what the layers before it make by then, however many there
are. Memory: what is alive at one place in the graph, for all examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgekit.core.errors import ConfigError, PassError
from edgekit.core.extras import require
from edgekit.core.model import Model
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.task import Task

if TYPE_CHECKING:
    from edgekit.core.task import Batch


def calibration_batches(task: Task | None, model: Model, count: int, who: str) -> list[Batch]:
    """The first calibration examples, in batches of the model's own batch size.

    Args:
        task: The person's task.
        model: The model that they are for.
        count: How many examples at most; those that do not fill a batch are left out.
        who: The pass that wants them, for messages.

    Raises:
        ConfigError: There are none, too few for one batch, or an input is missing, of another shape, or not finite.
    """
    import numpy as np

    if task is None:
        raise ConfigError(
            f"The pass '{who}' needs examples of the calibration split, and there is no task.",
            "Name a task in edgekit.yaml: task: task.py:NAME",
        )
    size = max(1, model.inputs[0].batch_size)
    found: dict[str, list[Any]] = {spec.name: [] for spec in model.inputs}
    taken = 0
    for batch in task.examples("calibration"):
        for spec in model.inputs:
            if spec.name not in batch:
                raise ConfigError(f"The task's examples('calibration') lack the input '{spec.name}'.")
            value = np.asarray(batch[spec.name])
            if tuple(value.shape[1:]) != tuple(spec.shape[1:]):
                raise ConfigError(
                    f"The task's examples('calibration') give '{spec.name}' the shape {value.shape}; the model takes"
                    f" (N, {', '.join(map(str, spec.shape[1:]))})."
                )
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                where = taken + int(np.argwhere(~np.isfinite(value))[0][0])
                raise ConfigError(
                    f"The calibration example {where} holds values of '{spec.name}' that are not finite.",
                    "Leave it out, or mend it, in the task's examples('calibration').",
                )
            found[spec.name].append(value.astype(spec.dtype))
        taken += len(next(iter(batch.values())))
        if taken >= count:
            break
    if taken < size:
        raise ConfigError(
            f"The pass '{who}' needs examples of the calibration split; the task has {taken or 'none'}"
            f"{f', and the model takes {size} at once' if taken else ''}.",
            "Yield some unlabelled inputs from examples('calibration'): 100 are plenty.",
        )
    joined = {name: np.concatenate(parts, axis=0) for name, parts in found.items()}
    number = max(1, min(count, taken) // size)
    return [{name: value[n * size : (n + 1) * size] for name, value in joined.items()} for n in range(number)]


class Stepwise:
    """One program on its way through all examples.

    Args:
        program: The program.
        batches: Arrays by input name.

    Attributes:
        replaced: Tensors to use instead of the module's parameters, by path in the module; may change on the way.
    """

    def __init__(self, program: TorchProgram, batches: list[Batch]) -> None:
        torch = require("torch", TORCH_EXTRA, "running a torch program")
        self._torch = torch
        exported = program.exported
        self._interpreter = torch.fx.Interpreter(exported.graph_module, garbage_collect_values=False)
        self._nodes = list(exported.graph_module.graph.nodes)
        self._free_after = _last_uses(self._nodes)
        self._parameters = exported.graph_signature.inputs_to_parameters
        self.replaced: dict[str, Any] = {}
        common = _constants(exported)
        users = exported.graph_signature.user_inputs
        self._values: list[dict[Any, Any]] = []
        for batch in batches:
            given = dict(zip(users, program.tensors(batch), strict=True))
            values = {node: {**common, **given}[node.name] for node in self._nodes if node.op == "placeholder"}
            self._values.append(values)
        self._done = 0

    def __len__(self) -> int:
        return len(self._values)

    def run_to(self, node: Any) -> None:
        """Run everything before a node, on all examples."""
        end = self._nodes.index(node)
        with self._torch.no_grad():
            while self._done < end:
                self._step(self._nodes[self._done])
                self._done += 1

    def values(self, node: Any) -> Iterator[Any]:
        """What a node made, one tensor a batch of examples; it has to be needed still."""
        return (values[node] for values in self._values)

    def _step(self, node: Any) -> None:
        if node.op in ("placeholder", "output"):
            return
        own = {
            operand: self.replaced[name]
            for operand in node.all_input_nodes
            if (name := self._parameters.get(operand.name, "").removeprefix("inner.")) in self.replaced
        }
        for values in self._values:
            values.update(own)
            self._interpreter.env = values
            values[node] = self._interpreter.run_node(node)
            for unused in self._free_after.get(node, ()):
                del values[unused]


def _last_uses(nodes: list[Any]) -> dict[Any, list[Any]]:
    """The computed values that nothing reads after a node."""
    seen: set[Any] = set()
    found: dict[Any, list[Any]] = {}
    for node in reversed(nodes):
        for operand in node.all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                if operand.op != "placeholder":
                    found.setdefault(node, []).append(operand)
        if node not in seen and node.op not in ("placeholder", "output"):
            found.setdefault(node, []).append(node)
    return found


def _constants(exported: Any) -> dict[str, Any]:
    """Parameters, buffers and constants by the name of their placeholder."""
    signature = exported.graph_signature
    held = {**exported.constants, **exported.state_dict}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    found = {name: held[target] for name, target in names.items() if target in held}
    missing = {node.name for node in exported.graph.nodes if node.op == "placeholder"}
    missing -= {*found, *signature.user_inputs}
    if missing:
        raise PassError(f"The exported program takes '{min(missing)}', which is neither an input nor a weight.")
    return found
