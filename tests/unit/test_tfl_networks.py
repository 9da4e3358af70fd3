"""Layers of networks in TFLite against ONNX Runtime: convolutions, pooling, normalization, recurrent layers, control flow and fused operators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tfl_models import BOOL, FLOAT, INT64, Arrays, agree, convert, drawer, fused, model_of, node
from toolkit.errors import StageFailed

onnx = pytest.importorskip("onnx")

from onnx import helper, numpy_helper  # noqa: E402  after what may skip the module

numbers = drawer(7)

TRANSPOSED: list[dict[str, Any]] = [
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    {"strides": [3, 2], "pads": [0, 1, 2, 0], "dilations": [2, 1]},
    {"strides": [2, 3], "output_shape": [10, 17]},
    {"strides": [1, 2], "pads": [2, 2, 2, 2]},
]


@pytest.mark.parametrize("size", [4, 5, 6])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("attributes", TRANSPOSED)
def test_transposed_convolutions_of_many_sizes(tmp_path: Path, attributes: dict[str, Any], group: int, size: int) -> None:
    given, constants = {"x": numbers(2, 4, size, size + 1)}, {"w": numbers(4, 8 // group, 3, 3), "b": numbers(8)}
    agree(tmp_path, [node("ConvTranspose", ["x", "w", "b"], ["y"], group=group, **attributes)], given, constants=constants)


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_a_filter_may_depend_on_the_data(tmp_path: Path, kind: str, spatial: int) -> None:
    given = {"x": numbers(2, 4, *[6] * spatial), "w": numbers(4, 2, *[3] * spatial), "b": numbers(4)}
    attributes = {"strides": [2] * spatial, "pads": [1] * 2 * spatial, "group": 2}
    agree(tmp_path, [node(kind, ["x", "w", "b"], ["y"], **attributes)], given)


def test_a_depthwise_convolution_with_several_outputs_for_each_channel(tmp_path: Path) -> None:
    constants = {"w": numbers(9, 1, 3, 2), "b": numbers(9)}
    found = agree(tmp_path, [node("Conv", ["x", "w", "b"], ["y"], group=3, dilations=[2, 1])], {"x": numbers(1, 3, 7, 6)}, constants=constants)
    assert found["DEPTHWISE_CONV_2D"] == 1


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_windows_that_leave_elements_out_or_hang_over(tmp_path: Path, kind: str, spatial: int) -> None:
    attributes: dict[str, Any] = {"kernel_shape": [3] * spatial, "strides": [2] * spatial, "pads": [1] * 2 * spatial}
    for number, more in enumerate(({"dilations": [2] * spatial}, {"ceil_mode": 1}, {"ceil_mode": 1, "count_include_pad": 1})):
        if kind != "AveragePool" and "count_include_pad" in more:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        agree(folder, [node(kind, ["x"], ["y"], **attributes, **more)], {"x": numbers(2, 3, *[8] * spatial)}, opset=22)


@pytest.mark.parametrize("order", [0, 1])
def test_the_places_of_the_greatest_elements(tmp_path: Path, order: int) -> None:
    attributes = {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 1], "storage_order": order}
    agree(tmp_path, [node("MaxPool", ["x"], ["y", "places"], **attributes)], {"x": numbers(2, 3, 5, 6)}, ["y", "places"])


def test_unpooling_refuses_what_the_kernel_would_add_up(tmp_path: Path) -> None:
    nodes = [
        node("MaxPool", ["x"], ["p", "i"], kernel_shape=[2, 2]),
        node("MaxUnpool", ["p", "i"], ["y"], kernel_shape=[2, 2]),
    ]
    given = {"x": numbers(1, 2, 4, 4)}
    with pytest.raises(StageFailed, match="overlap"):
        convert(model_of(nodes, given, ["y"], {}, 17), given, {"y": given["x"]}, tmp_path)


@pytest.mark.parametrize("constant", [True, False])
def test_batch_normalization_goes_into_the_convolution_before_it(tmp_path: Path, constant: bool) -> None:
    statistics = {"s": numbers(4), "b": numbers(4), "m": numbers(4), "v": np.abs(numbers(4)) + 0.5}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]), node("Conv", ["n", "u"], ["y"])]
    given, constants = {"x": numbers(2, 3, 5, 6)}, {"w": numbers(4, 3, 3, 3), "u": numbers(2, 4, 1, 1)}
    found = agree(tmp_path, nodes, given if constant else given | statistics, constants=constants | statistics if constant else constants)
    assert bool(found["MUL"]) is not constant


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_layer_normalization_between_convolutions(tmp_path: Path, axis: int) -> None:
    shape = (4, 3, 5)[axis - 1 :] if axis else (2, 4, 3, 5)
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("LayerNormalization", ["c", "s", "b"], ["n", "mean", "spread"], axis=axis),
        node("Conv", ["n", "v"], ["y"]),
    ]
    constants = {"w": numbers(4, 3, 3, 3), "s": numbers(*shape), "b": numbers(*shape), "v": numbers(2, 4, 1, 1)}
    agree(tmp_path, nodes, {"x": numbers(2, 3, 5, 7)}, ["y", "mean", "spread"], constants)


@pytest.mark.parametrize("opset", [18, 21])
def test_groups_of_channels_are_normalized_in_the_layout_of_convolutions(tmp_path: Path, opset: int) -> None:
    size = 2 if opset == 18 else 6
    nodes = [node("Conv", ["x", "w"], ["c"]), node("GroupNormalization", ["c", "s", "b"], ["n"], num_groups=2), node("Conv", ["n", "v"], ["y"])]
    constants = {"w": numbers(6, 3, 3, 3), "s": numbers(size), "b": numbers(size), "v": numbers(2, 6, 1, 1)}
    found = agree(tmp_path, nodes, {"x": numbers(2, 3, 5, 7)}, constants=constants, opset=opset)
    assert found["TRANSPOSE"] == 2  # of input and output


def test_a_vector_of_zeros_has_no_direction(tmp_path: Path) -> None:
    model, given = [node("LpNormalization", ["x"], ["y"], axis=1)], {"x": np.array([[0, 0], [3, 4]], np.float32)}
    agree(tmp_path, model, given)


@pytest.mark.parametrize("steps", [3, 4, 9])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(tmp_path: Path, kind: str, direction: str, steps: int) -> None:
    gates, count = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if direction == "bidirectional" else 1
    given = {"x": numbers(steps, 2, 3), "h": numbers(count, 2, 5), "lengths": np.array([steps, max(1, steps - 2)], np.int32)}
    constants = {"w": numbers(count, gates * 5, 3), "r": numbers(count, gates * 5, 5), "b": numbers(count, 2 * gates * 5)}
    outputs = ["y", "last", "cell"] if kind == "LSTM" else ["y", "last"]
    attributes = {"hidden_size": 5, "direction": direction} | ({"linear_before_reset": 1} if kind == "GRU" and steps > 3 else {})
    layer = node(kind, ["x", "w", "r", "b", "lengths", "h"], outputs, **attributes)
    found = agree(tmp_path, [layer], given, outputs, constants)
    assert found["WHILE"] == (count if steps > 4 else 0)


def test_the_steps_of_a_layer_whose_weights_depend_on_the_data(tmp_path: Path) -> None:
    given = {"x": numbers(9, 1, 3), "w": numbers(1, 16, 3), "r": numbers(1, 16, 4), "p": numbers(1, 12)}
    agree(tmp_path, [node("LSTM", ["x", "w", "r", "", "", "", "", "p"], ["y"], hidden_size=4)], given)


def value(name: str, dtype: int, shape: Sequence[int] | None) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def branch(made: Any) -> Any:
    return helper.make_graph([made], "branch", [], [value(made.output[0], FLOAT, None)])


@pytest.mark.parametrize("answer", [True, False])
def test_a_branch_sees_the_values_around_it(tmp_path: Path, answer: bool) -> None:
    yes, no = branch(node("Conv", ["c", "w"], ["t"], pads=[1] * 4)), branch(node("Add", ["c", "x"], ["e"]))
    nodes = [node("Relu", ["x"], ["c"]), node("If", ["k"], ["y"], then_branch=yes, else_branch=no)]
    given, constants = {"x": numbers(1, 3, 4, 4)}, {"w": numbers(3, 3, 3, 3)}
    assert agree(tmp_path, nodes, given | {"k": np.array(answer)}, constants=constants)["IF"] == 1
    assert agree(tmp_path, nodes, given, constants=constants | {"k": np.array(answer)})["IF"] == 0


def body(nodes: Sequence[Any], outputs: Sequence[str], constants: Arrays | None = None) -> Any:
    inputs = [value("number", INT64, []), value("goes", BOOL, []), value("s", FLOAT, [2, 3])]
    results = [value(name, BOOL if place == 0 else FLOAT, None) for place, name in enumerate(outputs)]
    return helper.make_graph(nodes, "body", inputs, results, [numpy_helper.from_array(one, name) for name, one in (constants or {}).items()])


GROWS = [node("Mul", ["s", "x"], ["m"]), node("Add", ["m", "x"], ["after"])]


@pytest.mark.parametrize("turns", [1, 5])
def test_a_loop_collects_results(tmp_path: Path, turns: int) -> None:
    inner = body([*GROWS, node("Identity", ["goes"], ["on"]), node("Mul", ["after", "after"], ["part"])], ["on", "after", "part"])
    given = {"x": numbers(2, 3), "s0": numbers(2, 3)}
    agree(tmp_path, [node("Loop", ["n", "", "s0"], ["y", "parts"], body=inner)], given, ["y", "parts"], {"n": np.array(turns)})


@pytest.mark.parametrize("turns", [0, 3])
def test_how_often_a_loop_turns_may_depend_on_the_data(tmp_path: Path, turns: int) -> None:
    inner = body([*GROWS, node("Identity", ["goes"], ["on"])], ["on", "after"])
    given = {"x": numbers(2, 3), "s0": numbers(2, 3), "n": np.array(turns)}
    agree(tmp_path, [node("Loop", ["n", "", "s0"], ["y"], body=inner)], given)


def test_a_loop_ends_by_what_it_computes(tmp_path: Path) -> None:
    largest = [node("ReduceMax", ["after"], ["r"], keepdims=0), node("Less", ["r", "limit"], ["on"])]
    inner = body([node("Add", ["s", "x"], ["after"]), *largest], ["on", "after"], {"limit": np.array(4, np.float32)})
    agree(tmp_path, [node("Loop", ["n", "", "s0"], ["y"], body=inner)], {"x": np.abs(numbers(2, 3)) + 0.1, "s0": numbers(2, 3), "n": np.array(99)})


def test_a_loop_that_may_end_early_collects_nothing(tmp_path: Path) -> None:
    largest = [node("ReduceMax", ["after"], ["r"], keepdims=0), node("Less", ["r", "limit"], ["on"]), node("Neg", ["after"], ["part"])]
    inner = body([*GROWS, *largest], ["on", "after", "part"], {"limit": np.array(4, np.float32)})
    given = {"x": numbers(2, 3), "s0": numbers(2, 3)}
    model = model_of([node("Loop", ["n", "", "s0"], ["y", "parts"], body=inner)], given, ["y", "parts"], {"n": np.array(3)}, 17)
    with pytest.raises(StageFailed, match="number of turns that depends on the data"):
        convert(model, given, {"y": given["x"], "parts": given["x"]}, tmp_path)


@pytest.mark.parametrize(
    "attributes", [{}, {"scan_input_axes": [1], "scan_input_directions": [1], "scan_output_axes": [-1], "scan_output_directions": [1]}]
)
def test_a_scan_in_any_direction_along_any_axis(tmp_path: Path, attributes: dict[str, Any]) -> None:
    nodes = [node("Add", ["s", "e"], ["after"]), node("Mul", ["after", "w"], ["part"])]
    inner = helper.make_graph(
        nodes, "body", [value("s", FLOAT, [4]), value("e", FLOAT, [4])], [value("after", FLOAT, [4]), value("part", FLOAT, [4])]
    )
    given = {"s0": numbers(4), "x": numbers(4, 4), "w": numbers(4)}
    agree(tmp_path, [node("Scan", ["s0", "x"], ["y", "parts"], body=inner, num_scan_inputs=1, **attributes)], given, ["y", "parts"])


@pytest.mark.parametrize(("kind", "parameters"), [("LeakyRelu", [0.2]), ("Clip", [-0.1, 0.3]), ("HardSigmoid", [0.3, 0.4])])
def test_fused_convolutions(tmp_path: Path, kind: str, parameters: list[float]) -> None:
    made = fused("FusedConv", ["x", "w", "b"], ["y"], activation=kind, activation_params=parameters, kernel_shape=[3, 3])
    agree(tmp_path, [made], {"x": numbers(1, 3, 6, 6)}, constants={"w": numbers(4, 3, 3, 3), "b": numbers(4)})


@pytest.mark.parametrize("opset", [13, 17])
def test_fused_layers_of_transformers(tmp_path: Path, opset: int) -> None:
    nodes = [
        fused("FusedMatMul", ["x", "w"], ["p"], transB=1, alpha=0.5),
        fused("FastGelu", ["p", "bias"], ["g"]),
        fused("SkipLayerNormalization", ["g", "x", "gamma", "beta", "bias"], ["n", "", "", "sum"]),
        fused("QuickGelu", ["sum"], ["q"]),
        fused("SkipSimplifiedLayerNormalization", ["n", "q", "gamma"], ["m"]),
        fused("BiasGelu", ["m", "bias"], ["y"]),
    ]
    constants = {"w": numbers(8, 8)} | {name: numbers(8) for name in ("bias", "gamma", "beta")}
    agree(tmp_path, nodes, {"x": numbers(2, 5, 8)}, ["y", "n"], constants, opset)


def test_embeddings_are_summed_and_normalized(tmp_path: Path) -> None:
    made = fused("EmbedLayerNormalization", ["i", "s", "words", "places", "kinds", "g", "b", "mask"], ["y", "lengths"])
    given = {"i": np.array([[3, 1, 4], [1, 5, 0]], np.int32), "s": np.array([[0, 0, 1], [0, 1, 1]], np.int32)}
    given["mask"] = np.array([[1, 1, 1], [1, 1, 0]], np.int32)
    constants = {"words": numbers(6, 8), "places": numbers(5, 8), "kinds": numbers(2, 8), "g": numbers(8), "b": numbers(8)}
    agree(tmp_path, [made], given, ["y", "lengths"], constants)


@pytest.mark.parametrize("attributes", [{}, {"unidirectional": 1}, {"scale": 0.3}])
def test_attention(tmp_path: Path, attributes: dict[str, Any]) -> None:
    given = {"x": numbers(2, 5, 8), "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)}
    constants = {"w": numbers(8, 24), "b": numbers(24)}
    agree(tmp_path, [fused("Attention", ["x", "w", "b", "mask"], ["y"], num_heads=2, **attributes)], given, constants=constants)


def test_attention_to_other_values(tmp_path: Path) -> None:
    given = {"q": numbers(2, 4, 8), "k": numbers(2, 5, 8), "v": numbers(2, 5, 8), "added": numbers(2, 2, 4, 5)}
    agree(tmp_path, [fused("MultiHeadAttention", ["q", "k", "v", "b", "", "added"], ["y"], num_heads=2)], given, constants={"b": numbers(24)})


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("shape", [(2, 5, 16), (2, 3, 5, 8)])
def test_rotary_embeddings(tmp_path: Path, shape: tuple[int, ...], interleaved: int) -> None:
    constants = {"c": numbers(9, 4), "s": numbers(9, 4)}
    given = {"x": numbers(*shape), "p": np.array([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]])}
    agree(tmp_path, [fused("RotaryEmbedding", ["x", "p", "c", "s"], ["y"], interleaved=interleaved)], given, constants=constants)


def test_a_batch_norm_behind_a_flattened_product_is_folded(tmp_path: Path) -> None:
    """As LeViT has it: tokens are flattened for the norm and unflattened again."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Reshape", ["a", "flat"], ["b"]),
        node("Mul", ["b", "factor"], ["c"]),
        node("Add", ["c", "shift"], ["d"]),
        node("Reshape", ["d", "back"], ["y"]),
    ]
    constants = {"w": numbers(8, 6), "factor": numbers(6), "shift": numbers(6), "flat": np.array([20, 6]), "back": np.array([1, 20, 6])}
    found = agree(tmp_path, nodes, {"x": numbers(1, 20, 8)}, constants=constants)
    assert found["FULLY_CONNECTED"] == 1
    assert found["MUL"] == found["ADD"] == 0


