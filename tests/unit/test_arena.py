"""The arena is checked against what no arena can beat, and against the best of all orders of placing a few tensors."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.audit.arena import ALIGNMENT, Life, Step, arena_bytes, lives

tensors = st.builds(lambda size, first, length: Life(size, first, first + length), st.integers(0, 2000), st.integers(0, 6), st.integers(0, 4))


def aligned(size):
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def floor_bytes(found):
    """What lives at one moment needs at least its own size."""
    return max((sum(aligned(one.size_bytes) for one in found if one.first <= now <= one.last) for now in range(12)), default=0)


def best_bytes(found):
    """The smallest arena of all orders in which tensors can be put at the lowest place that is free: this one is optimal."""
    best = None
    for order in permutations(found):
        placed = []
        for one in order:
            taken = sorted((start, end) for start, end, other in placed if other.first <= one.last and one.first <= other.last)
            place = 0
            for start, end in taken:
                if start - place >= aligned(one.size_bytes):
                    break
                place = max(place, end)
            placed.append((place, place + aligned(one.size_bytes), one))
        size = max((end for _, end, _ in placed), default=0)
        best = size if best is None else min(best, size)
    return best or 0


@given(st.lists(tensors, max_size=12))
def test_no_arena_is_smaller_than_what_lives_at_one_moment_nor_larger_than_everything(found):
    assert floor_bytes(found) <= arena_bytes(found) <= sum(aligned(one.size_bytes) for one in found)


@settings(max_examples=60)
@given(st.lists(tensors, max_size=5))
def test_no_arena_is_smaller_than_the_best_one(found):
    assert best_bytes(found) <= arena_bytes(found)


def test_a_chain_needs_its_two_largest_neighbours():
    sizes = [640, 6400, 1280, 3200, 64]
    chain = [Life(size, max(0, place - 1), place) for place, size in enumerate(sizes)]
    assert arena_bytes(chain) == 6400 + 1280


def test_a_tensor_goes_into_the_smallest_gap_that_holds_it():
    stay, leave = [Life(size, 0, 9) for size in (1024, 448, 192)], [Life(size, 0, 2) for size in (512, 192)]
    later = [Life(192, 3, 9), *[Life(128, 3, 9)] * 4]  # 192 into the gap of 192, so that the gap of 512 holds the four others
    assert arena_bytes([*stay[:2], *leave, stay[2], *later]) == 1024 + 512 + 448 + 192 + 192


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_alignment(size, expected):
    assert arena_bytes([Life(size, 0, 1)]) == expected


def test_lifetimes_follow_the_order_of_the_file():
    steps = [Step(["x"], ["a"]), Step(["a"], ["b"]), Step(["b", "a"], ["c"]), Step(["c"], ["y", "unused"])]
    sizes = {"x": 1, "a": 2, "b": 3, "c": 4, "y": 5, "unused": 6}
    expected = [Life(1, 0, 0), Life(2, 0, 2), Life(3, 1, 2), Life(4, 2, 3), Life(5, 3, 4), Life(6, 3, 3)]
    assert lives(steps, ["x"], ["y"], sizes) == expected


def test_five_thousand_tensors_take_no_minutes():
    found = [Life(64 * (1 + number % 50), number, number + 3) for number in range(5000)]
    assert arena_bytes(found) >= floor_bytes([one for one in found if one.first < 12])
