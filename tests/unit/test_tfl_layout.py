"""Layouts are those with the fewest transposed bytes: held against every other choice, on small graphs drawn at random."""

import itertools

import numpy as np
import pytest

from toolkit.convert.tfl import layout
from toolkit.convert.tfl.layout import Demand


def transposed(demands, chosen, fixed, costs):
    """What a choice costs: each value once, where some reader, or the model itself, wants it in the layout that it does not have."""
    made = dict(fixed)
    for demand, given in zip(demands, chosen, strict=True):
        made |= dict.fromkeys(demand.outputs, layout.other(given) if demand.moves else given)
    wanted = {(name, given) for demand, given in zip(demands, chosen, strict=True) for name in demand.inputs}
    wanted |= set(fixed.items())
    return sum(costs[name] for name, given in wanted if made[name] != given)


def drawn(random):
    """A graph of at most nine operators, each of one or two inputs; a third of them has a layout of its own."""
    values = ["x"]
    demands = []
    for number in range(random.integers(2, 10)):
        inputs = tuple(dict.fromkeys(str(one) for one in random.choice(values, random.integers(1, 3))))
        own = [None, None, None, "last", "first"][random.integers(5)]
        demands.append(Demand(own, inputs, (f"v{number}",), moves=own is not None and bool(random.integers(4) == 0)))
        values.append(f"v{number}")
    costs = {name: int(random.integers(1, 1000)) for name in values}
    return demands, {"x": "first"}, costs


@pytest.mark.parametrize("seed", range(60))
def test_no_other_choice_transposes_less(seed):
    demands, fixed, costs = drawn(np.random.default_rng(seed))
    chosen = layout.assign(demands, fixed, costs)
    assert all(demand.layout in (None, given) for demand, given in zip(demands, chosen, strict=True))
    every = itertools.product(*([demand.layout] if demand.layout else ["first", "last"] for demand in demands))
    assert transposed(demands, chosen, fixed, costs) == min(transposed(demands, one, fixed, costs) for one in every)


def test_what_stands_between_convolutions_takes_their_layout():
    between = Demand(None, ("a",), ("b",))
    demands = [Demand("last", ("x",), ("a",)), between, Demand("last", ("b",), ("y",))]
    costs = dict.fromkeys("xaby", 4096)
    assert layout.assign(demands, {"x": "first", "y": "first"}, costs) == ["last"] * 3


def test_axes_of_one_element_change_places_for_little():
    assert layout.cost((1, 64, 1, 1), 4) == layout.cost((1, 1, 8, 8), 4) < layout.cost((1, 64, 8, 8), 4)
    assert layout.last_order(4) == (0, 2, 3, 1)
