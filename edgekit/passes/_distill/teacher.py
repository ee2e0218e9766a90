"""What the teacher says of the training inputs, asked once and kept on disk.

Answers are kept by what the input is, one for each example, not by its place: a task that goes through its examples in
another order each epoch finds them all. Inputs that are new (a task that distorts them anew each time) are put to the
teacher while the student trains, which is slower, and told.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgekit.core import schema
from edgekit.core.extras import require
from edgekit.core.files import sha256_text, staged_directory
from edgekit.core.program import TORCH_EXTRA, TorchProgram
from edgekit.core.task import Batch, TrainableTask
from edgekit.core.user_code import blame_user
from edgekit.passes._training import examples
from edgekit.passes._training.seeds import own_random_numbers, seed_epoch
from edgekit.passes.base import PassContext

_KEY_BYTES = 16
_LARGEST_BYTES = 4 << 30
"""What the answers may take on disk."""


class Taps:
    """The tensors that modules gave when they were last called, by path; of several, the first.

    Args:
        module: The whole module.
        paths: The paths of those within.
    """

    def __init__(self, module: Any, paths: Sequence[str]) -> None:
        self.values: dict[str, Any] = {}
        self._handles = [module.get_submodule(path).register_forward_hook(self._keeper(path)) for path in paths]

    def _keeper(self, path: str) -> Any:
        from edgekit.core.program import flatten

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            # A copy: an activation that works in place would change it afterwards.
            self.values[path] = flatten(output)[1][0].clone()

        return keep

    def remove(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()


@dataclass(frozen=True)
class _Array:
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class _Index:
    key: str
    examples: int
    arrays: tuple[_Array, ...]


class _NotKept(Exception):  # noqa: N818 - no error: a way out of a folder that is half written
    """The teacher's answers cannot be kept; why."""


