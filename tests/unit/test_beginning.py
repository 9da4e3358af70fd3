"""Which first layers stay float: measured, the fewest that are about as fast as it gets, and none where it gains nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.errors import StageFailed
from toolkit.quantization import beginning, stage
from toolkit.quantization.auto import Choice
from toolkit.quantization.workshop import State

STATE = State(Path("float"), "static_wi8_ai8")


def contents(*dtypes):
    return SimpleNamespace(layers=[SimpleNamespace(name=f"layer {number}", weight_dtype=dtype) for number, dtype in enumerate(dtypes)])


@pytest.fixture
def quicken(monkeypatch):
    """Runs the search on files whose time is known by how many layers they have in float."""

    def give(times, layers=("float32",) * 12, keeps_float=True):
        def make(state):
            if times.get(len(state.keep_float), 1.0) is None:
                raise StageFailed("no kernel", where="library")
            return len(state.keep_float)

        workshop = SimpleNamespace(make=make, quantizer=lambda scheme: SimpleNamespace(keeps_float=keeps_float))
        monkeypatch.setattr(beginning, "latency_ratio", lambda search, model, twin: times[model])
        return beginning.quicken(workshop, None, STATE, contents(*layers))

    return give


def test_the_fewest_that_are_about_as_fast_as_it_gets(quicken):
    found = quicken({0: 1.4, 1: 1.1, 2: 1.05, 3: 0.89, 5: 0.88, 8: 0.9})
    assert found == beginning.Beginning(("layer 0", "layer 1", "layer 2"), 1.4, 0.89)


@pytest.mark.parametrize("times", [{0: 0.79}, {0: 1.0, 1: 0.95, 2: 0.92, 3: 0.93, 5: 1.2, 8: 2.0}])
def test_none_where_the_file_is_fast_or_nothing_makes_it_a_tenth_faster(quicken, times):
    assert quicken(times).layers == ()


def test_only_layers_with_weights_count_and_not_all_of_them(quicken):
    found = quicken({0: 1.4, 1: 1.0, 2: 0.5}, layers=("-", "float32", "-", "float32", "float32"))
    assert found.layers == ("layer 1", "layer 3")


def test_a_file_that_cannot_be_made_is_passed_over(quicken):
    assert quicken({0: 1.4, 1: None, 2: 0.9, 3: None, 5: None, 8: None}).layers == ("layer 0", "layer 1")


def test_a_quantizer_that_keeps_nothing_float_is_left_alone(quicken):
    assert quicken({0: 1.4}, keeps_float=False).layers == ()


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (beginning.Beginning((), 1.17, 1.17), "convolutions; int8 is not faster here, it takes 1.17 of the float model's time"),
        (beginning.Beginning((), 0.9, 0.9), "convolutions"),
        (beginning.Beginning(("conv",), 1.4, 0.9), "convolutions; with the first layer in float 0.90 of the float model's time instead of 1.40"),
    ],
)
def test_a_file_that_stays_slower_than_float_is_called_so(monkeypatch, found, told):
    monkeypatch.setattr(stage, "quicken", lambda *_: found)
    chosen, state = stage._quicker(None, None, STATE, None, Choice("static_wi8_ai8", "convolutions"))
    assert (chosen.why, state.keep_float) == (told, found.layers)
