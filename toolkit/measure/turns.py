"""Timing models in turns: warm each up until it is steady, then let them alternate in short blocks.

A machine drifts: clocks change, neighbours come and go. In every round each contender has one block, in an order that visits
all of them early as often as late, so that a drift moves all of them alike, and their ratios little.

The same file loaded twice is not equally fast: memory lies elsewhere. Loads of one ONNX file, measured in turns beside a busy
process on two x86-64 cores, differed by 0.3 to 0.5 % (standard deviation). For a chain of matrix products the differences stayed
for as long as the sessions lived (correlation 0.8 between two halves of the measurement), and were larger than the uncertainty of
a second's timing. So a contender may be loaded several times, and its sessions take turns from one pair of rounds to the next.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from statistics import median
from typing import TypeVar

import numpy as np

from toolkit.dataset import Dataset
from toolkit.measure.feed import fit
from toolkit.plugins import Arrays, Session

AnyItem = TypeVar("AnyItem")

TIMED_SAMPLES = 16
FEED_BYTES = 64 << 20
MAX_KEPT = 2000
# After a change of model the caches hold the other one's weights: a first inference took up to 1.8 times the median, a third 1.02 times.
LEAD_IN = 2
LEAD_IN_FROM = 8
STEADY_SHARE = 0.05
STEADY_BLOCKS = 3
WARM_BLOCK_NS = 10_000_000
WARM_INFERENCES = 5
MOST_SLOW_BLOCKS = 6


@dataclass
class Loaded:
    """One loaded model with its prepared inputs.

    Attributes:
        session: The loaded model.
        feed: Inputs, over and over, so that every inference takes the next one.
        expected_ns: Time of one inference after warming up, for planning.
        steady: Whether warming up reached a steady state.
    """

    session: Session
    feed: Iterator[Arrays]
    expected_ns: float = 1.0
    steady: bool = False


@dataclass
class Contender:
    """One model file, loaded once or several times, and the times taken so far.

    Attributes:
        sessions: Its loads, which take turns.
        rounds_ns: Every kept time of an inference, by round.
    """

    sessions: list[Loaded]
    rounds_ns: list[list[int]] = field(default_factory=list)

    @property
    def expected_ns(self) -> float:
        """Time of one inference after warming up."""
        return median(one.expected_ns for one in self.sessions)

    @property
    def steady(self) -> bool:
        """Whether all loads reached a steady state."""
        return all(one.steady for one in self.sessions)


def prepare(data: Dataset, session: Session, size: int) -> Loaded:
    """Copies a few different batches into memory, in the model's dtypes; short data start again from the first sample.

    Args:
        data: Samples for the model.
        session: The loaded model.
        size: Samples of one inference.

    Raises:
        InputRejected: The data do not fit the model.
    """
    dtypes = fit(data, session.signature).dtypes
    row_bytes = sum(column[:1].nbytes for column in data.columns.values())
    count = max(1, min(TIMED_SAMPLES, len(data), FEED_BYTES // max(1, row_bytes * size)))
    rows = [[(number * size + row) % len(data) for row in range(size)] for number in range(count)]
    batches = [{name: np.ascontiguousarray(data.columns[name][chosen], dtype=dtype) for name, dtype in dtypes.items()} for chosen in rows]
    return Loaded(session, cycle(batches))


def warm_up(loaded: Loaded, limit_seconds: float) -> None:
    """Runs until three blocks in a row have the same fastest inference, within 5 %, or the time is up.

    A neighbour on the machine slows some inferences down, what is not warm yet slows all of them: hence the fastest. A block
    takes 10 ms and 5 inferences at least, or a fifteenth of the limit where that is less; the very first inference belongs to none.
    """
    limit_ns = limit_seconds * 1e9
    start = time.perf_counter_ns()
    _time_block(loaded, 1, 0)
    blocks: list[list[int]] = []
    while True:
        blocks.append(_warm_block(loaded, limit_ns))
        recent = blocks[-STEADY_BLOCKS:]
        fastest = [min(block) for block in recent]
        loaded.steady = len(recent) == STEADY_BLOCKS and max(fastest) <= (1 + STEADY_SHARE) * min(fastest)
        if loaded.steady or (len(blocks) >= MOST_SLOW_BLOCKS and time.perf_counter_ns() - start >= limit_ns):
            break
    loaded.expected_ns = max(1.0, median(one for block in recent for one in block))


def _warm_block(loaded: Loaded, limit_ns: float) -> list[int]:
    times: list[int] = []
    start = time.perf_counter_ns()
    while True:
        times += _time_block(loaded, 1, 0)
        spent = time.perf_counter_ns() - start
        if (len(times) >= WARM_INFERENCES and spent >= WARM_BLOCK_NS) or spent >= limit_ns / (STEADY_BLOCKS * WARM_INFERENCES):
            return times


def take_turns(
    contenders: Sequence[Contender], rounds: int, seconds: float, groups: int = 1, done: Callable[[int], None] = lambda number: None
) -> None:
    """Times every contender once a round, for ``seconds`` each in all, but at least one inference a round.

    Args:
        contenders: Who takes part; their sessions are warm.
        rounds: Number of rounds.
        seconds: Time budget of each contender.
        groups: Number of groups of rounds, see :func:`group`; the sessions of a contender take turns from group to group.
        done: Called with the number of rounds done.
    """
    block_ns = seconds * 1e9 / rounds
    slowest_ns = max(contender.expected_ns for contender in contenders)
    lead_in = LEAD_IN if slowest_ns * LEAD_IN_FROM <= block_ns else 0
    with _no_garbage_collection():
        for number in range(rounds):
            turn = number // (2 * groups) * 2 + number % 2
            for contender in turn_order(contenders, turn):
                loaded = contender.sessions[group(number, groups) % len(contender.sessions)]
                planned = max(1, int(block_ns / contender.expected_ns))
                stride = -(-planned * rounds // MAX_KEPT)
                _time_block(loaded, lead_in, block_ns)
                times = _time_block(loaded, planned, block_ns)
                contender.rounds_ns.append(times[number % stride :: stride] or times[:1])
            done(number + 1)


def group(number: int, groups: int) -> int:
    """Returns the group of a round: two neighbouring rounds belong together, and the groups come round and round."""
    return number // 2 % groups


def turn_order(items: Sequence[AnyItem], number: int) -> list[AnyItem]:
    """Returns who goes when in a round: rotating every two rounds, and every odd round backwards (A B, B A)."""
    shift = number // 2 % len(items)
    order = [*items[shift:], *items[:shift]]
    return order[::-1] if number % 2 else order


def _time_block(loaded: Loaded, inferences: int, budget_ns: float) -> list[int]:
    """Times inferences one by one; stops early when the budget is used up, but not before the first."""
    clock, run, feed = time.perf_counter_ns, loaded.session.run, loaded.feed
    times = []
    deadline = clock() + budget_ns
    for _ in range(inferences):
        batch = next(feed)
        start = clock()
        run(batch)
        end = clock()
        times.append(end - start)
        if end >= deadline:
            break
    return times


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps Python's collector from stopping the clock of whoever is being timed."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