class Teacher:
    """A teacher and its answers: its outputs, and the features that are asked for, one after the other.

    Args:
        program: The program around the teacher's module, which is only run.
        paths: Modules whose results are answers too.
        context: Where answers are kept, and who is told.
    """

    def __init__(self, program: TorchProgram, paths: Sequence[str], context: PassContext) -> None:
        self.program, self.paths, self.context = program, tuple(dict.fromkeys(paths)), context
        self.taps = Taps(program.module, self.paths)
        self.folder = context.work / "teacher"
        self.why_not = ""
        self._rows: dict[bytes, int] = {}
        self._arrays: list[Any] = []
        self.asked = self.known = 0

    def ask(self, inputs: Batch) -> list[Any]:
        """The answers of a batch, from the teacher itself."""
        torch = require("torch", TORCH_EXTRA, "distillation")
        self.program.flat.eval()
        with torch.no_grad():
            outputs = list(examples.named_outputs(self.program, inputs).values())
        return outputs + [self.taps.values[path] for path in self.paths]

    def answers(self, inputs: Batch) -> list[Any]:
        """The answers of a batch: those that are kept, where all of it is known."""
        torch = require("torch", TORCH_EXTRA, "distillation")
        import numpy as np

        keys = self._keys(inputs) if self._rows else None
        self.asked += 1
        places = [self._rows.get(key, -1) for key in keys] if keys else [-1]
        if min(places, default=-1) < 0:
            return self.ask(inputs)
        self.known += 1
        return [torch.from_numpy(np.array(array[places])) for array in self._arrays]

    def notes(self) -> tuple[str, ...]:
        """How often what was kept served."""
        if self.why_not:
            return (f"the teacher ran along in each epoch: {self.why_not}",)
        told = f"the teacher's answers to {len(self._rows):,} training examples were kept on disk"
        if self.known < self.asked:
            told += f"; {1 - self.known / self.asked:.0%} of the batches had inputs that it had not seen, and it ran on them"
        return (told,)

    def prepare(self, task: TrainableTask) -> None:
        """Put the training inputs to the teacher once, or read what an earlier run kept of that."""
        key = sha256_text(
            schema.canonical_json([self.program.weights_digest(), repr(self.program.module), self.paths]).decode()
        )
        index = self._index()
        if index is None or index.key != key:
            try:
                with staged_directory(self.folder) as staging:
                    self._fill(task, key, staging)
            except _NotKept as reason:
                self.why_not = str(reason)
                return
            index = self._index()
        if index is not None:
            self._open(index)

    def _index(self) -> _Index | None:
        path = self.folder / "index.json"
        return schema.convert(_Index, schema.load_json(path)) if path.is_file() else None

    def _open(self, index: _Index) -> None:
        import numpy as np

        keys = (self.folder / "keys.bin").read_bytes()
        self._rows = {keys[at * _KEY_BYTES : (at + 1) * _KEY_BYTES]: at for at in range(index.examples)}
        self._arrays = [
            np.memmap(self.folder / f"{place}.bin", array.dtype, "r", shape=(index.examples, *array.shape))
            for place, array in enumerate(index.arrays)
        ]

    def _fill(self, task: TrainableTask, key: str, folder: Path) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(own_random_numbers())
            step = stack.enter_context(self.context.progress.step("asking the teacher"))
            seed_epoch(self.context.seed, 1)
            if callable(told := getattr(task, "set_epoch", None)):
                told(1)
            writer = _Writer(folder, stack)
            for inputs, _ in examples.training_batches(self.program, task):
                keys = self._keys(inputs)
                if keys is None:
                    raise _NotKept("the inputs have no first axis in common that counts examples")
                with blame_user("running the teacher"):
                    answers = self.ask(inputs)
                writer.add(keys, [answer.numpy() for answer in answers])
                step.say(f"{len(writer.keys)} examples")
        (folder / "index.json").write_text(schema.to_json(_Index(key, len(writer.keys), writer.arrays)))

    def _keys(self, inputs: Batch) -> list[bytes] | None:
        """One digest an example; None where the inputs are no rows of examples."""
        import numpy as np

        arrays = [np.ascontiguousarray(inputs[name]) for name in self.program.input_names]
        if any(not array.ndim or array.shape[0] != arrays[0].shape[0] for array in arrays):
            return None
        about = repr([(array.shape[1:], str(array.dtype)) for array in arrays]).encode()
        keys = []
        for row in range(arrays[0].shape[0]):
            digest = hashlib.blake2b(about, digest_size=_KEY_BYTES)
            for array in arrays:
                digest.update(array[row].tobytes())
            keys.append(digest.digest())
        return keys


class _Writer:
    """Appends answers to one file each, and their keys to another."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.keys: set[bytes] = set()
        self.arrays: tuple[_Array, ...] = ()
        self._files: list[IO[bytes]] = []
        self._keys = stack.enter_context((folder / "keys.bin").open("wb"))
        self._bytes = 0

    def add(self, keys: list[bytes], answers: list[Any]) -> None:
        """Keep the answers of a batch; those of examples that are there already are left out."""
        if any(not answer.ndim or answer.shape[0] != len(keys) for answer in answers):
            raise _NotKept("the teacher does not answer with one row for each example")
        arrays = tuple(_Array(tuple(answer.shape[1:]), str(answer.dtype)) for answer in answers)
        if not self._files:
            self.arrays = arrays
            paths = [self.folder / f"{place}.bin" for place in range(len(answers))]
            self._files = [self.stack.enter_context(path.open("wb")) for path in paths]
        if arrays != self.arrays:
            raise _NotKept("the examples differ in shape")
        for row in self._new(keys):
            self._keys.write(keys[row])
            for file, answer in zip(self._files, answers, strict=True):
                self._bytes += file.write(answer[row].tobytes())
        if self._bytes > _LARGEST_BYTES:
            raise _NotKept(f"its answers would take more than {_LARGEST_BYTES >> 30} GiB")

    def _new(self, keys: list[bytes]) -> Iterator[int]:
        for row, key in enumerate(keys):
            if key not in self.keys:
                self.keys.add(key)
                yield row
