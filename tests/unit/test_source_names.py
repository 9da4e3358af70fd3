"""Names of a live model's inputs and outputs, and the record of what it computes: no framework takes part."""

import inspect
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import InputRejected
from toolkit.sources import naming, recording

NAMES = st.sampled_from(["a", "b", "c", "d", "output_0", "output_1"])
UNIQUE = st.lists(NAMES, unique=True).map(tuple)


class Scores(NamedTuple):
    logits: int
    boxes: int


def passed(function, inputs):
    """What a function gets, by its own names, when its inputs are passed as :func:`by_keyword` says."""
    values = {name: f"the value of {name}" for name in inputs}
    takes = inspect.signature(function)
    named = naming.by_keyword(takes.parameters.values(), tuple(inputs), called="forward", where="Net.forward")
    return dict((takes.bind(**values) if named else takes.bind(*values.values())).arguments)


@given(st.permutations(["left", "right"]))
def test_known_names_go_to_their_parameters_in_any_order(inputs):
    assert passed(lambda left, right: None, inputs) == {"left": "the value of left", "right": "the value of right"}


@given(UNIQUE.filter(bool))
def test_no_name_that_a_function_knows_ever_lands_at_another_parameter(inputs):
    try:
        found = passed(lambda a, b, c: None, inputs)
    except (InputRejected, TypeError):  # TypeError: fewer than the function needs, which it says itself
        return
    assert all(found[name] == f"the value of {name}" for name in inputs if name in found)
    assert sorted(found.values()) == sorted(f"the value of {name}" for name in inputs)


@pytest.mark.parametrize(
    ("function", "inputs", "found"),
    [
        (lambda x, y: None, ["p", "q"], {"x": "the value of p", "y": "the value of q"}),
        (lambda x, /: None, ["x"], {"x": "the value of x"}),
        (lambda *, x: None, ["x"], {"x": "the value of x"}),
        (lambda *rest: None, ["p", "q"], {"rest": ("the value of p", "the value of q")}),
        (lambda **rest: None, ["p"], {"rest": {"p": "the value of p"}}),
        (lambda *rest, **more: None, ["p"], {"more": {"p": "the value of p"}}),
        (lambda x, more=1: None, ["x"], {"x": "the value of x"}),
    ],
)
def test_every_kind_of_parameter(function, inputs, found):
    assert passed(function, inputs) == found


@pytest.mark.parametrize(
    ("function", "inputs"), [(lambda a, b: None, "ba_"), (lambda a, b: None, "xa"), (lambda a: None, "xy"), (lambda *, a: None, "x")]
)
def test_what_could_be_swapped_or_has_no_place_names_both_sides(function, inputs):
    with pytest.raises(InputRejected) as caught:
        passed(function, inputs)
    assert caught.value.message.startswith(f"inputs are named {list(inputs)}, forward takes ['a'")
    assert (caught.value.where, caught.value.hint) == ("Net.forward", "name the examples like forward's parameters")


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (1, ["output_0"]),
        ((1, 2), ["output_0", "output_1"]),
        ([1, 2], ["output_0", "output_1"]),
        (Scores(1, 2), ["logits", "boxes"]),
        (OrderedDict(z=1, a=2), ["z", "a"]),
        ({"z": 1, "cache": None}, ["z"]),
        ((1, None, 3), ["output_0", "output_2"]),
        (((1, 2), 3), ["output_0", "output_1"]),
        ((), []),
        (None, []),
        ({}, []),
    ],
)
def test_the_model_s_own_names(result, names):
    assert list(naming.parts(result)) == names


@given(UNIQUE.filter(bool), UNIQUE)
def test_a_name_of_the_model_is_never_given_to_another_of_its_outputs(own, names):
    outputs = {name: f"the value of {name}" for name in own}
    try:
        found = naming.name_outputs(outputs, names)
    except InputRejected as error:
        assert names and not set(names) <= set(own) and error.hint
        return
    assert tuple(found) == (names or own)
    assert all(found[name] == outputs[name] for name in found if name in outputs)
    assert len(set(found.values())) == len(found)


@given(st.integers(1, 4))
def test_as_many_new_names_rename_all_in_order(count):
    own, names = {f"output_{place}": place for place in range(count)}, tuple("abcd"[:count])
    assert naming.name_outputs(own, names) == dict(zip(names, range(count), strict=True))


def test_numbered_outputs_can_be_chosen_and_turned_like_named_ones():
    assert naming.name_outputs(naming.parts(("p", "q")), ("output_1",)) == {"output_1": "q"}
    assert naming.name_outputs(naming.parts(("p", "q")), ("output_1", "output_0")) == {"output_1": "q", "output_0": "p"}