def test_scores_of_attention_are_scaled_before_they_are_many(tmp_path: Path) -> None:
    nodes = [node("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]), node("MatMul", ["q", "t"], ["s"]), node("Mul", ["s", "half"], ["y"])]
    given, constants = {"q": numbers(1, 2, 30, 4), "k": numbers(1, 2, 30, 4)}, {"half": np.array(0.5, np.float32)}
    agree(tmp_path, nodes, given, constants=constants)
    made = convert(model_of(nodes, given, ["y"], constants, 17), given, {"y": numbers(1, 2, 30, 30)}, tmp_path)
    shapes = {one["index"]: tuple(one["shape"]) for one in made.get_tensor_details()}
    assert [shapes[one["outputs"][0]] for one in made._get_ops_details() if one["op_name"] == "MUL"] == [(1, 2, 30, 4)]


@pytest.mark.parametrize("kind", ["Sub", "Mul", "Add", "Div"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_constant_of_few_channels_is_repeated_along_a_row(tmp_path: Path, kind: str, swapped: bool) -> None:
    """As the mean that is taken off a picture before the first convolution."""
    given, constants = {"x": np.abs(numbers(1, 3, 20, 24)) + 0.5}, {"c": np.abs(numbers(3, 1, 1)) + 0.5, "w": numbers(4, 3, 3, 3)}
    nodes = [node(kind, ["c", "x"] if swapped else ["x", "c"], ["a"]), node("Conv", ["a", "w"], ["y"], pads=[1, 1, 1, 1])]
    agree(tmp_path, nodes, given, constants=constants)
    made = convert(model_of(nodes, given, ["y"], constants, 17), given, {"y": numbers(1, 4, 20, 24)}, tmp_path)
    shapes = {one["index"]: tuple(one["shape"]) for one in made.get_tensor_details()}
    known = "MUL" if kind == "Div" and not swapped else kind.upper()  # by the inverse
    (inputs,) = ({shapes[index] for index in one["inputs"]} for one in made._get_ops_details() if one["op_name"] == known)
    assert inputs == {(1, 20, 24, 3), (24, 3)}
