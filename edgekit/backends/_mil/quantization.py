"""Quantization of a converted Core ML model: what each weight is stored as, and 8-bit activations where asked for.

The float model is evaluated on calibration examples by the reference evaluator: coremltools measures ranges of
activations on a Mac alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends._mil import activations, compressed, correction, emission, simulation, sparse, weights
from edgekit.backends._mil.activations import Placement
from edgekit.backends._mil.compressed import Compressed
from edgekit.backends._mil.evaluator import ReferenceEvaluator
from edgekit.backends._mil.package import read_package
from edgekit.backends._mil.program import Block
from edgekit.backends._mil.weights import Weight
from edgekit.backends._quantize.judging import held_out
from edgekit.backends._quantize.modules import modules_of, schemes_by_module
from edgekit.backends._quantize.sequential import correct_layers
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.grid import Grid, Trained
from edgekit.core.lowering import Lowering, Quantize, Ranges

if TYPE_CHECKING:
    from edgekit.backends._mil.simulation import Example
    from edgekit.core.task import Array

STATIC = "static_wi8_ai8"
PALETTES: Mapping[str, int] = {"palette_4": 4, "palette_2": 2, "palette_1": 1}
INTEGERS: Mapping[str, int] = {STATIC: 8, "weight_only_wi8_afp32": 8, "weight_only_wi4_afp32": 4}
PLAIN = ("float32", "float16")
SCALES_IOS = 18
"""The release from which on palettes have scales, weights have 4 bits, and both come in groups."""
_SPARED = "weight_only_wi8_afp32"
_EQUAL_DB = 200.0
_OFF_GRID = 0.2
"""How far from its level a weight may be, in steps: rounding to float16, not another weight."""


@dataclass(frozen=True)
class Wanted:
    """What a quantization is asked for.

    Attributes:
        lowering: The options.
        exported: The exported program that the model was converted from, for its module paths.
        trained: What passes have fixed.
        ios: The release whose operators may be used.
        examples: Calibration examples as the package takes them; empty where there are none.
    """

    lowering: Lowering
    exported: Any
    trained: Trained
    ios: int
    examples: Sequence[Example] = ()


@dataclass
class _Layers:
    """The weights of a model and what becomes of them."""

    weights: dict[str, Weight]
    schemes: dict[str, str]
    stored: dict[str, Compressed] = field(default_factory=dict)
    on_grid: set[str] = field(default_factory=set)
    kept: int = 0
    smaller_blocks: int = 0
    sparse: sparse.Choices = field(default_factory=sparse.Choices)


@dataclass(frozen=True)
class _Candidate:
    """One way to quantize: what is written, and the program that then runs."""

    name: str
    edits: emission.Edits
    evaluator: ReferenceEvaluator


def quantized(model: Any, wanted: Wanted) -> tuple[Any, tuple[str, ...]]:
    """The model with its weights compressed, and with 8-bit activations where asked for; and notes on it.

    Args:
        model: The float `MLModel`.
        wanted: What is asked for.

    Raises:
        UnsupportedModelError: Nothing in this model can be stored so, or there are no calibration examples.
        ConfigError: An override fits no module.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.mlpackage"
        model.save(str(path))
        layers = _layers(read_package(path).function.block, wanted)
        plain, unread = _evaluator(path, wanted)
    asked = [wanted.lowering.precision, *wanted.lowering.overrides.values()]
    more = layers.sparse.notes(wanted.lowering.sparse)
    if all(scheme in PLAIN for scheme in asked):
        return _written(model, emission.Edits({}), layers, wanted), more
    if not layers.stored and not layers.sparse.floats:
        raise UnsupportedModelError(
            f"The scheme {' / '.join(s for s in dict.fromkeys(asked) if s not in PLAIN)} changes nothing in this model:"
            f" it has no weight of more than {weights.SMALL} elements that Core ML could compress.",
            "Leave the scheme out, or use float16.",
        )
    _refuse_idle_overrides(layers, wanted)
    notes = (*_notes(layers, wanted), *unread, *more)
    if plain is not None and wanted.lowering.quantize is not None:
        chosen, said = _calibrated(plain, layers, wanted, wanted.lowering.quantize)
        return _written(model, chosen, layers, wanted), (*notes, said)
    return _written(model, emission.Edits(layers.stored), layers, wanted), notes


