"""What ONNX spells out and TFLite has one kernel for: equal to ONNX Runtime, and really one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tfl_models import agree, drawer, node

numbers = drawer(11)
ROOT = np.float32(np.sqrt(2))
X = np.linspace(-6, 6, 2 * 8 * 16, dtype=np.float32).reshape(2, 8, 16)
CONSTANTS = {
    name: np.float32(value)
    for name, value in {
        "one": 1, "half": 0.5, "root": ROOT, "reciprocal": 1 / ROOT, "three": 3, "two": 2, "zero": 0, "six": 6, "sixth": 1 / 6, "cube": 0.044715,
        "wide": np.sqrt(2 / np.pi), "other": 0.7,
    }.items()
}  # fmt: skip
ERF = [node("Div", ["x", "root"], ["s"]), node("Erf", ["s"], ["e"]), node("Add", ["e", "one"], ["g"])]
PRODUCTS = {
    "x first": [node("Mul", ["x", "g"], ["p"]), node("Mul", ["p", "half"], ["y"])],
    "half first": [node("Mul", ["half", "g"], ["p"]), node("Mul", ["p", "x"], ["y"])],
    "half of x": [node("Mul", ["x", "half"], ["p"]), node("Mul", ["p", "g"], ["y"])],
    "divided": [node("Div", ["g", "two"], ["p"]), node("Mul", ["x", "p"], ["y"])],
}


@pytest.mark.parametrize("order", PRODUCTS)
def test_gelu_with_an_error_function(tmp_path: Path, order: str) -> None:
    operators = agree(tmp_path, [*ERF, *PRODUCTS[order]], {"x": X}, constants=CONSTANTS)
    assert operators["GELU"] == 1 and operators["MUL"] == operators["DIV"] == 0


def test_gelu_of_a_product_with_a_number(tmp_path: Path) -> None:
    nodes = [node("Mul", ["a", "other"], ["x"]), node("Mul", ["x", "reciprocal"], ["s"]), *ERF[1:], *PRODUCTS["x first"]]
    operators = agree(tmp_path, nodes, {"a": X}, constants=CONSTANTS)
    assert operators["GELU"] == operators["MUL"] == 1


def test_what_is_nearly_gelu_stays_what_it_is(tmp_path: Path) -> None:
    without_half = [*ERF, node("Mul", ["x", "g"], ["y"])]
    other_factor = [*ERF, node("Mul", ["x", "g"], ["p"]), node("Mul", ["p", "other"], ["y"])]
    other_root = [node("Mul", ["x", "half"], ["s"]), *ERF[1:], *PRODUCTS["x first"]]
    for number, nodes in enumerate((without_half, other_factor, other_root)):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert agree(folder, nodes, {"x": X}, constants=CONSTANTS)["MUL"] > 1


CUBES = {
    "power": [node("Pow", ["x", "three"], ["c"]), node("Mul", ["c", "cube"], ["d"]), node("Add", ["x", "d"], ["i"])],
    "products": [
        node("Mul", ["x", "x"], ["sq"]), node("Mul", ["sq", "x"], ["c"]), node("Mul", ["cube", "c"], ["d"]), node("Add", ["d", "x"], ["i"]),
    ],
    "factored": [
        node("Mul", ["x", "x"], ["sq"]), node("Mul", ["sq", "cube"], ["d"]), node("Add", ["d", "one"], ["f"]), node("Mul", ["x", "f"], ["i"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("form", CUBES)
def test_gelu_with_a_tanh(tmp_path: Path, form: str) -> None:
    gate = [node("Mul", ["i", "wide"], ["w"]), node("Tanh", ["w"], ["t"]), node("Add", ["one", "t"], ["g"])]
    operators = agree(tmp_path, [*CUBES[form], *gate, *PRODUCTS["half of x"]], {"x": X}, constants=CONSTANTS)
    assert operators["GELU"] == 1 and operators["TANH"] == operators["MUL"] == 0


CLIPPED = [node("Add", ["x", "three"], ["m"]), node("Clip", ["m", "zero", "six"], ["g"])]
HARD = {
    "clip": [
        *CLIPPED, node("Mul", ["x", "g"], ["p"]), node("Div", ["p", "six"], ["y"]),
    ],
    "sixth": [
        *CLIPPED, node("Mul", ["g", "sixth"], ["p"]), node("Mul", ["p", "x"], ["y"]),
    ],
    "hard sigmoid": [node("HardSigmoid", ["x"], ["g"], alpha=1 / 6, beta=0.5), node("Mul", ["x", "g"], ["y"])],
}  # fmt: skip


@pytest.mark.parametrize("form", HARD)
def test_hard_swish(tmp_path: Path, form: str) -> None:
    operators = agree(tmp_path, HARD[form], {"x": X}, constants=CONSTANTS)
    assert operators["HARD_SWISH"] == 1 and operators["MUL"] == operators["ADD"] == 0


QK = {"q": numbers(2, 3, 5, 4), "k": numbers(2, 3, 4, 5)}


def guarded(scores: Sequence[Any]) -> list[Any]:
    return [
        node("MatMul", ["q", "k"], ["x"]),
        *scores,
        node("Softmax", ["s"], ["p"], axis=-1),
        node("IsNaN", ["p"], ["n"]),
        node("Where", ["n", "zero", "p"], ["y"]),
    ]


def test_rows_that_are_masked_as_a_whole_are_zero(tmp_path: Path) -> None:
    kept = np.random.default_rng(0).random((2, 1, 5, 5)) < 0.5
    kept[1, 0, 2] = False
    nodes = [node("Where", ["kept", "zero", "never"], ["m"]), node("Add", ["x", "m"], ["s"])]
    constants = {**CONSTANTS, "never": np.float32(-np.inf)}
    operators = agree(tmp_path, guarded(nodes), {**QK, "kept": kept}, constants=constants)
    assert operators["NOT_EQUAL"] == operators["SELECT_V2"] == 0


def test_rows_that_a_computed_mask_hides_are_zero(tmp_path: Path) -> None:
    kept = np.ones((2, 1, 5, 5), bool)
    kept[1, 0, 2] = kept[0, 0, 0, :3] = False
    nodes = [node("Where", ["kept", "zero", "never"], ["w"]), node("Unsqueeze", ["w", "first"], ["u"]), node("Squeeze", ["u", "first"], ["m"])]
    constants = {**CONSTANTS, "never": np.float32(-np.inf), "first": np.array([0])}
    operators = agree(tmp_path, guarded([*nodes, node("Add", ["x", "m"], ["s"])]), {**QK, "kept": kept}, constants=constants)
    assert operators["NOT_EQUAL"] == 0 and operators["MAXIMUM"] == 1


def test_rows_of_the_lowest_number_are_not_masked_but_even(tmp_path: Path) -> None:
    kept = np.zeros((2, 1, 5, 5), np.bool_)
    nodes = [node("Where", ["kept", "zero", "never"], ["m"]), node("Add", ["x", "m"], ["s"])]
    constants = {**CONSTANTS, "never": np.finfo(np.float32).min}
    agree(tmp_path, guarded(nodes), {**QK, "kept": kept}, constants=constants)


def test_a_known_mask_that_leaves_something_of_every_row_needs_no_guard(tmp_path: Path) -> None:
    constants = {**CONSTANTS, "m": np.triu(np.full((5, 5), -np.inf, np.float32), 1)}
    operators = agree(tmp_path, guarded([node("Add", ["x", "m"], ["s"])]), QK, constants=constants)
    assert set(operators) <= {"BATCH_MATMUL", "ADD", "SOFTMAX", "DELEGATE"}


def test_scores_that_may_be_infinite_by_themselves_keep_their_guard(tmp_path: Path) -> None:
    lost = numbers(2, 3, 5, 5)
    lost[1, 1, 1] = -np.inf
    operators = agree(tmp_path, guarded([node("Add", ["x", "z"], ["s"])]), {**QK, "z": lost}, constants=CONSTANTS)
    assert operators["NOT_EQUAL"] == 1


def test_the_gain_and_the_shift_of_a_layer_norm_become_weights(tmp_path: Path) -> None:
    constants = {"gain": numbers(16), "shift": numbers(16), "a": numbers(16, 4), "b": numbers(16, 8)}
    nodes = [
        node("LayerNormalization", ["x", "gain", "shift"], ["n"], axis=-1),
        node("MatMul", ["n", "a"], ["y"]),
        node("MatMul", ["n", "b"], ["z"]),
    ]
    plain = agree(tmp_path, [nodes[0], node("Relu", ["n"], ["y"])], {"x": X}, constants=constants)
    folded = agree(tmp_path, nodes, {"x": X}, ["y", "z"], constants=constants)
    assert folded["MUL"] == plain["MUL"] - 1 and folded["ADD"] == plain["ADD"] - 1


def test_gain_and_shift_go_into_a_pointwise_convolution_but_not_past_padding(tmp_path: Path) -> None:
    constants = {"gain": numbers(1, 3, 1, 1), "shift": numbers(1, 3, 1, 1), "w": numbers(4, 3, 1, 1), "v": numbers(4, 3, 3, 3)}
    moved = [node("Mul", ["x", "gain"], ["g"]), node("Add", ["g", "shift"], ["n"])]
    given = {"x": numbers(1, 3, 6, 6)}
    operators = agree(tmp_path, [*moved, node("Conv", ["n", "w"], ["y"], strides=[2, 2])], given, constants=constants)
    assert operators["MUL"] == operators["ADD"] == 0
    operators = agree(tmp_path, [*moved, node("Conv", ["n", "v"], ["y"], pads=[1, 1, 1, 1])], given, constants=constants)
    assert operators["MUL"] == operators["ADD"] == 1


def test_attention_has_one_factor_and_turns_no_keys(tmp_path: Path) -> None:
    nodes = [
        node("Mul", ["q", "half"], ["a"]),
        node("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]),
        node("Mul", ["t", "other"], ["b"]),
        node("MatMul", ["a", "b"], ["y"]),
    ]
    operators = agree(tmp_path, nodes, {"q": numbers(2, 3, 5, 4), "k": numbers(2, 3, 6, 4)}, constants=CONSTANTS)
    assert operators["MUL"] == 1 and operators["TRANSPOSE"] == 0


def test_keys_that_are_turned_as_matrices_in_a_row_are_not(tmp_path: Path) -> None:
    constants = {"flat": np.array([6, 6, 4]), "back": np.array([2, 3, 4, 6])}
    nodes = [
        node("Reshape", ["k", "flat"], ["f"]),
        node("Transpose", ["f"], ["t"], perm=[0, 2, 1]),
        node("Reshape", ["t", "back"], ["b"]),
        node("MatMul", ["q", "b"], ["y"]),
    ]
    operators = agree(tmp_path, nodes, {"q": numbers(2, 3, 5, 4), "k": numbers(2, 3, 6, 4)}, constants=constants)
    assert operators["TRANSPOSE"] == operators["RESHAPE"] == 0


def test_a_factor_of_the_queries_goes_into_their_weights(tmp_path: Path) -> None:
    constants = {**CONSTANTS, "w": numbers(16, 16), "b": numbers(16), "heads": np.array([0, 0, 4, 4])}
    nodes = [
        node("MatMul", ["x", "w"], ["f"]),
        node("Add", ["f", "b"], ["g"]),
        node("Reshape", ["g", "heads"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3]),
        node("Mul", ["t", "other"], ["y"]),
    ]
    assert agree(tmp_path, nodes, {"x": X}, constants=constants)["MUL"] == 0


@pytest.mark.parametrize(("start", "step", "axis"), [(0, 2, 1), (1, 2, 2), (3, 4, 1), (0, 3, 2)])
def test_every_nth_element(tmp_path: Path, start: int, step: int, axis: int) -> None:
    bounds = {"start": np.array([start]), "end": np.array([1000]), "axis": np.array([axis]), "step": np.array([step])}
    operators = agree(tmp_path, [node("Slice", ["x", "start", "end", "axis", "step"], ["y"])], {"x": X}, constants=bounds)
    assert (operators["STRIDED_SLICE"] == 0) == (X.shape[axis] % step == 0)


def test_integers_are_not_overwritten_before_they_are_read(tmp_path: Path) -> None:
    """A graph of which LiteRT's memory planner makes wrong numbers as it stands."""
    constants = {"flat": np.array([12]), "bits": np.int32(3)}
    nodes = [
        node("BitwiseXor", ["x", "bits"], ["a"]),
        node("Sub", ["x", "a"], ["b"]),
        node("Reshape", ["b", "flat"], ["c"]),
        node("Reshape", ["x", "flat"], ["d"]),
        node("Add", ["b", "b"], ["e"]),
        node("Add", ["c", "d"], ["f"]),
        node("Sub", ["e", "b"], ["g"]),
        node("BitwiseXor", ["f", "bits"], ["y"]),
        node("BitwiseXor", ["g", "bits"], ["z"]),
    ]
    agree(tmp_path, nodes, {"x": np.arange(12, dtype=np.int32).reshape(2, 6)}, ["y", "z"], constants, 18)