@pytest.mark.parametrize(
    ("outputs", "names", "message"),
    [
        ({}, (), "the model has no outputs"),
        ({}, ("a",), "the model has no outputs"),
        ({"a": 1}, ("x", "y"), "the model returns 1 output ['a'], found 2 names ['x', 'y']"),
        ({"a": 1, "b": 2}, ("x",), "the model returns 2 outputs ['a', 'b'], found 1 name ['x']"),
        ({"a": 1, "b": 2}, ("b", "x"), "the model returns ['a', 'b'], so 'b' of the names ['b', 'x'] would be given to another output"),
    ],
)
def test_names_that_do_not_fit(outputs, names, message):
    with pytest.raises(InputRejected) as caught:
        naming.name_outputs(outputs, names)
    assert caught.value.message == message and caught.value.hint


@pytest.mark.parametrize(
    ("result", "noun", "message"),
    [
        (((1, 2), 3), "tensor", "output 'output_0' is a tuple, not a tensor"),
        ({"a": {"b": 1}}, "array", "output 'a' is a dict, not an array"),
        ({"a/b": 1}, "tensor", "output name 'a/b' is not a Python identifier"),
        ({7: 1}, "tensor", "output name 7 is not a Python identifier"),
        ({"": 1}, "tensor", "output name '' is not a Python identifier"),
    ],
)
def test_outputs_that_no_file_can_hold(result, noun, message):
    with pytest.raises(InputRejected) as caught:
        naming.named_outputs(result, (), is_tensor=lambda value: isinstance(value, int), noun=noun)
    assert caught.value.message == message and caught.value.where == "outputs" and caught.value.hint


def test_what_is_chosen_by_name_need_not_be_accompanied_by_tensors():
    assert naming.named_outputs({"a": 1, "cache": [2]}, ("a",), is_tensor=lambda value: isinstance(value, int)) == {"a": 1}


@pytest.mark.parametrize(("names", "word"), [(("a", "a"), "repeat"), (("",), "identifier"), (("1x",), "identifier"), (("a b",), "identifier")])
def test_chosen_names_must_be_usable(names, word):
    with pytest.raises(InputRejected, match=word):
        naming.check_chosen(names)


@pytest.mark.parametrize(
    ("examples", "word"),
    [
        ({}, "at least one sample"),
        ({"x": np.zeros((0, 3))}, "at least one sample"),
        ({"x": np.float32(1)}, "at least one sample"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((3, 3))}, "equal lengths"),
        ({"x": np.zeros((2, 3)), "y.1": np.zeros((2, 3))}, "identifier"),
        ({"": np.zeros((2, 3))}, "identifier"),
    ],
)
def test_examples_that_no_model_can_be_captured_with(examples, word):
    with pytest.raises(InputRejected, match=word):
        recording.check_examples(examples)


def test_samples_are_copies_of_one_row_each():
    column = np.arange(6.0).reshape(3, 2)
    column.setflags(write=False)
    rows = recording.samples({"x": column, "y": column[:, :1]})
    assert [row["x"].tolist() for row in rows] == [[[0, 1]], [[2, 3]], [[4, 5]]] and rows[1]["y"].tolist() == [[2]]
    rows[0]["x"][:] = 9  # as a model may
    assert column[0, 0] == 0
    assert recording.described(rows[0]) == "x [1, 2] float64, y [1, 1] float64"


@pytest.mark.parametrize(("shape", "batches"), [((), (1,)), ((3,), (1,)), ((2, 1), (1,)), ((1, 3), (4,))])
def test_outputs_without_the_batch_first(shape, batches):
    with pytest.raises(InputRejected, match=r"output 'y' of (one sample|a batch of 4) has shape") as caught:
        recording.check_batch({"fine": (batches[0], 3), "y": shape}, batches)
    assert caught.value.hint == "return the batch as first axis"


@given(st.integers(1, 5), st.integers(0, 3))
def test_joined_outputs_are_those_of_a_batch(count, width):
    batch = np.random.default_rng(0).normal(size=(count, width))
    rows = [{"y": batch[row : row + 1]} for row in range(count)]
    np.testing.assert_array_equal(recording.joined(rows[0], rows)["y"], batch)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3])
def test_equal_runs_are_equal_also_where_they_are_not_finite(value):
    row = {"y": np.array([[value, 1.0]]), "labels": np.array([[True, False]])}
    assert recording.joined(row, [row])["y"].shape == (1, 2)


@pytest.mark.parametrize("other", [np.array([[1.0, 2.001]]), np.array([[1.0, np.nan]]), np.array([[1.0, 2.0, 3.0]])])
def test_runs_that_differ_are_named(other):
    with pytest.raises(InputRejected, match="output 'y' differs when the same sample runs twice"):
        recording.joined({"y": np.array([[1.0, 2.0]])}, [{"y": other}])


def test_rounding_relative_to_the_largest_value_is_no_difference():
    recording.joined({"y": np.array([[1000.0, 0.0]])}, [{"y": np.array([[1000.0, 0.001]])}])


def test_outputs_whose_size_depends_on_the_sample_are_refused():
    rows = [{"boxes": np.zeros((1, 3, 4))}, {"boxes": np.zeros((1, 5, 4))}]
    with pytest.raises(InputRejected, match=r"'boxes' has shape \[1, 3, 4\] for one sample and \[1, 5, 4\] for another"):
        recording.joined(rows[0], rows)
