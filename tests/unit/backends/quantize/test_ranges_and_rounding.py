"""Ranges of activations and biases of the LiteRT backend's static int8, below the level of a conversion."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.calibration import outputs
from edgekit.backends._litert.layers import LinearLayer, linear_layers
from edgekit.backends._litert.stepwise import Stepwise
from edgekit.backends._quantize.judging import held_out
from edgekit.backends._quantize.ranges import Histogram
from edgekit.backends._quantize.rounding import rounded


def histogram(*arrays: np.ndarray) -> Histogram:
    made = Histogram()
    for array in arrays:
        made.add(array)
    return made


def error(values: np.ndarray, low: float, high: float) -> float:
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    steps = np.clip(np.round(values / scale) + zero, 0, 255)
    return float(np.mean(((steps - zero) * scale - values) ** 2))


class TestRanges:
    def test_rare_outliers_are_clipped_where_that_loses_less(self):
        values = np.append(np.random.default_rng(0).standard_normal(1_000_000), 12.0)
        made = histogram(*np.array_split(values, 20))
        low, high = made.range("mse")
        assert made.range("minmax") == (pytest.approx(values.min()), 12.0)
        assert high < 8.0
        assert error(values, low, high) < 0.75 * error(values, values.min(), 12.0)

    def test_values_that_fill_their_range_keep_it(self):
        values = np.linspace(-1.0, 1.0, 50_001)
        low, high = histogram(values).range("mse")
        assert (low, high) == (pytest.approx(-1.0, rel=0.02), pytest.approx(1.0, rel=0.02))

    def test_the_search_is_near_the_best_of_all_ranges(self):
        values = np.random.default_rng(1).laplace(size=30_000)
        found = error(values, *histogram(values).range("mse"))
        every = [
            error(values, values.min() * a, values.max() * b)
            for a in np.linspace(0.1, 1, 30)
            for b in np.linspace(0.1, 1, 30)
        ]
        assert found <= 1.05 * min(every)

    def test_what_is_never_negative_has_a_range_from_zero(self):
        values = np.maximum(np.random.default_rng(2).standard_normal(10_000), 0)
        for how in ("mse", "entropy", "percentile", "minmax"):
            low, high = histogram(values).range(how)
            assert low == 0.0
            assert 0 < high <= values.max()

    def test_entropy_clips_rare_outliers_and_keeps_what_fills_its_range(self):
        normal = np.random.default_rng(0).standard_normal(200_000)
        assert histogram(np.append(normal, [-60.0, 60.0])).range("entropy")[1] < 12.0
        even = histogram(np.linspace(-1.0, 1.0, 50_001)).range("entropy")
        assert even == (pytest.approx(-1.0, rel=0.02), pytest.approx(1.0, rel=0.02))

    def test_percentiles_leave_out_the_outermost_values_only(self):
        values = np.append(np.random.default_rng(3).random(60_000), 1000.0)
        assert histogram(values).range("percentile")[1] <= 1.0

    def test_a_range_that_grows_late_gives_what_all_values_at_once_give(self):
        parts = [np.random.default_rng(seed).standard_normal(5000) * 4.0**seed for seed in range(4)]
        late = histogram(*parts).range("mse")
        at_once = histogram(np.concatenate(parts)).range("mse")
        assert late == pytest.approx(at_once, rel=0.05)

    def test_constant_values_have_a_range_that_holds_them(self):
        assert histogram(np.full(10, 3.0)).range("mse") == (0.0, 3.0)
        assert histogram(np.zeros(10)).range("mse") == (0.0, 0.0)
        assert histogram(np.zeros(0)).range("percentile") == (0.0, 0.0)

    def test_the_infinities_of_a_mask_do_not_count(self):
        low, high = histogram(np.array([-np.inf, -1.0, 2.0, np.nan])).range("minmax")
        assert (low, high) == (-1.0, 2.0)

    def test_a_large_tensor_is_sampled_and_its_extremes_are_kept(self):
        values = np.random.default_rng(4).random(400_000)
        values[12_345] = 7.0
        made = histogram(values)
        assert made.high == 7.0
        assert made.range("mse")[1] < 7.0


class TestRounding:
    def test_results_move_less_than_with_the_nearest_weights(self):
        generator = np.random.default_rng(0)
        data = generator.standard_normal((500, 5)) @ generator.standard_normal((5, 40))
        data += 0.1 * generator.standard_normal(data.shape)
        weights = generator.standard_normal((12, 40))
        scale = np.abs(weights).max(axis=1) / 7
        found = rounded(weights, scale, data.T @ data / len(data), 7)
        nearest = np.clip(np.round(weights / scale[:, None]), -7, 7)
        assert set(np.unique(found)) <= set(range(-7, 8))

        def moved(steps: np.ndarray) -> float:
            return float(np.mean((data @ (steps * scale[:, None] - weights).T) ** 2))

        assert moved(found) < 0.5 * moved(nearest)

    def test_data_that_do_not_go_together_leave_the_nearest(self):
        weights = np.random.default_rng(1).uniform(-6, 6, (3, 10))
        np.testing.assert_array_equal(rounded(weights, np.ones(3), np.eye(10), 7), np.round(weights))

    def test_data_that_are_always_zero_are_no_obstacle(self):
        weights = np.random.default_rng(1).uniform(-6, 6, (3, 10))
        np.testing.assert_array_equal(rounded(weights, np.ones(3), np.zeros((10, 10)), 7), np.round(weights))


class TestHeldOut:
    def test_every_fourth_example_judges(self):
        fitting, judging = held_out([{"x": np.array(n)} for n in range(8)])
        assert [int(one["x"]) for one in judging] == [3, 7]
        assert [int(one["x"]) for one in fitting] == [0, 1, 2, 4, 5, 6]

    def test_one_example_does_both(self):
        only = {"x": np.array(0)}
        assert held_out([only]) == ([only], [only])


def two_layers() -> tuple[object, object]:
    """x → FULLY_CONNECTED with ReLU → FULLY_CONNECTED, float, with a signature."""
    tflite = flatbuffer.schema()
    model = tflite.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [], []
    model.buffers, model.metadata = [tflite.BufferT()], []
    graph = flatbuffer.Graph.new(model, "main")
    generator = np.random.default_rng(0)
    x = graph.tensor((1, 4), name="x")
    last = x
    for place, (width, activation) in enumerate(((5, 1), (3, 0))):
        weights = generator.standard_normal((width, graph.shape(last)[1])).astype(np.float32)
        options = tflite.FullyConnectedOptionsT()
        options.fusedActivationFunction = activation
        bias = graph.constant(generator.standard_normal(width).astype(np.float32))
        made = graph.tensor((1, width), name=f"y{place}")
        graph.op("FULLY_CONNECTED", [last, graph.constant(weights), bias], [made], options)
        last = made
    graph.close([x], [last])
    signature = tflite.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "main", 0
    signature.inputs, signature.outputs = [], []
    for side, name, tensor in ((signature.inputs, "x", x), (signature.outputs, "y", last)):
        mapped = tflite.TensorMapT()
        mapped.name, mapped.tensorIndex = name, tensor
        side.append(mapped)
    model.signatureDefs = [signature]
    return model, signature


class TestLayers:
    def test_a_layers_mean_result_is_without_bias_and_activation(self):
        model, _ = two_layers()
        layer = next(layer for _, layer in linear_layers(model, model.subgraphs[0]))
        value = np.array([[1.0, -2.0, 0.5, 3.0]])
        np.testing.assert_allclose(
            layer.mean_result(value, layer.weights()), (layer.weights() @ value[0]), rtol=1e-5, atol=1e-6
        )

    def test_a_new_bias_changes_the_files_outputs_by_as_much(self):
        model, _ = two_layers()
        *_, (_, layer) = linear_layers(model, model.subgraphs[0])
        samples = [{"x": np.ones((1, 4), np.float32)}]
        before = outputs(flatbuffer.write(model), "main", samples)["y"]
        layer.set_bias(layer.bias() + np.array([1.0, 2.0, 3.0]))
        after = outputs(flatbuffer.write(model), "main", samples)["y"]
        np.testing.assert_allclose((after - before).ravel(), [1.0, 2.0, 3.0], rtol=1e-5)

    def test_running_part_by_part_gives_what_a_whole_run_gives(self):
        model, signature = two_layers()
        samples = [{"x": np.random.default_rng(n).standard_normal((1, 4)).astype(np.float32)} for n in range(3)]
        steps = Stepwise(model, signature, samples)
        for end in (1, 2):
            steps.run_to(end)
        whole = outputs(flatbuffer.write(model), "main", samples)["y"]
        np.testing.assert_allclose(steps.mean(model.subgraphs[0].outputs[0]), whole.mean(axis=0), rtol=1e-5)

    def test_a_channel_next_to_nothing_gets_steps_in_which_its_bias_fits(self):
        layer = next(layer for _, layer in linear_layers(*self.tiny_channel()))
        assert isinstance(layer, LinearLayer)
        weights, bias = np.array([[1.0, -1.0], [0.0, 1e-13]]), np.array([0.5, -1.25])
        layer.coarsen(weights, bias)
        layer.set_bias(bias)
        np.testing.assert_allclose(layer.bias(), bias, rtol=1e-6)
        np.testing.assert_allclose(layer.weights()[0], weights[0], rtol=0.01)

    def test_four_bit_weights_are_unpacked_with_their_signs(self):
        model, subgraph = self.tiny_channel()
        tflite = flatbuffer.schema()
        tensor = subgraph.tensors[1]
        tensor.type = tflite.TensorType.INT4
        tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5, 2.0], [0, 0]
        model.buffers[tensor.buffer].data = np.array([0x7F, 0x18], np.uint8)  # -1, 7 and -8, 1
        layer = next(layer for _, layer in linear_layers(model, subgraph))
        np.testing.assert_array_equal(layer.weights(), [[-0.5, 3.5], [-16.0, 2.0]])

    def test_four_bit_weights_are_read_as_they_were_stored(self):
        model, subgraph = self.tiny_channel()
        subgraph.tensors[1].type = flatbuffer.schema().TensorType.INT4
        layer = next(layer for _, layer in linear_layers(model, subgraph))
        steps = np.array([[-8.0, 7.0], [-1.0, 3.0]])
        layer.store(steps)
        np.testing.assert_allclose(layer.weights(), steps * layer.steps()[:, None])

    @staticmethod
    def tiny_channel() -> tuple[object, object]:
        tflite = flatbuffer.schema()
        model = tflite.ModelT()
        model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [], [], [tflite.BufferT()]
        graph = flatbuffer.Graph.new(model, "main")
        x = graph.tensor((1, 2), "int8")
        weights = graph.constant(np.array([[127, -127], [0, 127]], np.int8))
        y = graph.tensor((1, 2), "int8")
        for tensor, scale in ((x, [0.02]), (weights, [1 / 127, 1e-15]), (y, [0.02])):
            quantization = tflite.QuantizationParametersT()
            quantization.scale, quantization.zeroPoint = scale, [0] * len(scale)
            quantization.quantizedDimension = 0
            graph.subgraph.tensors[tensor].quantization = quantization
        graph.op("FULLY_CONNECTED", [x, weights, None], [y], tflite.FullyConnectedOptionsT())
        graph.close([x], [y])
        return model, graph.subgraph
