"""Quantized artifacts: what is written, what it decompresses to, and what it computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.backends._mil import activations
from edgekit.backends._mil.compressed import Affine, palettized, quantized
from edgekit.backends._mil.evaluator import ReferenceEvaluator
from edgekit.backends._mil.package import read_package
from edgekit.backends.base import CompileRequest
from edgekit.core.artifact import Artifact
from edgekit.core.errors import ConfigError, UnsupportedModelError
from edgekit.core.grid import Grid, Trained, structure_of
from edgekit.core.lowering import Lowering, Quantize
from edgekit.core.model import PassRecord
from tests.unit.backends.mil.compiled import compile_into, request_for, target
from tests.unit.backends.mil.programs import evaluate, snr_db, write_program

RNG = np.random.default_rng(3)


class Net(torch.nn.Module):
    """A stem, a depthwise and a pointwise convolution with a residual sum, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 32, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(32)
        self.depthwise = torch.nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.pointwise = torch.nn.Conv2d(32, 96, 1)
        self.back = torch.nn.Conv2d(96, 32, 1)
        self.head = torch.nn.Linear(32, 80)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.depthwise(x))
        x = x + self.back(torch.relu(self.pointwise(y)))
        return self.head(x.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(4)
    module = Net().eval()
    with torch.no_grad():
        module.norm.running_mean.uniform_(-0.5, 0.5)
        module.norm.running_var.uniform_(0.5, 2)
        module.norm.weight.uniform_(-1.5, 1.5)
    return module


IMAGE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(8))


def request(
    folder: Path,
    scheme: str | None,
    release: str = "17.0",
    module: torch.nn.Module | None = None,
    overrides: dict[str, str] | None = None,
    calibrated: bool = False,
    precision: str = "float32",
    trained: Trained | None = None,
    **options: Any,
) -> tuple[CompileRequest, dict[str, np.ndarray], np.ndarray]:
    to = target(release, precision=precision)
    given, inputs, expected = request_for(folder, module or net(), (IMAGE,), to)
    lowering = Lowering(Quantize(scheme, **options) if scheme else None, overrides or {})  # type: ignore[arg-type]
    given = replace(given, lowering=lowering)
    if trained:
        given = replace(given, history=(PassRecord("quantize_aware", structure=structure_of(trained)),))
    if calibrated:
        given = replace(given, calibration=examples(folder))
    return given, inputs, expected["out_0"]


def examples(folder: Path, values: np.ndarray | None = None) -> Path:
    place = folder / "calibration"
    place.mkdir(parents=True)
    drawn = np.random.default_rng(1).normal(size=(12, 3, 12, 12)).astype(np.float32)
    np.save(place / "in_0.npy", drawn if values is None else values)
    return place