def _written(model: Any, edits: emission.Edits, layers: _Layers, wanted: Wanted) -> Any:
    """The model with edits and with its sparse weights; itself where there is nothing to change."""
    choices = layers.sparse
    whole = replace(edits, stored={**edits.stored, **choices.floats}, sparse=frozenset(choices.joint))
    changes = whole.stored or whole.biases or whole.placement.tensors
    return emission.emitted(model, whole, wanted.ios) if changes else model


def _evaluator(path: Path, wanted: Wanted) -> tuple[ReferenceEvaluator | None, tuple[str, ...]]:
    """The float model where examples shall be run on it; weights alone can do without, and that is said."""
    if wanted.lowering.quantize is None or not wanted.examples:
        return None, ()
    try:
        return ReferenceEvaluator(path), ()
    except UnsupportedModelError as error:
        if wanted.lowering.precision == STATIC:
            raise
        return None, (f"the calibration examples were not used: {error}",)


def _refuse_idle_overrides(layers: _Layers, wanted: Wanted) -> None:
    paths = [module.path for module in modules_of(wanted.exported)]
    for pattern, scheme in wanted.lowering.overrides.items():
        fits = schemes_by_module(paths, {pattern: scheme}, "")
        if scheme not in PLAIN and not any(fits.get(weight.path or "") for weight in layers.weights.values()):
            raise UnsupportedModelError(
                f"The override '{pattern}: {scheme}' changes nothing: Core ML has no weight of that layer to compress.",
                "Leave it out.",
            )


def _layers(block: Block, wanted: Wanted) -> _Layers:
    modules = modules_of(wanted.exported)
    found = weights.weights_of(block, modules)
    default, overrides = wanted.lowering.precision, wanted.lowering.overrides
    named = weights.named_paths(modules, overrides, wanted.trained.grids.keys())
    schemes = weights.schemes(found, modules, overrides, default, named)
    layers = _Layers({weight.name: weight for weight in found}, schemes)
    spared = weights.spared(found, schemes, default, named)
    layers.kept = len(spared)
    schemes.update(dict.fromkeys(spared, _SPARED))
    for weight in found:
        grid = wanted.trained.grids.get(weight.path or "")
        scheme = schemes[weight.name]
        if scheme == "float32":
            layers.sparse.add(weight, None, wanted.lowering.sparse, wanted.ios, computes=False)
            continue
        exact = _exactly(weight, grid, scheme) if grid else None
        if exact is not None:
            layers.on_grid.add(weight.name)
        form = exact or _compressed(weight, scheme, wanted, layers)
        computes = scheme == STATIC and weight.kind in weights.PRODUCTS
        layers.sparse.add(weight, form, wanted.lowering.sparse, wanted.ios, computes=computes)
        if weight.name not in layers.sparse.floats:
            layers.stored[weight.name] = form
    return layers


def _compressed(weight: Weight, scheme: str, wanted: Wanted, layers: _Layers) -> Compressed:
    if scheme in PALETTES:
        return compressed.palettized(weight.value, weight.axis, PALETTES[scheme], wanted.ios >= SCALES_IOS)
    block = wanted.lowering.quantize.block_size if wanted.lowering.quantize else None
    bits = INTEGERS[scheme]
    if bits == 4 and block is not None and compressed.fitting_block(block, weight.value.shape, weight.axis) < block:
        layers.smaller_blocks += 1
    return compressed.quantized(weight.value, weight.axis, bits, block if bits == 4 else None)


