"""Distillation: a small student learns from a large teacher's outputs, which say more than labels do.

The loss is `alpha` · T² · KL(teacher ‖ student), both softened by the temperature T, plus (1 - alpha) times the task's
own (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015). Where outputs are no classes, it is their
mean squared difference, or one minus the cosine of embeddings. Results of layers within can be compared too, by a
learned projection where the student has other widths (Romero et al., "FitNets", ICLR 2015)::

    before   teacher
    while    teacher ──▶ answers, asked once and kept ──▶ loss ◀── student
    after    student                        (built by a factory of the person's, or the model itself, made smaller)

What the student computes with is the factory's business, its width and depth too: they are handed to it. Cutting them
out of a model that is already there is what `prune_channels` does; distil the result from the whole.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from edgekit.core.errors import ConfigError, nearest
from edgekit.core.extras import require
from edgekit.core.model import Model
from edgekit.core.program import TORCH_EXTRA, TorchProgram, flatten
from edgekit.core.task import Task, trainable
from edgekit.core.user_code import blame_user
from edgekit.passes._distill.factories import Factory, Role, digest_of, files_of
from edgekit.passes._distill.losses import DistillHooks, Loss, Match, is_distribution, match, with_projections
from edgekit.passes._distill.teacher import Taps, Teacher
from edgekit.passes._training import examples
from edgekit.passes._training.loop import Outcome, train
from edgekit.passes._training.options import Training
from edgekit.passes._training.seeds import own_random_numbers, seed_epoch
from edgekit.passes.base import Pass, PassContext, PassResult

SOURCE = "source"
_SHOWN = 12


@dataclass(frozen=True)
class FeaturePair:
    """Two modules whose results are compared.

    Attributes:
        teacher: The module's path in the teacher.
        student: The module's path in the student.
        weight: The factor of this pair's loss, which is a share of the teacher's mean square.
    """

    teacher: str
    student: str
    weight: float = 1.0


@dataclass(frozen=True)
class DistillOptions:
    """Options of `distill`.

    Attributes:
        teacher: `source`, the model as it comes into this pass, or FILE.py:NAME, a factory that builds it and loads its
            weights. The file is looked for beside the task's, then in the current folder.
        student: FILE.py:NAME, a factory that builds the student; where None, the model as it comes into this pass learns
            on, from a teacher of a file.
        width: Handed to the student's factory as `width`, where given.
        depth: Handed to the student's factory as `depth`, where given.
        temperature: What logits are divided by before they are compared.
        alpha: The teacher's share in the loss, 0 to 1; the rest is the task's. At 1 no labels are needed.
        loss: How outputs are compared: `kl` for classes, `cosine` for embeddings whose direction is what counts, `mse`
            for anything else.
        axis: The axis of the classes for `kl`, of the vectors for `cosine`: -1, or 1 for images of classes.
        outputs: The outputs to compare; all that are floats where none are given.
        features: Pairs of modules whose results are compared too.
        finetune: How the student is trained; see `finetune`. A loop of the project's own is not taken: it would have to
            know the teacher.

    Raises:
        ValueError: Options that exclude each other or cannot be; a recipe's error says the line.
    """

    teacher: str = SOURCE
    student: str | None = None
    width: float | None = None
    depth: float | None = None
    temperature: float = 4.0
    alpha: float = 0.9
    loss: Loss = "kl"
    axis: int = -1
    outputs: tuple[str, ...] = ()
    features: tuple[FeaturePair, ...] = ()
    finetune: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        for name, value in (("teacher", self.teacher), ("student", self.student)):
            if value is None or (name == "teacher" and value == SOURCE):
                continue
            file, _, function = value.rpartition(":")
            if not file or not function.isidentifier():
                choices = f"'{SOURCE}' or FILE.py:NAME" if name == "teacher" else "FILE.py:NAME"
                raise ValueError(f"{name} is '{value}'; it should be {choices}")
        if self.student is None:
            if self.teacher == SOURCE:
                raise ValueError(
                    "teacher and student are the same model: name a student (student.py:build), or a teacher"
                    " (model.py:build) for the model to learn from"
                )
            if self.width is not None or self.depth is not None:
                raise ValueError("width and depth are handed to the student's factory, but no student is named")
        if not self.temperature > 0:
            raise ValueError(f"temperature has to be above 0, not {self.temperature}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a share between 0 and 1, not {self.alpha}")
        if not self.alpha and not self.features:
            raise ValueError("alpha is 0 and there are no features: the teacher would have no say")
        if any(not pair.weight > 0 for pair in self.features):
            raise ValueError("the weight of a pair of features has to be above 0")
        if self.finetune.loop is not None:
            raise ValueError("distill cannot train with a loop of the project's own: it would have to know the teacher")


class Distill(Pass):
    """Trains a student to answer as its teacher does."""

    summary: ClassVar[str] = "train a student on a teacher's outputs and features"
    Options: ClassVar[type[Any]] = DistillOptions
    before: ClassVar[tuple[str, ...]] = ("learned_rounding", "prune_magnitude", "quantize_aware")

    @property
    def trains(self) -> bool:
        """See `Pass.trains`."""
        return True

    def own_files(self, task: Task | None) -> tuple[Path, ...]:
        """See `Pass.own_files`: the factories' files, and what they import from beside them."""
        paths = [factory.path(task) for factory in (self._teacher_factory, self._student_factory) if factory]
        return tuple(file for path in paths if path is not None for file in files_of(path))

    def apply(self, model: Model, task: Task | None, context: PassContext) -> PassResult:
        """See `Pass.apply`.

        Raises:
            ConfigError: The task cannot be trained with, a factory is none, or teacher and student do not fit together.
            PassError: Training came apart.
        """
        program = model.program
        assert isinstance(program, TorchProgram)  # noqa: S101 - `requires` has checked; this tells the type checker
        able = trainable(task, f"The pass '{self.name}'")
        module = self._module(self._student_factory, program, task, context)
        taught = self._module(self._teacher_factory, program, task, context)
        setup = _Setup(program, taught, module, self.options, context)
        teacher, pupil = setup.teacher, program.with_module(setup.pupil)
        teacher.prepare(able)
        scored = examples.metric_of(teacher.program, able)
        outcome = train(pupil, able, self.options.finetune, context, setup.hooks, name=self.name)
        setup.taps.remove()
        _warn_of_a_poor_teacher(scored, outcome, able, context)
        result = program.with_module(module.eval())
        notes = (*_notes(program.with_module(taught), result, scored, outcome), *teacher.notes(), *outcome.notes())
        factory = self._student_factory
        if factory is None and result.weights_digest() == program.weights_digest():
            return PassResult(model, modified=False, notes=notes)
        structure = {"student": factory.reference, "digest": digest_of(factory.found(task))} if factory else {}
        return PassResult(replace(model, program=result, digest=result.digest()), True, notes, structure)

    def replay(self, module: Any, structure: Mapping[str, Any]) -> Any:
        """See `Pass.replay`: the student is built anew by its factory.

        Raises:
            ConfigError: Its file is gone or has changed.
        """
        factory = self._student_factory
        if factory is None or "digest" not in structure:
            return module
        return factory.build(factory.replayed(structure["digest"]), seed=0)

    @property
    def _student_factory(self) -> Factory | None:
        options = self.options
        if options.student is None:
            return None
        sizes = {"width": options.width, "depth": options.depth}
        return Factory("student", options.student, {name: size for name, size in sizes.items() if size is not None})

    @property
    def _teacher_factory(self) -> Factory | None:
        return None if self.options.teacher == SOURCE else Factory("teacher", self.options.teacher, {})

    def _module(self, factory: Factory | None, program: TorchProgram, task: Task | None, context: PassContext) -> Any:
        if factory is None:
            return copy.deepcopy(program.module).eval()
        module = factory.build(factory.found(task), context.seed)
        _check_interface(program, module, factory.role)
        return module