def their_operations(artifact: Artifact) -> list[Any]:
    """The compressed weights' operations as coremltools reads them."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(artifact.main), skip_model_load=True)
    program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    operations = program.functions["main"].operations
    return [operation for operation in operations if operation.op_type.startswith("constexpr_")]


def theirs(artifact: Artifact) -> dict[str, np.ndarray]:
    """Every compressed weight as coremltools itself decompresses it, by name."""
    return {one.outputs[0].name: one.materialized_val_inference() for one in their_operations(artifact)}


def stored_types(artifact: Artifact) -> list[str]:
    """The element types that weights are stored in."""
    from coremltools.converters.mil.mil import types

    pieces = [
        one.inputs[name] for one in their_operations(artifact) for name in ("data", "indices") if name in one.inputs
    ]
    return sorted(types.builtin_to_string(piece.dtype) for piece in pieces)


def kinds(artifact: Artifact) -> dict[str, int]:
    return ReferenceEvaluator(artifact.main).operators()


FORMS = {
    "int8": ("weight_only_wi8_afp32", "16.0", {}, ("constexpr_affine_dequantize",)),
    "int8-iOS18": ("weight_only_wi8_afp32", "18.0", {}, ("constexpr_blockwise_shift_scale",)),
    "int4": ("weight_only_wi4_afp32", "18.0", {}, ("constexpr_blockwise_shift_scale",)),
    "int4-blocks": ("weight_only_wi4_afp32", "18.0", {"block_size": 16}, ("constexpr_blockwise_shift_scale",)),
    "palette-4": ("palette_4", "16.0", {}, ("constexpr_lut_to_dense",)),
    "palette-4-iOS18": ("palette_4", "18.0", {}, ("constexpr_lut_to_dense",)),
    "palette-2": ("palette_2", "17.0", {}, ("constexpr_lut_to_dense",)),
    "palette-1-iOS18": ("palette_1", "18.0", {}, ("constexpr_lut_to_dense",)),
    "static": ("static_wi8_ai8", "17.0", {"calibrated": True}, ("constexpr_affine_dequantize", "quantize")),
    "static-iOS18": ("static_wi8_ai8", "18.0", {"calibrated": True}, ("constexpr_blockwise_shift_scale", "quantize")),
}


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_decompressed_to_the_bit_as_coremltools_does(form: str, precision: str, tmp_path: Path):
    scheme, release, options, operators = FORMS[form]
    given, inputs, expected = request(tmp_path, scheme, release, precision=precision, **options)

    artifact = compile_into(tmp_path, given)
    found = ReferenceEvaluator(artifact.main).decompressed()

    assert set(operators) <= kinds(artifact).keys()
    for name, value in theirs(artifact).items():
        assert found[name].tobytes() == value.tobytes(), name
    result = ReferenceEvaluator(artifact.main).run(inputs)["out_0"]
    least = {"8": 25, "4": 11, "2": 3, "1": -1}[next(c for c in form if c.isdigit())] if "static" not in form else 20
    assert snr_db(expected, result) > least


@pytest.mark.parametrize("scheme", ["weight_only_wi4_afp32", "palette_4"])
def test_the_smallest_layers_keep_8_bits_beside_4(scheme: str, tmp_path: Path):
    torch.manual_seed(0)
    layers = (torch.nn.Flatten(), torch.nn.Linear(432, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    given, _, _ = request(tmp_path, scheme, "18.0", torch.nn.Sequential(*layers).eval())

    artifact = compile_into(tmp_path, given)

    assert stored_types(artifact) == ["int4" if "wi4" in scheme else "int8", "int8" if "wi4" in scheme else "uint4"]
    assert "1 of 2 layers, the smallest, keep 8 bits" in artifact.manifest.changed


BITS = {"weight_only_wi8_afp32": 8, "weight_only_wi4_afp32": 4, "palette_4": 4, "palette_2": 2, "palette_1": 1}


@pytest.mark.parametrize("scheme", BITS)
def test_a_weight_takes_the_bits_that_its_scheme_is_named_for(scheme: str, tmp_path: Path):
    torch.manual_seed(0)
    wide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 2048)).eval()
    given, _, _ = request(tmp_path, scheme, "18.0", wide, precision="float16")

    artifact = compile_into(tmp_path, given)

    size = (artifact.main / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size - 2048 * 2
    bits = 8 * size / (432 * 2048)
    assert BITS[scheme] <= bits < BITS[scheme] * 1.03 + 0.06


class TestOverrides:
    def test_layers_take_the_scheme_of_their_path(self, tmp_path: Path):
        overrides = {"pointwise": "float32", "head": "palette_2", "stem": "weight_only_wi4_afp32"}
        given, _, _ = request(tmp_path, "weight_only_wi8_afp32", "18.0", overrides=overrides)

        artifact = compile_into(tmp_path, given)

        # The stem is named, the depthwise convolution is too small to be stored otherwise; back has the default.
        assert stored_types(artifact) == ["int4", "int8", "uint2"]

    def test_one_layer_alone_can_be_compressed(self, tmp_path: Path):
        given, inputs, expected = request(tmp_path, None, overrides={"head": "weight_only_wi8_afp32"})

        artifact = compile_into(tmp_path, given)

        assert kinds(artifact)["constexpr_affine_dequantize"] == 1
        assert snr_db(expected, ReferenceEvaluator(artifact.main).run(inputs)["out_0"]) > 40

    def test_batch_norms_that_are_multiplied_in_do_not_hide_a_layer(self, tmp_path: Path):
        given, _, _ = request(tmp_path, None, overrides={"stem": "weight_only_wi8_afp32"}, precision="float16")
        assert kinds(compile_into(tmp_path, given))["constexpr_affine_dequantize"] == 1

    def test_float_layers_of_a_float_model_are_nothing_to_do(self, tmp_path: Path):
        given, _, _ = request(tmp_path, "float16", overrides={"head": "float32"}, precision="float32")
        assert not any("constexpr" in kind for kind in kinds(compile_into(tmp_path, given)))

    def test_a_layer_whose_weights_core_ml_does_not_multiply_is_named(self, tmp_path: Path):
        class Added(Net):
            def __init__(self) -> None:
                super().__init__()
                self.shift = torch.nn.Parameter(torch.randn(1, 80))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x) + self.shift

        given, _, _ = request(tmp_path, "palette_4", module=Added().eval(), overrides={"shift": "palette_2"})
        with pytest.raises(UnsupportedModelError, match="The override 'shift: palette_2' changes nothing"):
            compile_into(tmp_path, given)

    def test_a_path_that_fits_nothing_is_named(self, tmp_path: Path):
        given, _, _ = request(tmp_path, "weight_only_wi8_afp32", overrides={"heed": "float32"})
        with pytest.raises(ConfigError, match="The override 'heed' fits no layer with weights. Did you mean 'head'"):
            compile_into(tmp_path, given)

    def test_float_layers_of_a_static_model_take_floats(self, tmp_path: Path):
        everything, _, _ = request(tmp_path / "a", "static_wi8_ai8", calibrated=True)
        fewer, _, _ = request(tmp_path / "b", "static_wi8_ai8", calibrated=True, overrides={"head": "float32"})

        all_of_it, without = (kinds(compile_into(tmp_path / p, r)) for p, r in (("a", everything), ("b", fewer)))

        assert without["quantize"] < all_of_it["quantize"]
        assert without["constexpr_affine_dequantize"] == all_of_it["constexpr_affine_dequantize"] - 1


def on_grid(levels: tuple[float, ...], bits: int) -> tuple[Net, Trained]:
    """The network with the weights of its convolutions and its head on grids of their own scales."""
    module, grids = net(), {}
    generator = np.random.default_rng(9)
    for path in ("stem", "depthwise", "pointwise", "back", "head"):
        weight = module.get_submodule(path).weight
        scale = generator.uniform(0.02, 0.1, len(weight)).astype(np.float32)
        drawn = generator.choice(np.array(levels, np.float32), weight.shape)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(drawn * scale.reshape(-1, *[1] * (weight.dim() - 1))))
        grids[path] = Grid(bits, levels, tuple(map(float, scale)))
    return module, Trained(grids)


GRIDS = {
    "one bit": ("palette_1", "16.0", (-1.0, 1.0), 1),
    "one bit, iOS 18": ("palette_1", "18.0", (-1.0, 1.0), 1),
    "two bits": ("palette_2", "17.0", (-1.0, 0.0, 1.0), 2),
    "four bits as a palette": ("palette_4", "17.0", tuple(float(n) for n in range(-7, 8)), 4),
    "four bits": ("weight_only_wi4_afp32", "18.0", tuple(float(n) for n in range(-7, 8)), 4),
    "eight bits": ("weight_only_wi8_afp32", "16.0", tuple(float(n) for n in range(-127, 128)), 8),
}


@pytest.mark.parametrize("case", GRIDS)
def test_trained_grids_are_stored_exactly(case: str, tmp_path: Path):
    scheme, release, levels, bits = GRIDS[case]
    module, trained = on_grid(levels, bits)
    given, inputs, expected = request(tmp_path, scheme, release, module, trained=trained)

    artifact = compile_into(tmp_path, given)

    assert snr_db(expected, ReferenceEvaluator(artifact.main).run(inputs)["out_0"]) > 100
    assert "5 layers are stored on the grids that they were trained on, exactly" in artifact.manifest.changed
    assert sum(count for kind, count in kinds(artifact).items() if "lut" in kind or "affine" in kind) in (0, 5)


def test_a_grid_of_one_bit_computes_in_float16_as_well(tmp_path: Path):
    module, trained = on_grid((-1.0, 1.0), 1)
    given, inputs, expected = request(tmp_path, "palette_1", "17.0", module, trained=trained, precision="float16")
    assert snr_db(expected, ReferenceEvaluator(compile_into(tmp_path, given).main).run(inputs)["out_0"]) > 45


def test_weights_that_lie_on_no_such_grid_are_named(tmp_path: Path):
    _, trained = on_grid((-1.0, 1.0), 1)
    given, _, _ = request(tmp_path, "palette_1", "17.0", trained=trained)
    with pytest.raises(UnsupportedModelError, match="weights of 'stem' do not lie on the grid"):
        compile_into(tmp_path, given)


class TestStatic:
    def test_it_is_written_as_it_was_simulated(self, tmp_path: Path, monkeypatch):
        from edgekit.backends._mil import quantization

        chosen = []
        whole = quantization._ratio
        monkeypatch.setattr(
            quantization, "_ratio", lambda evaluator, *rest: chosen.append(evaluator) or whole(evaluator, *rest)
        )
        given, inputs, _ = request(tmp_path, "static_wi8_ai8", calibrated=True)

        artifact = compile_into(tmp_path, given)
        written = ReferenceEvaluator(artifact.main).run(inputs)["out_0"]

        assert len(chosen) == 3
        assert max(snr_db(one.run(inputs)["out_0"], written) for one in chosen) > 100

    def test_a_clipping_layer_keeps_its_accuracy_and_says_what_was_done(self, tmp_path: Path):
        given, inputs, expected = request(tmp_path, "static_wi8_ai8", calibrated=True)
        artifact = compile_into(tmp_path, given)
        said = next(sentence for sentence in artifact.manifest.changed if "held-out" in sentence)
        assert "reference-evaluated" in said
        assert snr_db(expected, ReferenceEvaluator(artifact.main).run(inputs)["out_0"]) > 25

    def test_ranges_that_were_trained_are_kept(self, tmp_path: Path):
        trained = Trained(ranges={"head": {"input": (-2.0, 3.1)}, "depthwise": {"input": (0.0, 5.1)}})
        given, _, _ = request(
            tmp_path, "static_wi8_ai8", calibrated=True, trained=trained, bias_correction=False, ranges="minmax"
        )
        package = read_package(compile_into(tmp_path, given).main)
        scales = [
            float(operation.attributes["val"])
            for operation in package.function.operations()
            if operation.kind == "const"
            and "scale" in operation.outputs[0].name
            and operation.attributes["val"].ndim == 0
        ]
        assert any(scale == pytest.approx(5.1 / 255) for scale in scales)
        assert any(scale == pytest.approx(0.02) for scale in scales)

    def test_bias_correction_can_be_left_out(self, tmp_path: Path):
        given, _, _ = request(tmp_path, "static_wi8_ai8", calibrated=True, bias_correction=False, ranges="percentile")
        said = " ".join(compile_into(tmp_path, given).manifest.changed)
        assert "percentile ranges" in said
        assert "corrected" not in said

    def test_values_that_are_joined_share_a_range(self):
        found = activations.shared_ranges(
            {"a": (-1.0, 2.0), "b": (0.0, 5.0), "c": (0.0, 1.0)}, activations.Placement(alike=[{"a", "b"}])
        )
        assert found == {"a": (-1.0, 5.0), "b": (-1.0, 5.0), "c": (0.0, 1.0)}

    def test_examples_of_nothing_but_zeros_are_no_obstacle(self, tmp_path: Path):
        given, inputs, _ = request(tmp_path, "static_wi8_ai8")
        zeros = examples(tmp_path, np.zeros((4, 3, 12, 12), np.float32))
        artifact = compile_into(tmp_path, replace(given, calibration=zeros))
        assert np.isfinite(ReferenceEvaluator(artifact.main).run(inputs)["out_0"]).all()

    @pytest.mark.parametrize(
        "values, words",
        [
            (
                np.full((4, 3, 12, 12), np.nan, np.float32),
                "'in_0' of calibration batch 0 has a value that is not finite",
            ),
            (np.zeros((4, 3, 12, 11), np.float32), r"has the shape \(1, 3, 12, 11\); the model takes \(1, 3, 12, 12\)"),
            (np.zeros((0, 3, 12, 12), np.float32), "There are 0 calibration examples"),
        ],
        ids=["not finite", "another shape", "none"],
    )
    def test_bad_examples_are_named(self, tmp_path: Path, values: np.ndarray, words: str):
        given, _, _ = request(tmp_path, "static_wi8_ai8")
        with pytest.raises(UnsupportedModelError, match=words):
            compile_into(tmp_path, replace(given, calibration=examples(tmp_path, values)))

    def test_it_needs_examples(self, tmp_path: Path):
        given, _, _ = request(tmp_path, "static_wi8_ai8")
        with pytest.raises(UnsupportedModelError, match="static_wi8_ai8 needs calibration examples"):
            compile_into(tmp_path, given)


def test_examples_make_weights_better_without_integer_activations(tmp_path: Path):
    plain, inputs, expected = request(tmp_path / "a", "weight_only_wi4_afp32", "18.0")
    with_examples, _, _ = request(tmp_path / "b", "weight_only_wi4_afp32", "18.0", calibrated=True)

    ratios = [
        snr_db(expected, ReferenceEvaluator(compile_into(tmp_path / place, given).main).run(inputs)["out_0"])
        for place, given in (("a", plain), ("b", with_examples))
    ]

    assert ratios[1] > ratios[0] + 1


class TestRounding:
    WEIGHT = RNG.normal(size=(64, 96)).astype(np.float16)

    def error(self, dense: np.ndarray) -> float:
        return float(((dense.astype(np.float64) - self.WEIGHT) ** 2).mean())

    def test_four_bits_clip_where_that_is_better(self):
        import coremltools.optimize.coreml._quantization_passes as passes

        library = passes.linear_quantize_weights.blockwise_compress(self.WEIGHT, 4, "LINEAR_SYMMETRIC", True, [1, 0])
        assert self.error(quantized(self.WEIGHT, 0, 4).dense()) < 0.9 * self.error(
            passes.linear_quantize_weights.decompress(library)
        )

    def test_blocks_are_better_still_and_smaller_where_they_do_not_divide(self):
        whole, blocks = quantized(self.WEIGHT, 0, 4), quantized(self.WEIGHT, 0, 4, 32)
        assert blocks.scale.shape == (64, 3)
        assert self.error(blocks.dense()) < self.error(whole.dense())
        assert quantized(self.WEIGHT, 0, 4, 33).scale.shape == (64, 3)
        assert quantized(self.WEIGHT, 0, 4, 31).scale.shape == (64, 4)

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_palettes_are_as_good_as_the_best_one(self, bits: int):
        from coremltools._deps import _kmeans1d

        values = np.sort(self.WEIGHT.ravel().astype(np.float64))
        best = _kmeans1d.cluster(values, 1 << bits)
        least = float(((np.array(best.centroids)[best.clusters] - values) ** 2).mean())
        assert self.error(palettized(self.WEIGHT, 0, bits, grouped=False).dense()) < 1.02 * least

    def test_groups_of_channels_have_palettes_of_their_own_where_those_are_small(self):
        weight = RNG.normal(size=(64, 4096)).astype(np.float16) * RNG.uniform(0.1, 3, (64, 1)).astype(np.float16)
        grouped, whole = palettized(weight, 0, 4, grouped=True), palettized(weight, 0, 4, grouped=False)
        assert grouped.lut.size * 16 <= 0.02 * weight.size * 4
        assert ((grouped.dense() - weight) ** 2).mean() < ((whole.dense() - weight) ** 2).mean()

    @pytest.mark.parametrize("axis", [0, 1])
    def test_a_channel_of_zeros_stays_zeros(self, axis: int):
        weight = np.zeros((4, 4), np.float16)
        weight[1] = 2
        stored = quantized(weight, axis, 8)
        assert isinstance(stored, Affine)
        np.testing.assert_allclose(stored.dense(), weight, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_quantize_and_dequantize_round_as_coremltools_does(dtype: type, tmp_path: Path):
    from coremltools.converters.mil.mil import types
    from coremltools.optimize import _utils

    values = (RNG.normal(size=(1, 4000)) * 3).astype(dtype)
    # Halves between two steps, and values beyond both ends, too.
    values[0, :60] = (np.arange(60) - 30.5) * 0.25
    scale, zero_point = dtype(0.25), np.int8(-7)
    shared = {"scale": scale, "zero_point": zero_point}
    path = write_program(
        tmp_path / "p.mlpackage",
        {"x": values},
        lambda mb, x: mb.dequantize(input=mb.quantize(input=x, output_dtype="int8", **shared), **shared),
    )

    whole = _utils.quantize_by_scale_and_zp(values, scale, zero_point, types.int8)
    expected = _utils.dequantize_by_scale_and_zp(whole, scale, zero_point)

    np.testing.assert_array_equal(evaluate(path, {"x": values})[0], expected)