def _exactly(weight: Weight, grid: Grid, scheme: str) -> Compressed | None:
    """The weight on its grid, in the scheme's own form; None where the scheme has no form for it."""
    import numpy as np

    if scheme in PALETTES and len(grid.levels) > 1 << PALETTES[scheme]:
        return None
    if scheme in INTEGERS and not _are_integers(grid.levels, INTEGERS[scheme]):
        return None
    along = [1] * weight.value.ndim
    along[weight.axis] = -1
    scale = np.broadcast_to(np.asarray(grid.scale, np.float64), weight.factors.shape) * weight.factors
    steps: Any = weight.value.astype(np.float64) / np.where(scale == 0, 1.0, scale).reshape(along)
    table = np.asarray(grid.levels, np.float64)
    indices = np.searchsorted((table[1:] + table[:-1]) / 2, steps).astype(np.uint8)
    off = float(np.abs(table[indices] - steps).max(initial=0.0))
    if off > _OFF_GRID * max(1.0, float(np.diff(table).min(initial=1.0))):
        raise UnsupportedModelError(
            f"The weights of '{weight.path}' do not lie on the grid that a pass has put them on: one is {off:.2f} steps off.",
            "Run the pass that trains the grid last, and compile its own checkpoint.",
        )
    return compressed.on_grid(weight.value, weight.axis, grid, indices, weight.factors, scheme in PALETTES)


def _are_integers(levels: Sequence[float], bits: int) -> bool:
    most = 1 << (bits - 1)
    return all(level == int(level) and -most <= level < most for level in levels)


def _notes(layers: _Layers, wanted: Wanted) -> tuple[str, ...]:
    notes = []
    if layers.on_grid:
        notes.append(f"{len(layers.on_grid)} layers are stored on the grids that they were trained on, exactly")
    if layers.kept:
        notes.append(f"{layers.kept} of {len(layers.stored)} layers, the smallest, keep 8 bits")
    if layers.smaller_blocks and wanted.lowering.quantize:
        asked = wanted.lowering.quantize.block_size
        notes.append(f"{layers.smaller_blocks} layers have smaller blocks: {asked} does not divide their inputs")
    return tuple(notes)


def _calibrated(
    plain: ReferenceEvaluator, layers: _Layers, wanted: Wanted, quantize: Quantize
) -> tuple[emission.Edits, str]:
    """The best of the candidates by the signal-to-noise ratio of the outputs, on examples that set nothing in them."""
    fitting, judging = held_out(wanted.examples)
    references = [plain.run(example) for example in judging]
    ratios: dict[str, float] = {}
    best: _Candidate | None = None
    for candidate in _candidates(plain, layers, wanted, quantize, fitting):
        ratios[candidate.name] = _ratio(candidate.evaluator, judging, references)
        if best is None or round(ratios[candidate.name], 3) > round(ratios[best.name], 3):
            best = candidate
    if best is None:
        raise UnsupportedModelError(f"{wanted.lowering.precision} has no way to be calibrated in this model.")
    others = ", ".join(f"{name}: {ratio:.1f} dB" for name, ratio in ratios.items() if name != best.name)
    said = (
        f"{wanted.lowering.precision} has {best.name}: its outputs are {ratios[best.name]:.1f} dB above their error on"
        f" {len(judging)} held-out examples, reference-evaluated"
    )
    return best.edits, f"{said} ({others})" if others else said


