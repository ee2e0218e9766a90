"""The losses of a student: its teacher's outputs, its teacher's features, and the task's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgekit.core.errors import ConfigError
from edgekit.core.extras import require
from edgekit.core.program import TORCH_EXTRA
from edgekit.core.task import Batch, TrainableTask
from edgekit.passes._distill.teacher import Taps, Teacher
from edgekit.passes._training.hooks import Hooks
from edgekit.passes._training.precision import computing

Loss = Literal["kl", "mse", "cosine"]

_SMALLEST = 1e-12


def is_distribution(values: Any, axis: int) -> bool:
    """Whether values are probabilities already: none below zero, each sum along the axis one."""
    if not values.is_floating_point() or values.dim() < 2 or values.shape[axis] < 2:
        return False
    return bool((values >= 0).all()) and bool(((values.sum(axis) - 1).abs() < 1e-3).all())


def soft_loss(student: Any, teacher: Any, temperature: float, axis: int, *, probabilities: bool) -> Any:
    """Kullback-Leibler divergence of the softened distributions, times the temperature squared.

    Summed over the classes, mean over everything else. The factor keeps the gradients' size whatever the temperature
    (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).

    Args:
        student: Logits, or probabilities.
        teacher: The same of the teacher.
        temperature: What logits are divided by.
        axis: The axis of the classes.
        probabilities: Whether they are; their logarithms are then the logits, up to a constant that softmax drops.
    """
    functional = require("torch", TORCH_EXTRA, "distillation").nn.functional
    if probabilities:
        student, teacher = student.clamp_min(_SMALLEST).log(), teacher.clamp_min(_SMALLEST).log()
    ours = functional.log_softmax(student / temperature, axis)
    theirs = functional.log_softmax(teacher / temperature, axis)
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(axis).mean() * temperature**2


def cosine_loss(student: Any, teacher: Any, axis: int) -> Any:
    """One minus the cosine of two vectors along an axis, mean over everything else: 0 where they point the same way."""
    functional = require("torch", TORCH_EXTRA, "distillation").nn.functional
    return 1 - functional.cosine_similarity(student, teacher, axis).mean()


@dataclass(frozen=True)
class Match:
    """How the features of a pair are made comparable.

    Attributes:
        teacher: The module's path in the teacher.
        student: The module's path in the student.
        weight: The factor of this pair's loss.
        axis: The axis of the channels; where they differ in number, a projection brings the student's to the teacher's.
        channels: Channels of the student and of the teacher.
        places: What both are pooled to; None where they have the same places.
    """

    teacher: str
    student: str
    weight: float
    axis: int
    channels: tuple[int, int]
    places: tuple[int, ...] | None

    @property
    def projected(self) -> bool:
        """Whether there is a projection."""
        return self.channels[0] != self.channels[1]


def match(teacher: tuple[str, Any], student: tuple[str, Any], weight: float) -> Match:
    """How two features, given by path and tensor, are compared.

    Raises:
        ConfigError: There is no honest way; names both shapes.
    """
    theirs, ours = tuple(teacher[1].shape), tuple(student[1].shape)
    places: tuple[int, ...] | None = None
    if len(theirs) != len(ours) or len(ours) < 2:
        raise _unlike(teacher, student)
    if len(ours) >= 4:
        axis = 1
        if theirs[2:] != ours[2:]:
            places = tuple(map(min, theirs[2:], ours[2:]))
    else:
        differing = [at for at in range(1, len(ours)) if theirs[at] != ours[at]]
        if len(differing) > 1:
            raise _unlike(teacher, student)
        axis = differing[0] if differing else len(ours) - 1
    return Match(teacher[0], student[0], weight, axis, (ours[axis], theirs[axis]), places)


def _unlike(teacher: tuple[str, Any], student: tuple[str, Any]) -> ConfigError:
    return ConfigError(
        f"distill: features: '{teacher[0]}' of the teacher gives {list(teacher[1].shape)}, '{student[0]}' of the student"
        f" {list(student[1].shape)}; they cannot be compared.",
        "Pair modules whose results have as many axes, and differ in channels only (images: in height and width too).",
    )


def with_projections(student: Any, matches: Sequence[Match]) -> tuple[Any, list[Any]]:
    """The student with a linear projection for each pair that needs one, so that they are trained and kept with it.

    Returns:
        The module to train, and for each pair its projection or None.
    """
    nn = require("torch", TORCH_EXTRA, "distillation").nn
    projections = [nn.Linear(*one.channels) if one.projected else None for one in matches]

    class Pupil(nn.Module):  # type: ignore[misc, name-defined]  # torch is seen as Any
        def __init__(self) -> None:
            super().__init__()
            self.student = student
            self.projections = nn.ModuleList([one for one in projections if one is not None])

        def forward(self, *tensors: Any, **named: Any) -> Any:
            return self.student(*tensors, **named)

    return (Pupil() if any(projections) else student), projections


def feature_loss(ours: Any, theirs: Any, how: Match, projection: Any) -> Any:
    """Mean squared difference of two features, as a share of the teacher's mean square.

    The regressor is that of Romero et al., "FitNets", ICLR 2015; as a share, one weight serves layers of any scale.
    """
    functional = require("torch", TORCH_EXTRA, "distillation").nn.functional
    # Training in bfloat16 gives the student's in that.
    ours = ours.to(theirs.dtype)
    if how.places is not None:
        pool = getattr(functional, f"adaptive_avg_pool{len(how.places)}d")
        ours, theirs = pool(ours, how.places), pool(theirs, how.places)
    if projection is not None:
        ours = projection(ours.movedim(how.axis, -1)).movedim(-1, how.axis)
    return functional.mse_loss(ours, theirs) / theirs.square().mean().clamp_min(_SMALLEST)


class DistillHooks(Hooks):
    """Gives the teacher a say in the loss.

    Args:
        teacher: The teacher.
        options: The pass's options.
        outputs: The outputs that are compared, and for each whether it is a distribution already.
        matches: The pairs of features.
        projections: For each pair its projection or None.
        taps: The student's features.
    """

    def __init__(
        self,
        teacher: Teacher,
        options: Any,
        outputs: Mapping[str, bool],
        matches: Sequence[Match],
        projections: Sequence[Any],
        taps: Taps,
    ) -> None:
        self.teacher, self.options, self.outputs = teacher, options, outputs
        self.matches, self.projections, self.taps = matches, projections, taps

    def loss(self, task: TrainableTask, outputs: Mapping[str, Any], batch: tuple[Batch, Any]) -> Any:
        """See `Hooks.loss`."""
        with computing(self.options.finetune.precision):
            answers = self.teacher.answers(batch[0])
        # What was asked just now is in the precision of training; what was kept is in float32.
        answers = [answer.float() if answer.is_floating_point() else answer for answer in answers]
        names = self.teacher.program.output_names
        said = dict(zip(names, answers, strict=False))
        features = dict(zip(self.teacher.paths, answers[len(names) :], strict=True))
        parts = []
        if self.options.alpha:
            parts += [self.options.alpha * self._compare(outputs[name], said[name], name) for name in self.outputs]
        if self.options.alpha < 1:
            parts.append((1 - self.options.alpha) * task.loss(outputs, batch))
        for how, projection in zip(self.matches, self.projections, strict=True):
            parts.append(
                how.weight * feature_loss(self.taps.values[how.student], features[how.teacher], how, projection)
            )
        return sum(parts[1:], parts[0])

    def _compare(self, ours: Any, theirs: Any, name: str) -> Any:
        options = self.options
        if options.loss == "mse":
            return require("torch", TORCH_EXTRA, "distillation").nn.functional.mse_loss(ours, theirs)
        if options.loss == "cosine":
            return cosine_loss(ours, theirs, options.axis)
        return soft_loss(ours, theirs, options.temperature, options.axis, probabilities=self.outputs[name])
