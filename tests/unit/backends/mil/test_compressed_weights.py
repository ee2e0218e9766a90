from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.backends._mil import constexpr
from edgekit.backends._mil.blobs import unpack_bits
from edgekit.backends._mil.evaluator import ReferenceEvaluator
from edgekit.core.errors import ConfigError, UnsupportedModelError
from tests.unit.backends.mil.programs import write_program

RNG = np.random.default_rng(5)
WEIGHT = RNG.normal(size=(48, 64)).astype(np.float32)
X = {"x": RNG.normal(size=(2, 64)).astype(np.float32)}


def written(path: Path, release: str, compress: Any) -> Any:
    """A package with one linear layer, its weights compressed by coremltools; gives coremltools' own view of it."""
    import coremltools as ct

    plain = write_program(path.with_suffix(".plain.mlpackage"), X, lambda mb, x: mb.linear(x=x, weight=WEIGHT), release)
    model = compress(ct.models.MLModel(str(plain), skip_model_load=True))
    model.save(str(path))
    return model


def theirs(model: Any) -> dict[str, np.ndarray]:
    """Every compressed weight as coremltools itself decompresses it, by name."""
    from coremltools.converters.mil.frontend.milproto.load import load

    program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    found: dict[str, np.ndarray] = {}
    for operation in program.functions["main"].operations:
        if operation.op_type.startswith("constexpr_"):
            if operation.op_type == "constexpr_lut_to_dense" and operation.lut.val is None:
                # Its own inference does not follow a palette that is itself compressed.
                values = operation.decompress(operation.indices.val, found[operation.lut.name], None)
            else:
                values = operation.materialized_val_inference()
            values = values if isinstance(values, tuple) else (values,)
            found |= {var.name: value for var, value in zip(operation.outputs, values, strict=True)}
    return found


def ours(path: Path) -> dict[str, np.ndarray]:
    """The compressed weights as the evaluator has them, by name."""
    evaluator = ReferenceEvaluator(path)
    return evaluator.decompressed()


def quantized(**options: Any) -> Any:
    import coremltools.optimize.coreml as co

    config = co.OptimizationConfig(co.OpLinearQuantizerConfig(weight_threshold=0, **options))
    return lambda model: co.linear_quantize_weights(model, config)


def palettized(**options: Any) -> Any:
    import coremltools.optimize.coreml as co

    config = co.OptimizationConfig(co.OpPalettizerConfig(weight_threshold=0, **options))
    return lambda model: co.palettize_weights(model, config)


def pruned_then(after: Any) -> Any:
    import coremltools.optimize.coreml as co

    prune = co.OptimizationConfig(co.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0))

    def compress(model: Any) -> Any:
        sparse = co.prune_weights(model, prune)
        return after(sparse) if after else sparse

    return compress


def jointly(kind: str) -> Any:
    import coremltools.optimize.coreml as co

    if kind == "quantized":
        config = co.OptimizationConfig(co.OpLinearQuantizerConfig(weight_threshold=0))
        return lambda model: co.linear_quantize_weights(model, config, joint_compression=True)
    config = co.OptimizationConfig(co.OpPalettizerConfig(nbits=4, weight_threshold=0))
    return lambda model: co.palettize_weights(model, config, joint_compression=True)


FORMS: dict[str, tuple[str, Any]] = {
    "int8-symmetric": ("iOS17", lambda: quantized(mode="linear_symmetric")),
    "int8-with-zero-point": ("iOS17", lambda: quantized(mode="linear")),
    "uint8": ("iOS17", lambda: quantized(mode="linear", dtype="uint8")),
    "palette-1": ("iOS17", lambda: palettized(nbits=1)),
    "palette-2": ("iOS17", lambda: palettized(nbits=2)),
    "palette-4": ("iOS17", lambda: palettized(nbits=4)),
    "palette-6": ("iOS17", lambda: palettized(nbits=6)),
    "palette-8": ("iOS17", lambda: palettized(nbits=8, mode="uniform")),
    "sparse": ("iOS17", lambda: pruned_then(None)),
    "int4-blocks": ("iOS18", lambda: quantized(dtype="int4", granularity="per_block", block_size=16)),
    "uint4-blocks": ("iOS18", lambda: quantized(mode="linear", dtype="uint4", granularity="per_block", block_size=32)),
    "int8-iOS18": ("iOS18", lambda: quantized(mode="linear")),
    "palette-3-groups": ("iOS18", lambda: palettized(nbits=3, granularity="per_grouped_channel", group_size=8)),
    "palette-scaled": (
        "iOS18",
        lambda: palettized(nbits=4, granularity="per_grouped_channel", group_size=16, enable_per_channel_scale=True),
    ),
    "palette-vectors": ("iOS18", lambda: palettized(nbits=4, cluster_dim=4, granularity="per_tensor")),
    "sparse-iOS18": ("iOS18", lambda: pruned_then(None)),
    "sparse-int8": ("iOS18", lambda: pruned_then(jointly("quantized"))),
    "sparse-palette": ("iOS18", lambda: pruned_then(jointly("palettized"))),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_decompressed_to_the_bit_as_coremltools_does(form: str, tmp_path: Path):
    release, compress = FORMS[form]
    path = tmp_path / "p.mlpackage"
    expected = theirs(written(path, release, compress()))

    found = ours(path)

    assert expected
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def test_the_forms_use_every_operator_that_is_known(tmp_path: Path):
    assert {
        "constexpr_affine_dequantize",
        "constexpr_blockwise_shift_scale",
        "constexpr_cast",
        "constexpr_lut_to_dense",
        "constexpr_lut_to_sparse",
        "constexpr_sparse_blockwise_shift_scale",
        "constexpr_sparse_to_dense",
    } == constexpr.KINDS


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_palette_of_vectors_lies_along_its_axis(axis: int):
    from coremltools.optimize._utils import lut_to_dense

    indices = RNG.integers(0, 4, (3, 4, 2)).astype(np.uint8)
    lut = RNG.normal(size=(1, 2, 1, 4, 2)).astype(np.float16)

    (found,) = constexpr.decompress(
        "constexpr_lut_to_dense", "x", {"indices": indices, "lut": lut, "vector_axis": np.int32(axis)}
    )

    np.testing.assert_array_equal(found, lut_to_dense(indices, lut, axis))


def test_a_cast_constant_keeps_its_values():
    half = RNG.normal(size=7).astype(np.float16)
    (found,) = constexpr.decompress("constexpr_cast", "x", {"source_val": half, "output_dtype": "fp32"})
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, half)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packed_numbers_are_unpacked_lowest_bits_first(bits: int):
    numbers = RNG.integers(0, 1 << bits, 13)
    stream = "".join(f"{number:0{bits}b}"[::-1] for number in numbers).ljust(-(-13 * bits // 8) * 8, "0")
    packed = np.array([int(stream[at : at + 8][::-1], 2) for at in range(0, len(stream), 8)], np.uint8)

    np.testing.assert_array_equal(unpack_bits(packed, bits, 13), numbers)


def test_pieces_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="The compressed weight w is damaged"):
        constexpr.decompress(
            "constexpr_sparse_to_dense", "w", {"nonzero_data": np.ones(3), "mask": np.array([1, 1, 0, 0])}
        )
    with pytest.raises(ConfigError, match="The compressed weight w lacks its 'scale'"):
        constexpr.decompress("constexpr_blockwise_shift_scale", "w", {"data": np.ones((2, 2))})
    with pytest.raises(UnsupportedModelError, match="does not know"):
        constexpr.decompress("constexpr_wavelet", "w", {})
