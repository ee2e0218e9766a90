"""Sensitivity: what each layer costs in each precision, when it alone is quantized; decided on the validation split.

Each answer is kept as soon as it is there, so that a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.core import schema
from edgekit.core.errors import ConfigError, unknown_name
from edgekit.core.extras import versions_of
from edgekit.core.files import sha256_file, sha256_text
from edgekit.core.layer_paths import fits
from edgekit.core.lowering import Quantize
from edgekit.core.task import Direction
from edgekit.flow.evaluate import InputFiles, array_file, golden_inputs, random_inputs, split_inputs
from edgekit.flow.fake_quantize import BITS, STATIC, Layer, Place, Range, Subject, stored_bytes
from edgekit.flow.pipeline import Tools
from edgekit.flow.state import ModelState
from edgekit.flow.verify import compare

if TYPE_CHECKING:
    from edgekit.core.task import Array

PRECISIONS = ("float16", "weight_only_wi8_afp32", STATIC, "weight_only_wi4_afp32", "palette_2")
_SPLITS = ("validation", "calibration")
_KIND = "sensitivity"


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        precisions: Precisions to try, of `fake_quantize.BITS`.
        layers: Paths or patterns (`*` for any part) of the layers to try; all where empty.
        split: The split that judges: `validation`, or `calibration`.
        examples: How many of its examples; all where None. The task's metric needs all of them.
        quantize: How a static precision takes the ranges of activations.
    """

    precisions: tuple[str, ...] = PRECISIONS
    layers: tuple[str, ...] = ()
    split: str = "validation"
    examples: int | None = None
    quantize: Quantize = field(default_factory=lambda: Quantize(STATIC))


@dataclass(frozen=True)
class Effect:
    """One layer in one precision, all others in float32.

    Attributes:
        layer: Its torch module path.
        precision: The precision.
        weights: How many weights it has.
        bytes_saved: Against float32, scales and palette counted.
        snr_db: Signal-to-noise ratio of the outputs against the float model's; the worst output.
        cosine: Cosine similarity of them; the worst output.
        agreement: Share of examples with the same largest entry; None where no output is scores over classes.
        metrics: The task's metrics; empty where they are not known.
    """

    layer: str
    precision: str
    weights: int
    bytes_saved: int
    snr_db: float
    cosine: float
    agreement: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def noise(self) -> float:
        """Power of the outputs' error as a share of the signal's: what adds up over layers."""
        return float(10 ** (-self.snr_db / 10))