def test_concatenations_that_grow_start_from_each_other(tmp_path: Path) -> None:
    """As in a DenseNet."""
    grown = [node("Concat", [f"x{number}" for number in range(count)], [f"c{count}"], axis=1) for count in range(2, 9)]
    layers = [node("Relu", [f"c{count}"], [f"y{count}"]) for count in range(2, 9)]
    given = {f"x{number}": numbers(1, 2, 3, 3) for number in range(8)}
    nodes = [one for pair in zip(grown, layers, strict=True) for one in pair]
    operators = agree(tmp_path, nodes, given, [f"y{count}" for count in range(2, 9)])
    assert operators["CONCATENATION"] == 7 and operators["DELEGATE"] == 1


def test_channels_that_are_put_in_another_order_come_so_from_the_weights(tmp_path: Path) -> None:
    constants = {"w": numbers(8, 3, 3, 3), "b": numbers(8), "order": np.array([7, 0, 3, 3, 1])}
    convolved = node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1])
    given = {"x": numbers(1, 3, 6, 6)}
    operators = agree(tmp_path, [convolved, node("DepthToSpace", ["c"], ["y"], blocksize=2, mode="CRD")], given, constants=constants)
    assert operators["GATHER"] == 0 and operators["DELEGATE"] == 1
    operators = agree(tmp_path, [convolved, node("Gather", ["c", "order"], ["y"], axis=1)], given, constants=constants)
    assert operators["GATHER"] == 0
    both = [convolved, node("Gather", ["c", "order"], ["y"], axis=1), node("Relu", ["c"], ["z"])]
    assert agree(tmp_path, both, given, ["y", "z"], constants)["GATHER"] == 1