class _Setup:
    """Teacher and student, made comparable.

    Args:
        program: The model's program, whose interface both have.
        taught: The teacher's module.
        module: The student's module.
        options: The pass's options.
        context: Where answers are kept, and who is told.

    Raises:
        ConfigError: They cannot be compared.
    """

    def __init__(
        self, program: TorchProgram, taught: Any, module: Any, options: DistillOptions, context: PassContext
    ) -> None:
        pairs = options.features
        _check_paths(taught, [pair.teacher for pair in pairs], "teacher")
        _check_paths(module, [pair.student for pair in pairs], "student")
        self.teacher = Teacher(program.with_module(taught), [pair.teacher for pair in pairs], context)
        self.taps = Taps(module, tuple(dict.fromkeys(pair.student for pair in pairs)))
        theirs = dict(zip(program.output_names, self.teacher.ask(program.example_inputs), strict=False))
        ours = _outputs(program.with_module(module))
        matches: list[Match] = [
            match(
                (pair.teacher, self.teacher.taps.values[pair.teacher]),
                (pair.student, self.taps.values[pair.student]),
                pair.weight,
            )
            for pair in pairs
        ]
        with own_random_numbers():
            seed_epoch(context.seed, 0)
            self.pupil, projections = with_projections(module, matches)
        compared = _compared(theirs, ours, options) if options.alpha else {}
        self.hooks = DistillHooks(self.teacher, options, compared, matches, projections, self.taps)


def _outputs(program: TorchProgram) -> dict[str, Any]:
    torch = require("torch", TORCH_EXTRA, "distillation")
    with torch.no_grad():
        return examples.named_outputs(program, program.example_inputs)


