"""Where the repair ladder stops, what it goes on from, and what it says of each file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.errors import StageFailed
from toolkit.quantization import ladder
from toolkit.quantization.ladder import climb
from toolkit.quantization.rungs import Proposal
from toolkit.quantization.search import Judged
from toolkit.quantization.workshop import State

START = State(Path("float"), "static_wi8_ai8")


class Workshop:
    """Makes nothing: a file is what its state is called."""

    progress = staticmethod(lambda done, total, note: None)

    def make(self, state):
        if state.method == "broken":
            raise StageFailed("the library fell over", where="library")
        return Path("+".join((state.model.name, state.method, *state.keep_float)))


class Search:
    """Knows the loss of every file."""

    def __init__(self, **drops):
        self.drops, self.twins = drops, set()

    def judge(self, model, twin):
        self.twins.add(twin)
        value = next(drop for name, drop in self.drops.items() if name == model.name.replace("+", "_"))
        return Judged(1000, (value, value - 0.005, value + 0.005), 30 - value)


def proposing(**changes):
    def rung(workshop, search, state):
        yield Proposal(replace(state, **changes), (f"changed {', '.join(changes)}",))

    return rung


@pytest.fixture
def rungs(monkeypatch):
    def give(**found):
        monkeypatch.setattr(ladder, "RUNGS", found)

    return give


def test_a_file_that_holds_is_left_alone(rungs):
    rungs(first=proposing(method="mse"))
    found = climb(Workshop(), Search(float_min_max=0.004), START, max_drop=0.01, rungs=["first"])
    assert (found.held, found.state, found.taken()) == (True, START, ["default"])
    assert [one.rung for one in found.tried] == ["default"]


def test_the_climb_goes_on_from_what_was_better_and_stops_where_it_holds(rungs):
    rungs(
        worse=proposing(method="entropy"),
        better=proposing(model=Path("equal")),
        nothing=lambda workshop, search, state: iter(()),
        broken=proposing(method="broken"),
        best=proposing(keep_float=("conv",)),
        never=proposing(method="percentile"),
    )
    search = Search(float_min_max=0.4, float_entropy=0.5, equal_min_max=0.1, equal_min_max_conv=0.001)
    found = climb(Workshop(), search, START, max_drop=0.01, rungs=["worse", "better", "nothing", "broken", "best", "never"])
    assert (found.held, found.model.name, found.taken()) == (True, "equal+min_max+conv", ["default", "better", "best"])
    assert found.skipped == ["nothing"]
    assert [(one.rung, one.adopted) for one in found.tried] == [
        ("default", True),
        ("worse", False),
        ("better", True),
        ("broken", False),
        ("best", True),
    ]
    assert search.twins == {Path("float")}
    facts = found.facts()
    assert facts["rungs"][3]["reason"] == "the library fell over"
    assert facts["rungs"][4]["done"] == ["changed keep_float"]
    assert (facts["n"], facts["drop"], facts["held"]) == (1000, [0.001, -0.004, 0.006], True)


def test_where_nothing_holds_the_best_is_returned_and_says_so(rungs):
    rungs(first=proposing(method="mse"), second=proposing(method="entropy"))
    found = climb(Workshop(), Search(float_min_max=0.4, float_mse=0.2, float_entropy=0.3), START, max_drop=0.01, rungs=["first", "second"])
    assert (found.held, found.state.method, found.facts()["held"]) == (False, "mse", False)


def test_a_default_file_that_cannot_be_made_is_repaired_too(rungs):
    rungs(first=proposing(method="mse"))
    found = climb(Workshop(), Search(float_mse=0.0), replace(START, method="broken"), max_drop=0.01, rungs=["first"])
    assert (found.held, found.state.method, found.taken()) == (True, "mse", ["first"])
    rungs()
    with pytest.raises(StageFailed, match="fell over"):
        climb(Workshop(), Search(), replace(START, method="broken"), max_drop=0.01, rungs=[])


def test_only_the_rungs_that_are_asked_for_are_climbed(rungs):
    rungs(first=proposing(method="mse"), second=proposing(method="entropy"))
    found = climb(Workshop(), Search(float_min_max=0.4, float_entropy=0.3), START, max_drop=0.01, rungs=["second"])
    assert [one.rung for one in found.tried] == ["default", "second"]


def test_a_report_says_how_a_file_came_about():
    from toolkit.pipeline.rows import made_lines

    rung = {"rung": "default", "drop": [0.158, 0.1, 0.2], "sqnr_db": 4.2}
    climbed = {
        "rungs": [rung],
        "taken": ["default", "equalization"],
        "held": True,
        "drop": [0.0, -0.01, 0.01],
        "sqnr_db": 33.0,
        "n": 512,
        "max_drop": 0.01,
        "asked": True,
    }
    facts = {"ladder": climbed, "auto": {"scheme": "static_wi8_ai8", "why": "most of it is convolutions"}, "label": {"kept_float": ["stem"]}}
    assert made_lines(facts) == (
        "auto chose static_wi8_ai8: most of it is convolutions",
        "repaired by equalization: 15.8 points lost, 4 dB before, 0.0 points lost, 33 dB, n=512 search samples after",
        "1 layer is float, as the label says",
    )
    assert made_lines({"ladder": {**climbed, "taken": ["default"], "held": False}}) == (
        "no repair held 1 points on the search samples: 0.0 points lost, 33 dB, n=512 search samples",
    )
    assert made_lines({"ladder": {**climbed, "taken": ["default"]}}) == made_lines({}) == ()