@pytest.mark.parametrize("seed", range(40))
def test_reshapes_and_transposes_in_a_row_are_one_transpose(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(int(size) for size in random.choice([1, 2, 3, 4, 6], random.integers(2, 5)))
    nodes, constants, at, sizes = [], {}, "x", list(shape)
    for number in range(random.integers(2, 7)):
        if random.random() < 0.5:
            order = [int(axis) for axis in random.permutation(len(sizes))]
            nodes.append(node("Transpose", [at], [f"t{number}"], perm=order))
            sizes = [sizes[axis] for axis in order]
        else:
            sizes = drawn_anew(random, sizes)
            constants[f"s{number}"] = np.array(sizes)
            nodes.append(node("Reshape", [at, f"s{number}"], [f"t{number}"]))
        at = f"t{number}"
    operators = agree(tmp_path, [*nodes, node("Neg", [at], ["y"])], {"x": numbers(*shape)}, constants=constants)
    turns = sum(one.op_type == "Transpose" for one in nodes)
    assert operators["TRANSPOSE"] <= turns and operators["TRANSPOSE"] + operators["RESHAPE"] <= len(nodes)


def drawn_anew(random: np.random.Generator, sizes: list[int]) -> list[int]:
    """Other sizes of as many elements: neighbours merged, one split, or ones put in."""
    kind = random.integers(3)
    if kind == 0 and len(sizes) > 1:
        place = int(random.integers(len(sizes) - 1))
        return [*sizes[:place], sizes[place] * sizes[place + 1], *sizes[place + 2 :]]
    place = int(random.integers(len(sizes)))
    factors = [factor for factor in (2, 3) if sizes[place] % factor == 0]
    if kind == 1 and factors and len(sizes) < 5:
        return [*sizes[:place], factors[0], sizes[place] // factors[0], *sizes[place + 1 :]]
    return [*sizes[:place], 1, *sizes[place:]] if len(sizes) < 5 else sizes


def test_a_shuffle_of_channels_is_one_transpose_and_a_head_of_a_detector_none(tmp_path: Path) -> None:
    constants = {"w": numbers(6, 3, 1, 1), "split": np.array([1, 2, 3, 4, 5]), "whole": np.array([1, 6, 4, 5]), "rows": np.array([1, -1, 2])}
    constants["anchors"] = np.array([1, 3, 2, 4, 5])
    convolved = node("Conv", ["x", "w"], ["c"])
    shuffled = [
        convolved,
        node("Reshape", ["c", "split"], ["s"]),
        node("Transpose", ["s"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["t", "whole"], ["u"]),
        node("MaxPool", ["u"], ["y"], kernel_shape=[2, 2]),
    ]
    given = {"x": numbers(1, 3, 4, 5)}
    assert agree(tmp_path, shuffled, given, constants=constants)["TRANSPOSE"] <= 3  # of the input, of the channels, of the output
    head = [
        convolved,
        node("Reshape", ["c", "anchors"], ["a"]),
        node("Transpose", ["a"], ["t"], perm=[0, 3, 4, 1, 2]),
        node("Reshape", ["t", "rows"], ["y"]),
    ]
    assert agree(tmp_path, head, given, constants=constants)["TRANSPOSE"] == 1