def _interface(program: TorchProgram, module: Any) -> dict[str, str]:
    """The names that a module itself gives its outputs, each with shape and type."""
    torch = require("torch", TORCH_EXTRA, "distillation")
    tensors = program.tensors(program.example_inputs)
    with torch.no_grad():
        named = dict(zip(program.input_names, tensors, strict=True))
        names, values = flatten(module(**named) if program.by_keyword else module(*tensors))
    kinds = [f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}" for value in values]
    return dict(zip(names, kinds, strict=True))


def _check_names(program: TorchProgram, module: Any, role: Role) -> None:
    taken = inspect.signature(module.forward).parameters
    if not program.by_keyword or any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        return
    lacking = [name for name in program.input_names if name not in taken]
    if lacking:
        raise ConfigError(
            f"The {role}'s forward takes {', '.join(taken) or 'nothing'}; the model's inputs are called"
            f" {', '.join(program.input_names)}, and are given by these names.",
            f"def forward(self, {', '.join(program.input_names)}): … in the {role} (a Sequential calls its input 'input').",
        )


def _check_interface(program: TorchProgram, module: Any, role: Role) -> None:
    _check_names(program, module, role)
    with blame_user(f"running the {role} with the model's example inputs ({', '.join(program.input_names)})"):
        found = _interface(program, module)
    wanted = _interface(program, program.module)
    if list(found.items()) != list(wanted.items()):
        raise ConfigError(
            f"The {role} gives {_listed(found)}; the model gives {_listed(wanted)}.",
            f"Let the {role}'s forward return the same names and shapes in the same order.",
        )


def _listed(interface: Mapping[str, str]) -> str:
    return ", ".join(f"'{name}' {kind}" for name, kind in interface.items())


def _check_paths(module: Any, paths: Sequence[str], role: Role) -> None:
    known = [name for name, _ in module.named_modules() if name]
    for path in paths:
        if path not in known:
            guess = nearest(path, known)
            raise ConfigError(
                f"distill: features: the {role} has no module '{path}'.{f' Did you mean {guess!r}?' if guess else ''}",
                f"Modules: {', '.join(known[:_SHOWN])}{', …' if len(known) > _SHOWN else ''}.",
            )


def _compared(theirs: Mapping[str, Any], ours: Mapping[str, Any], options: DistillOptions) -> dict[str, bool]:
    """The outputs to compare, and whether each is a distribution already.

    Raises:
        ConfigError: There are none, or one cannot be compared so.
    """
    floats = [name for name, value in theirs.items() if value.is_floating_point()]
    for name in options.outputs:
        if name not in floats:
            guess = nearest(name, floats)
            raise ConfigError(
                f"distill: outputs: '{name}' is no output of floats.{f' Did you mean {guess!r}?' if guess else ''}",
                f"Outputs: {', '.join(floats) or 'none'}.",
            )
    chosen = options.outputs or tuple(floats)
    if not chosen:
        raise ConfigError("distill: the model has no output of floats: whole numbers have no gradient to learn by.")
    if options.loss != "mse":
        for name in chosen:
            _check_axis(name, theirs[name], options)
    return {name: options.loss == "kl" and _is_soft(name, theirs[name], ours[name], options.axis) for name in chosen}


def _check_axis(name: str, theirs: Any, options: DistillOptions) -> None:
    if not -theirs.dim() <= options.axis < theirs.dim() or theirs.shape[options.axis] < 2:
        what = "classes" if options.loss == "kl" else "vectors"
        raise ConfigError(
            f"distill: the output '{name}' has the shape {list(theirs.shape)}: there are no {what} along the axis"
            f" {options.axis} that `{options.loss}` could compare.",
            f"Write loss: mse, or the axis of the {what}: axis: 1.",
        )


def _is_soft(name: str, theirs: Any, ours: Any, axis: int) -> bool:
    kinds = {True: "probabilities", False: "logits"}
    found = is_distribution(theirs, axis), is_distribution(ours, axis)
    if found[0] != found[1]:
        raise ConfigError(
            f"distill: the output '{name}' of the teacher is {kinds[found[0]]}, that of the student {kinds[found[1]]}.",
            "Let both return the same: logits, best of all.",
        )
    return found[0]


def _warn_of_a_poor_teacher(scored: float | None, outcome: Outcome, task: Task, context: PassContext) -> None:
    if scored is None or outcome.after is None or examples.is_better(task, scored, outcome.before):
        return
    context.progress.warn(
        f"The teacher's {outcome.metric} is {scored:.4g}, no better than the student's {outcome.before:.4g} before"
        " training: does its factory load its weights?"
    )


def _notes(teacher: TorchProgram, student: TorchProgram, scored: float | None, outcome: Outcome) -> tuple[str, ...]:
    sizes = f"{teacher.parameter_count():,} → {student.parameter_count():,} parameters"
    if scored is None or outcome.after is None:
        return (f"teacher → student: {sizes}",)
    return (f"teacher → student: {outcome.metric} {scored:.4g} → {outcome.after:.4g}, {sizes}",)


__all__ = ["Distill", "DistillOptions", "FeaturePair"]