def _candidates(
    plain: ReferenceEvaluator, layers: _Layers, wanted: Wanted, quantize: Quantize, fitting: Sequence[Example]
) -> Iterator[_Candidate]:
    block = plain.package.function.block
    placement = _placement(plain, layers, wanted)
    corrected = correction.corrected_operations(block, layers.stored)
    data = {simulation.source_of(one, "x") for one in corrected}
    histograms, means = simulation.observed(plain, fitting, placement.tensors, data)
    trained = _trained_ranges(plain, layers, placement, wanted)

    def ranged(way: Ranges) -> tuple[str, emission.Edits, Block]:
        found = {name: histogram.range(way) for name, histogram in histograms.items()}
        ranges = activations.shared_ranges(found | trained, placement)
        name = f"{way} ranges" if placement.tensors else "weights rounded to nearest"
        edits = emission.Edits(layers.stored, placement=placement, ranges=ranges)
        return name, edits, activations.with_pairs(block, placement, ranges)

    if placement.tensors and quantize.ranges != "minmax":
        name, edits, simulated = ranged("minmax")
        yield _Candidate(name, edits, _simulated(plain, simulated, layers.stored))
    name, edits, simulated = ranged(quantize.ranges)
    yield _Candidate(name, edits, _simulated(plain, simulated, layers.stored))
    if quantize.bias_correction and corrected:
        whole = correction.Correction(plain, simulated, layers.weights, layers.stored, layers.on_grid, means)
        correct_layers(whole.layers(simulation.Stepwise(whole.evaluator, fitting)))
        done = replace(edits, stored=whole.stored, biases=whole.biases)
        name = f"{name}, rounding by GPTQ and corrected biases" if placement.tensors else "corrected layers"
        yield _Candidate(name, done, whole.evaluator)


def _placement(plain: ReferenceEvaluator, layers: _Layers, wanted: Wanted) -> Placement:
    if wanted.lowering.precision != STATIC:
        return Placement()
    function = plain.package.function
    left_out = {
        operation.outputs[0].name
        for operation in function.block.operations
        if operation.kind in weights.PRODUCTS
        and layers.schemes.get(simulation.source_of(operation, "weight"), STATIC) != STATIC
    }
    return activations.placed(function.block, function.inputs, left_out)


def _trained_ranges(
    plain: ReferenceEvaluator, layers: _Layers, placement: Placement, wanted: Wanted
) -> dict[str, tuple[float, float]]:
    """Ranges that activations were trained with: of what a layer takes, and of what it gives where nothing is fused."""
    given: dict[str, tuple[float, float]] = {}
    taken: dict[str, tuple[float, float]] = {}
    for operation in plain.package.function.block.operations:
        weight = layers.weights.get(simulation.source_of(operation, "weight"))
        ranges = wanted.trained.ranges.get(weight.path or "", {}) if weight else {}
        if "output" in ranges:
            given[operation.outputs[0].name] = ranges["output"]
        if "input" in ranges:
            taken[simulation.source_of(operation, "x")] = ranges["input"]
    return {name: limits for name, limits in (given | taken).items() if name in placement.tensors}


def _simulated(plain: ReferenceEvaluator, block: Block, stored: Mapping[str, Compressed]) -> ReferenceEvaluator:
    evaluator = plain.with_block(block)
    for name, form in stored.items():
        evaluator.set_constant(name, form.dense())
    return evaluator


def _ratio(
    evaluator: ReferenceEvaluator, judging: Sequence[Example], references: Sequence[Mapping[str, Array]]
) -> float:
    """Signal-to-noise ratio in dB, averaged over all outputs."""
    import numpy as np

    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for example, reference in zip(judging, references, strict=True):
        for name, value in evaluator.run(example).items():
            if value.dtype.kind != "f":
                continue
            wanted = reference[name].astype(np.float64)
            given = value.astype(np.float64)
            real = np.isfinite(wanted)
            signal[name] = signal.get(name, 1e-30) + float(np.sum(wanted[real] ** 2))
            error = (given[real] - wanted[real]) ** 2
            noise[name] = noise.get(name, 0.0) + float(np.sum(error) if np.isfinite(error).all() else np.inf)
    ratios = [
        max(-_EQUAL_DB, min(_EQUAL_DB, 10 * float(np.log10(signal[name] / noise[name])))) if noise[name] else _EQUAL_DB
        for name in noise
    ]
    return float(np.mean(ratios)) if ratios else _EQUAL_DB
