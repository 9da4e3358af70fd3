"""What TFLite tensors hold, against LiteRT with all tensors kept and against ai-edge-quantizer's own calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.convert.tfl.graph import Graph
from toolkit.convert.tfl.write import Entry, to_bytes
from toolkit.dataset import Dataset
from toolkit.errors import InputRejected, StageFailed

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`")

from toolkit.quantization import observe_tflite, tflite_file  # noqa: E402  after what may skip the module
from toolkit.quantization.observe_tflite import VALUES, Taps, carriers, complete, fetch, some_values  # noqa: E402

RELU, RELU6, SAME, VALID = 1, 3, 0, 1


def network(batch: int = 1, size: int = 8, name: str = "main", input: str = "image") -> Entry:
    """Convolutions with and without an activation, what shares a scale with its input, and a fixed scale at the end."""
    draw = np.random.default_rng(3)

    def weights(*shape: int) -> Any:
        return graph.constant((draw.standard_normal(shape) * 0.5).astype(np.float32))

    graph = Graph(name)
    conv = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    x = graph.input(input, (batch, size, size, 3), np.float32)
    first = graph.add("CONV_2D", [x, weights(8, 3, 3, 3), weights(8)], (batch, size, size, 8), padding=SAME, fusedActivationFunction=RELU6, **conv)
    padded = graph.pad(first, [[0, 0], [1, 1], [1, 1], [0, 0]])
    depth = graph.add(
        "DEPTHWISE_CONV_2D", [padded, weights(1, 3, 3, 8), weights(8)], (batch, size, size, 8), padding=VALID, depthMultiplier=1, **conv
    )
    pool = {"filterWidth": 2, "filterHeight": 2, "strideW": 2, "strideH": 2, "padding": VALID}
    pooled = graph.add("MAX_POOL_2D", [depth], (batch, size // 2, size // 2, 8), **pool)
    summed = graph.add("ADD", [pooled, graph.add("LOGISTIC", [pooled], pooled.shape)], pooled.shape)
    flat = graph.reshape(summed, (-1, summed.size // batch))
    logits = graph.add("FULLY_CONNECTED", [flat, weights(5, summed.size // batch), weights(5)], (batch, 5))
    out = graph.add("SOFTMAX", [logits], logits.shape, beta=1.0)
    graph.outputs = [out]
    return Entry(name, graph, {input: x}, {"probabilities": out})


def written(path: Path, *entries: Entry) -> Path:
    path.write_bytes(to_bytes(entries))
    return path


def images(n: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, size, size, 3)).astype(np.float32) * 3


def everything(model: Path, images: np.ndarray) -> list[dict[str, np.ndarray]]:
    """All tensors of each sample, as LiteRT keeps them."""
    session = interpreter.Interpreter(str(model), num_threads=1, experimental_preserve_all_tensors=True)
    session.allocate_tensors()
    found = []
    for row in range(len(images)):
        session.set_tensor(session.get_input_details()[0]["index"], images[row : row + 1])
        session.invoke()
        details = [one for one in session.get_tensor_details() if one["dtype"] == np.float32 and one["name"]]
        found.append({one["name"]: session.get_tensor(one["index"]).copy() for one in details})
    return found


def changed(model: Path, change: Callable[[Any], None]) -> Path:
    content, data = tflite_file.read_mapped(model)
    change(content)
    model.write_bytes(tflite_file.to_bytes(content, data))
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "model.tflite", network())


def test_smallest_and_largest_values_are_exact(model: Path) -> None:
    data = images(5)
    seen = Taps(model, None, False, ()).run({"image": data})
    kept = everything(model, data)
    assert len(seen) == 5
    for name, one in seen.items():
        np.testing.assert_array_equal(one.low, [sample[name].min() for sample in kept])
        np.testing.assert_array_equal(one.high, [sample[name].max() for sample in kept])
        assert one.low.dtype == one.high.dtype == np.float32
        assert one.values is None
        assert one.channel_mean is None


def test_ranges_of_what_a_relu_gives_begin_at_zero(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (1, 4), np.float32)
    fused = graph.add("ADD", [x, graph.constant(np.float32([5]))], x.shape, fusedActivationFunction=RELU)
    graph.outputs = [graph.add("RELU6", [fused], x.shape)]
    model = written(tmp_path / "model.tflite", Entry("main", graph, {"x": x}, {"y": graph.outputs[0]}))
    seen = Taps(model, None, False, ("RELU6",)).run({"x": np.float32([[0.5, 0, 0.25, -1]])})
    assert [(float(one.low[0]), float(one.high[0])) for one in seen.values()] == [(-1, 0.5), (0, 5.5), (4, 5.5)]  # channels are exact


def test_only_tensors_with_a_scale_of_their_own_are_observed(model: Path) -> None:
    wanted = ("image", "CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "FULLY_CONNECTED")
    assert Taps(model, None, False, ()).tensors == carriers(model) == wanted


def test_the_delegate_keeps_the_whole_graph(model: Path) -> None:
    def delegated(session: Any) -> int:
        return sum(one["op_name"] == "DELEGATE" for one in session._get_ops_details())

    plain = interpreter.Interpreter(str(model), num_threads=1)
    plain.allocate_tensors()
    for channels in ((), ("ADD",)):
        assert delegated(Taps(model, None, True, channels)._runner._interpreter) == delegated(plain) == 1


def test_the_int8_file_is_the_one_of_the_library_calibrator(model: Path) -> None:
    pytest.importorskip("ai_edge_quantizer")
    from ai_edge_quantizer import calibrator, quantizer, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    data = images(6)

    def library() -> Any:
        made = quantizer.Quantizer(str(model))
        made.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=8)
        return made

    mode = calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED
    theirs = calibrator.Calibrator(str(model), num_threads=1, mode=mode, qsv_update_func=qsv_utils.min_max_update)
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(library().get_quantization_recipe())
    theirs.calibrate({"main": [{"image": data[row : row + 1]} for row in range(6)]}, manager)
    wanted = library().quantize(theirs.get_model_qsvs(), enable_progress_report=False).quantized_model

    ranges = {name: (float(one.low.min()), float(one.high.max())) for name, one in Taps(model, None, False, ()).run({"image": data}).items()}
    ours = {name: {"min": np.array([low]), "max": np.array([high])} for name, (low, high) in complete(model, ranges).items()}
    assert bytes(library().quantize(ours, enable_progress_report=False).quantized_model) == bytes(wanted)


def test_values_of_small_tensors_are_all_taken(model: Path) -> None:
    data = images(3)
    seen = Taps(model, None, True, ()).run({"image": data})
    kept = everything(model, data)
    for name, one in seen.items():
        np.testing.assert_array_equal(one.values, np.concatenate([sample[name].ravel() for sample in kept]))


def test_values_of_large_tensors_are_a_part_that_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    model = written(tmp_path / "model.tflite", network(size=40))
    data = images(4, size=40)
    whole = Taps(model, None, True, ()).run({"image": data})
    parts = [Taps(model, None, True, ()).run({"image": piece}) for piece in (data[:1], data[1:])]
    kept = everything(model, data)
    assert whole["CONV_2D"].values.size == 4 * VALUES
    assert np.isin(whole["CONV_2D"].values[:VALUES], kept[0]["CONV_2D"]).all()
    for name, one in whole.items():
        np.testing.assert_array_equal(one.values, np.concatenate([part[name].values for part in parts]))


@pytest.mark.parametrize("size", [2 * VALUES + 1, 3 * VALUES - 5, 100_003])
def test_every_number_has_its_turn(size: int) -> None:
    numbers = np.arange(size, dtype=np.float32)
    counts = np.zeros(size, int)
    for place in range(4 * size // VALUES * 64):
        taken = some_values(numbers, place).ravel()
        assert taken.size == VALUES
        counts[taken.astype(int)] += 1
    assert counts.min() > 0
    assert counts.max() <= 3 * counts.mean()


def test_channels(model: Path) -> None:
    data = images(4)
    seen = Taps(model, ["CONV_2D"], False, ["ADD", "FULLY_CONNECTED"]).run({"image": data})
    kept = everything(model, data)
    assert set(seen) == {"CONV_2D", "ADD", "FULLY_CONNECTED"}
    assert seen["CONV_2D"].channel_low is None
    for name in ("ADD", "FULLY_CONNECTED"):
        values = np.stack([sample[name] for sample in kept])
        table = values.reshape(-1, values.shape[-1])
        np.testing.assert_array_equal(seen[name].channel_low, table.min(axis=0))
        np.testing.assert_array_equal(seen[name].channel_high, table.max(axis=0))
        np.testing.assert_allclose(seen[name].channel_mean, table.mean(axis=0), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(seen[name].low, values.reshape(4, -1).min(axis=1))
        np.testing.assert_array_equal(seen[name].high, values.reshape(4, -1).max(axis=1))


def test_tensors_of_unknown_rank_are_reduced_outside_of_the_graph(model: Path) -> None:
    def forget(content: Any) -> None:
        for tensor in content.subgraphs[0].tensors:
            if tflite_file.text(tensor.name) in ("CONV_2D", "ADD"):
                tensor.shape, tensor.hasRank = None, False

    changed(model, forget)
    data = images(3)
    taps = Taps(model, None, True, ["ADD"])
    assert isinstance(taps._ends, observe_tflite._InNumpy)
    kept = everything(model, data)
    seen = taps.run({"image": data})
    assert len(seen) == 5
    for name, one in seen.items():
        np.testing.assert_allclose(one.low, [sample[name].min() for sample in kept], rtol=1e-5)
        np.testing.assert_allclose(one.high, [sample[name].max() for sample in kept], rtol=1e-5)
        np.testing.assert_allclose(one.values, np.concatenate([sample[name].ravel() for sample in kept]), rtol=1e-5, atol=1e-5)
    table = np.concatenate([sample["ADD"].reshape(-1, 8) for sample in kept])
    np.testing.assert_allclose(seen["ADD"].channel_high, table.max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(seen["ADD"].channel_low, table.min(axis=0), rtol=1e-5)
    np.testing.assert_allclose(seen["ADD"].channel_mean, table.mean(axis=0), rtol=1e-5, atol=1e-5)


def test_fetch(model: Path) -> None:
    data = images(4)
    found = fetch(model, Dataset({"image": data}), ["image", "MAX_POOL_2D", "FULLY_CONNECTED"], rows=3)
    kept = everything(model, data[:3])
    assert found["image"].shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(found["image"], data[:3])
    np.testing.assert_array_equal(found["MAX_POOL_2D"], np.concatenate([sample["MAX_POOL_2D"] for sample in kept]))
    np.testing.assert_array_equal(found["FULLY_CONNECTED"], np.concatenate([sample["FULLY_CONNECTED"] for sample in kept]))


def test_tensors_of_one_name_are_observed_together(model: Path) -> None:
    data = images(3)
    kept = everything(model, data)

    def rename(content: Any) -> None:
        (tensor,) = [one for one in content.subgraphs[0].tensors if tflite_file.text(one.name) == "ADD"]
        tensor.name = b"CONV_2D"

    changed(model, rename)
    taps = Taps(model, None, True, ())
    seen = taps.run({"image": data})["CONV_2D"]
    assert taps.tensors == ("image", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    np.testing.assert_array_equal(seen.low, [min(sample["CONV_2D"].min(), sample["ADD"].min()) for sample in kept])
    np.testing.assert_array_equal(seen.high, [max(sample["CONV_2D"].max(), sample["ADD"].max()) for sample in kept])
    assert seen.values.size == sum(sample["CONV_2D"].size + sample["ADD"].size for sample in kept)
    with pytest.raises(InputRejected, match="2 tensors share the name 'CONV_2D'"):
        Taps(model, None, False, ["CONV_2D"])
    with pytest.raises(InputRejected, match="share the name"):
        fetch(model, Dataset({"image": data}), ["CONV_2D"], rows=1)


def test_the_signature_that_takes_the_columns_runs(tmp_path: Path) -> None:
    other = network(size=12, name="other", input="picture")
    model = written(tmp_path / "model.tflite", network(), other)
    alone = written(tmp_path / "alone.tflite", other)
    data = images(3, size=12)
    found = Taps(model, None, False, (), inputs=["picture"])
    wanted = Taps(alone, None, False, ()).run({"picture": data})
    assert len(found.tensors) == len(wanted)
    for one, expected in zip(found.run({"picture": data}).values(), wanted.values(), strict=True):
        np.testing.assert_array_equal([one.low, one.high], [expected.low, expected.high])
    with pytest.raises(InputRejected, match="samples have the columns sound, the model takes image; or picture"):
        Taps(model, None, False, (), inputs=["sound"])


def test_a_signature_that_takes_all_columns_comes_before_one_that_takes_some(tmp_path: Path) -> None:
    graph = Graph("both")
    x, y = graph.input("image", (1, 4), np.float32), graph.input("depth", (1, 4), np.float32)
    graph.outputs = [graph.add("ADD", [x, y], x.shape)]
    both = Entry("both", graph, {"image": x, "depth": y}, {"sum": graph.outputs[0]})
    content = tflite_file.read(written(tmp_path / "model.tflite", network(), both))
    assert [tflite_file.entry_for(content, columns).graph for columns in (["depth", "image"], ["image"], ["image", "other"], [])] == [1, 0, 0, 0]


@pytest.mark.parametrize("first", [0, 1])
def test_ranges_of_a_subgraph_for_another_batch_size_are_those_of_the_observed_one(tmp_path: Path, first: int) -> None:
    model = written(tmp_path / "model.tflite", network(), network(batch=4, name="batch_4", input="images"))
    observed = carriers(model, inputs=[("image", "images")[first]])
    full = complete(model, {name: (-1.0, number + 1.0) for number, name in enumerate(observed)})
    graphs = tflite_file.read(model).subgraphs
    names = [[tflite_file.text(one.name) for one in graph.tensors if one.type == 0 and not one.buffer] for graph in graphs]
    assert len({*names[0], *names[1]}) == 2 * len(names[0]) == 20
    x, conv, pad, depth, pool, logistic, added, flat, logits, out = (full[name] for name in names[first])
    assert [x, conv, depth, added, logits] == [(-1.0, number + 1.0) for number in range(5)]
    assert (pad, pool, flat, logistic, out) == (conv, depth, added, (0.0, 1.0), (0.0, 1.0))
    assert [full[name] for name in names[1 - first]] == [full[name] for name in names[first]]


def test_a_file_with_several_batch_sizes_gets_the_same_scales_in_all(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_quantizer")
    from toolkit.quantization.litert import QUANTIZER

    model, out = written(tmp_path / "model.tflite", network(), network(batch=4, name="batch_4")), tmp_path / "int8.tflite"
    QUANTIZER.quantize(model, out, scheme="static_wi8_ai8", calibration=Dataset({"image": images(8)}), options={})
    first, second = tflite_file.read(out).subgraphs
    scales = [
        [float(one.quantization.scale[0]) for one in graph.tensors if one.type == 9 and not one.buffer and one.quantization]
        for graph in (first, second)
    ]
    assert scales[0] == scales[1]
    assert len(scales[0]) > 5


@pytest.mark.parametrize("batch", [-1, 4])
def test_models_of_another_batch_size_run_sample_by_sample(tmp_path: Path, model: Path, batch: int) -> None:
    entry = network(batch=4)

    def free(content: Any) -> None:
        for tensor in content.subgraphs[0].tensors:
            if len(tensor.shape) and tensor.shape[0] == 4 and not tensor.buffer and batch < 0:
                tensor.shapeSignature = np.array([-1, *tensor.shape[1:]], np.int32)

    other = changed(written(tmp_path / "other.tflite", entry), free)
    data = images(3)
    wanted = Taps(model, None, False, ()).run({"image": data})
    for name, one in Taps(other, None, False, ()).run({"image": data}).items():
        np.testing.assert_array_equal([one.low, one.high], [wanted[name].low, wanted[name].high])


def test_a_sample_leaves_nothing_behind_for_the_next(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (1, 4, 3), np.float32)
    draw = np.random.default_rng(0)
    weights = [graph.constant(draw.standard_normal(shape).astype(np.float32)) for shape in ((5, 3), (5, 5), (5,))]
    state = graph.constant(np.zeros((1, 5), np.float32), name="state")
    graph.outputs = [graph.add("UNIDIRECTIONAL_SEQUENCE_RNN", [x, *weights, state], (1, 4, 5), fusedActivationFunction=RELU, timeMajor=False)]

    def make_variable(content: Any) -> None:
        (tensor,) = [one for one in content.subgraphs[0].tensors if tflite_file.text(one.name) == "state"]
        tensor.isVariable, tensor.buffer = True, 0

    model = changed(written(tmp_path / "model.tflite", Entry("main", graph, {"x": x}, {"y": graph.outputs[0]})), make_variable)
    sample = draw.standard_normal((1, 4, 3)).astype(np.float32)
    seen = Taps(model, None, False, ()).run({"x": np.concatenate([sample, sample, sample])})
    assert len(set(seen["UNIDIRECTIONAL_SEQUENCE_RNN"].high)) == 1


def test_nan_is_refused_even_where_reductions_drop_it(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (1, 64), np.float32)
    graph.outputs = [graph.add("SQRT", [x], x.shape)]
    model = written(tmp_path / "model.tflite", Entry("main", graph, {"x": x}, {"y": graph.outputs[0]}))
    data = np.ones((1, 64), np.float32)
    data[0, 3] = -1
    with pytest.raises(StageFailed, match="computes NaN in 'SQRT'"):
        Taps(model, None, False, ()).run({"x": data})


def test_what_does_not_fit_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputRejected, match="no computed float32 tensor 'nowhere'"):
        Taps(model, ["nowhere"], False, ())
    taps = Taps(model, None, False, ())
    with pytest.raises(InputRejected, match="no column 'image'"):
        taps.run({"sound": images(1)})
    with pytest.raises(InputRejected, match=r"samples of shape \[9, 9, 3\], the model takes \[8, 8, 3\]"):
        taps.run({"image": images(1, size=9)})
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(model.read_bytes()[:300])
    with pytest.raises(InputRejected, match="not a readable TFLite model"):
        Taps(damaged, None, False, ())
