"""The usual scheme comes back where cheap repairs bring back what it lost, and it is faster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.errors import StageFailed
from toolkit.quantization import stage
from toolkit.quantization.auto import DYNAMIC, STATIC, Choice
from toolkit.quantization.ladder import Climb, Tried
from toolkit.quantization.search import Judged
from toolkit.quantization.workshop import State

STATE = State(Path("float"), STATIC)
CHOSEN = Choice(DYNAMIC, "it lost less", usual=STATIC)


def climbed(held, name):
    judged = Judged(512, (0.0, -0.01, 0.01), 30.0)
    tried = [Tried(rung, (), judged, True, "", 0.0) for rung in ("default", "equalization")]
    return Climb(STATE, Path(name), judged, held, 0.01, asked=False, tried=tried)


@pytest.fixture
def again(monkeypatch):
    def give(*, usual_held, ratios, found_held=True, error=None, rungs=None):
        asked = []

        def climb(workshop, search, state, *, max_drop, rungs, twin):
            asked.append((state.scheme, max_drop, tuple(rungs)))
            if error:
                raise error
            return climbed(usual_held, "usual")

        monkeypatch.setattr(stage, "climb", climb)
        monkeypatch.setattr(stage.auto, "latency_ratio", lambda search, model, twin: ratios[model.name])
        job = SimpleNamespace(options={} if rungs is None else {"rungs": rungs}, inputs={})
        chosen, found = stage._usual(job, None, None, STATE, CHOSEN, climbed(found_held, "other"))
        return chosen, found.model.name, asked

    return give


def test_it_comes_back_where_it_holds_and_is_faster(again):
    chosen, model, asked = again(usual_held=True, ratios={"usual": 0.5, "other": 0.9})
    assert (chosen.scheme, model) == (STATIC, "usual")
    assert chosen.why == "static_wi8_ai8 holds after equalization, and takes 0.50 of the float model's time, dynamic_wi8 0.90"
    assert asked == [(STATIC, 0.01, ("range_method", "equalization", "bias_correction"))]


@pytest.mark.parametrize(
    "how",
    [
        {"usual_held": False, "ratios": {"usual": 0.5, "other": 0.9}},
        {"usual_held": True, "ratios": {"usual": 0.85, "other": 0.9}},
        {"usual_held": True, "ratios": {}, "error": StageFailed("an activation overflows", where="calibration")},
    ],
)
def test_else_the_other_one_stays(again, how):
    assert again(**how)[:2] == (CHOSEN, "other")


def test_it_comes_back_where_the_other_one_does_not_hold(again):
    assert again(usual_held=True, found_held=False, ratios={"usual": 0.95, "other": 0.9})[1] == "usual"


def test_only_the_rungs_that_were_asked_for_are_climbed(again):
    assert again(usual_held=False, ratios={}, rungs=["equalization", "adaround"])[2][0][2] == ("equalization",)