@dataclass(frozen=True)
class Sensitivity:
    """What each layer costs.

    Attributes:
        model: Digest of the model.
        judged_on: The set of inputs that judged: a split, or `golden and random`.
        examples: How many.
        calibrated_on: The set of inputs that set ranges of activations; empty where none were needed.
        effects: One a layer and precision, in the model's order.
        skipped: Why a layer, or a layer in a precision, was not tried, by path.
        metric: The task's metric; empty where it is not known.
        direction: Whether larger is better.
        before: The metrics of the float model on the same examples.
    """

    model: str
    judged_on: str
    examples: int
    calibrated_on: str
    effects: tuple[Effect, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    metric: str = ""
    direction: Direction = "larger"
    before: Mapping[str, float] = field(default_factory=dict)

    def metric_drop(self, effect: Effect) -> float | None:
        """How much worse the task's metric is; None where it is not known."""
        if self.metric not in effect.metrics or self.metric not in self.before:
            return None
        change = self.before[self.metric] - effect.metrics[self.metric]
        return change if self.direction == "larger" else -change

    def loss(self, effect: Effect) -> float:
        """What a budget is spent on: disagreement, else the metric's drop, else the cosine's distance from 1."""
        if effect.agreement is not None:
            return 1.0 - effect.agreement
        drop = self.metric_drop(effect)
        return max(0.0, 1.0 - effect.cosine) if drop is None else max(0.0, drop)

    def most_sensitive_first(self) -> tuple[str, ...]:
        """Layers by the largest noise that they make in any of the precisions."""
        worst: dict[str, float] = {}
        for effect in self.effects:
            worst[effect.layer] = max(worst.get(effect.layer, 0.0), effect.noise)
        return tuple(sorted(worst, key=lambda path: -worst[path]))


@dataclass(frozen=True)
class _Layers:
    layers: tuple[Layer, ...]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class _Span:
    layer: str
    operator: int
    argument: int
    low: float
    high: float


@dataclass(frozen=True)
class _Ranges:
    spans: tuple[_Span, ...]


def measure(state: ModelState, tools: Tools, request: Request | None = None) -> Sensitivity:
    """Quantize each layer alone, in each precision, and compare the outputs with the float model's.

    Args:
        state: A torch model.
        tools: The cache, the task's data and where to tell of progress.
        request: What is asked.

    Raises:
        ConfigError: A precision, layer or split is unknown, or empty.
    """
    return _Run(state, tools, request or Request()).measured()


def layers_of(state: ModelState, tools: Tools) -> tuple[Layer, ...]:
    """The layers of a torch model that have weights; remembered."""
    return _known_layers(state, tools).layers


def _known_layers(state: ModelState, tools: Tools) -> _Layers:
    key = sha256_text(f"layers:{state.info.digest}:{_code()}")
    known = tools.cache.record(_KIND, key, _Layers)
    if known is None:
        subject = Subject(state.live())
        known = _Layers(subject.layers, subject.skipped)
        tools.cache.put_record(_KIND, key, known)
    return known


def _code() -> str:
    """Identity of the code that the answers depend on."""
    here = Path(__file__).resolve().parent
    shared = here.parent / "backends" / "_quantize"
    files = (here / "sensitivity.py", here / "fake_quantize.py", shared / "modules.py", shared / "ranges.py")
    return sha256_text("".join(sha256_file(path) for path in files) + str(versions_of(("torch",))))


class _Run:
    def __init__(self, state: ModelState, tools: Tools, request: Request) -> None:
        self.state, self.tools, self.request = state, tools, request
        for precision in request.precisions:
            if precision not in BITS:
                raise unknown_name("precision of a single layer", precision, BITS)
        if request.split not in _SPLITS:
            raise ConfigError(
                f"Sensitivity is judged on the validation split, not on '{request.split}': test examples are only ever"
                " reported, and choose nothing.",
                "--split validation",
            )
        if request.examples is not None and request.examples < 1:
            raise ConfigError("At least one example is needed to judge by.", "--examples 100")
        self.known = _known_layers(state, tools)
        self.layers = _chosen(self.known, request.layers)
        self.judging = self._judging()
        self.count = self._size(self.judging)
        whole = len(self.judging) == 1 and self.judging[0].name == request.split
        data = tools.data
        self.scored = (
            data if whole and data is not None and self.count == self._size(self.judging, whole=True) else None
        )
        self.calibrating = self._calibrating() if STATIC in request.precisions else ()
        self._subject: Subject | None = None
        self._batch = 0
        self._float: dict[str, Array] = {}

    def _size(self, sets: Sequence[InputFiles], *, whole: bool = False) -> int:
        import numpy as np

        total = sum(len(np.load(next(iter(s.files.values())), mmap_mode="r")) for s in sets)
        return total if whole or self.request.examples is None else min(total, self.request.examples)

    def _judging(self) -> tuple[InputFiles, ...]:
        data = self.tools.data
        found = split_inputs(data, self.request.split) if data is not None else None
        if found is not None:
            return (found,)
        if data is not None and self.request.split != "validation":
            raise ConfigError(f"The task's {self.request.split} split is empty.", "--split validation")
        info = self.state.info
        golden = golden_inputs(
            info.inputs, lambda: self.state.live().example_inputs, info.digest, data, self.tools.cache
        )
        why = "there is no task" if data is None else "the task's validation split is empty"
        self.tools.progress.warn(f"Judged on golden and random inputs: {why}.")
        return (golden, random_inputs(info.inputs, golden, self.tools.cache))

    def _calibrating(self) -> tuple[InputFiles, ...]:
        data = self.tools.data
        found = split_inputs(data, "calibration") if data is not None else None
        return (found,) if found is not None else self.judging

    def measured(self) -> Sensitivity:
        wanted = [(layer, precision) for layer in self.layers for precision in self.request.precisions]
        ranges = self._ranges() if STATIC in self.request.precisions else {}
        seen = {place[0] for place in ranges}
        skipped = dict(self.known.skipped)
        effects = []
        with self.tools.progress.step("quantizing each layer alone", total=len(wanted)) as step:
            for layer, precision in wanted:
                step.say(f"{layer.path} in {precision}")
                if precision == STATIC and layer.path not in seen:
                    skipped[layer.path] = f"is not tried in {STATIC}: no activation goes into its operators"
                else:
                    effects.append(self._effect(layer, precision, ranges))
                step.advance(1)
        data = self.scored
        return Sensitivity(
            model=self.state.info.digest,
            judged_on=" and ".join(s.name for s in self.judging),
            examples=self.count,
            calibrated_on=" and ".join(s.name for s in self.calibrating) if ranges else "",
            effects=tuple(effects),
            skipped=skipped,
            metric=data.metric if data else "",
            direction=data.direction if data else "larger",
            before=self._metrics() if data else {},
        )

    def _key(self, *parts: object) -> str:
        identity = {
            "model": self.state.info.digest,
            "judging": [s.key for s in self.judging],
            "task": self.scored.folder.name if self.scored else None,
            "examples": self.count,
            "code": _code(),
            "parts": [str(part) for part in parts],
        }
        return sha256_text(schema.canonical_json(identity).decode())

    def _effect(self, layer: Layer, precision: str, ranges: Mapping[Place, Range]) -> Effect:
        calibration = [s.key for s in self.calibrating] if precision == STATIC else []
        quantize = self.request.quantize if precision == STATIC else None
        key = self._key(layer.path, precision, calibration, quantize and (quantize.ranges, quantize.calibration))
        known = self.tools.cache.record(_KIND, key, Effect)
        if known is not None:
            return known
        subject = self._live()
        reference = self._reference()
        with subject.quantized(layer, precision, ranges):
            got = self._outputs(subject)
        parities = [compare(name, reference[name], value) for name, value in got.items()]
        agreements = [parity.agreement for parity in parities if parity.agreement is not None]
        effect = Effect(
            layer=layer.path,
            precision=precision,
            weights=layer.weights,
            bytes_saved=stored_bytes(layer, "float32") - stored_bytes(layer, precision),
            snr_db=min(parity.snr_db for parity in parities),
            cosine=min(parity.cosine for parity in parities),
            agreement=min(agreements, default=None),
            metrics=self._score(got),
        )
        self.tools.cache.put_record(_KIND, key, effect)
        return effect

    def _live(self) -> Subject:
        if self._subject is None:
            self._subject = Subject(self.state.live())
            self._batch = self._subject.batches(self._inputs(self.judging, 2))
        return self._subject

    def _inputs(self, sets: Sequence[InputFiles], count: int) -> dict[str, Array]:
        import numpy as np

        names = [spec.name for spec in self.state.info.inputs]
        return {name: np.concatenate([np.load(s.files[name]) for s in sets])[:count] for name in names}

    def _outputs(self, subject: Subject) -> dict[str, Array]:
        import numpy as np

        parts = list(subject.outputs(self._inputs(self.judging, self.count), self._batch))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _reference(self) -> dict[str, Array]:
        if not self._float:
            self._float = self._outputs(self._live())
        return self._float

    def _metrics(self) -> dict[str, float]:
        key = self._key("before")
        known = self.tools.cache.record(_KIND, key, dict[str, float])
        if known is None:
            known = self._score(self._reference())
            self.tools.cache.put_record(_KIND, key, known)
        return known

    def _score(self, outputs: Mapping[str, Array]) -> dict[str, float]:
        import numpy as np

        if self.scored is None:
            return {}
        with tempfile.TemporaryDirectory(prefix="edgekit-outputs-") as name:
            files = {}
            for output, value in outputs.items():
                files[output] = Path(name) / array_file(output)
                np.save(files[output], value)
            return self.scored.score(files, self.request.split)

    def _ranges(self) -> dict[Place, Range]:
        """The range of each activation that goes into a layer; remembered."""
        quantize = self.request.quantize
        sets = self.calibrating
        key = sha256_text(
            f"{self.state.info.digest}:{[s.key for s in sets]}:{quantize.calibration}:{quantize.ranges}:{_code()}"
        )
        known = self.tools.cache.record(_KIND, key, _Ranges)
        if known is None:
            subject = self._live()
            inputs = self._inputs(sets, quantize.calibration)
            with self.tools.progress.step("ranges of activations"), subject.observed() as histograms:
                for _ in subject.outputs(inputs, self._batch):
                    continue
            spans = [_Span(*place, *found.range(quantize.ranges)) for place, found in histograms.items()]
            known = _Ranges(tuple(spans))
            self.tools.cache.put_record(_KIND, key, known)
        return {(span.layer, span.operator, span.argument): (span.low, span.high) for span in known.spans}


def _chosen(known: _Layers, patterns: Sequence[str]) -> list[Layer]:
    if not patterns:
        if not known.layers:
            raise ConfigError(
                "The model has no layer with weights of two dimensions or more: nothing can be quantized."
            )
        return list(known.layers)
    found: dict[str, Layer] = {}
    for pattern in patterns:
        named = [layer for layer in known.layers if fits(layer.path, pattern)]
        if not named:
            raise unknown_name("layer with weights", pattern, [layer.path for layer in known.layers])
        found |= {layer.path: layer for layer in named}
    return [layer for layer in known.layers if layer.path in found]
