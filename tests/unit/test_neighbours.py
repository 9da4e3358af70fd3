"""How busy others keep the machine, from a /proc/stat of our own."""

import os

import pytest

from toolkit.measure import neighbours


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sets the ticks of a two-CPU machine and the clocks; busy are the first three columns and those after idle and iowait."""
    monkeypatch.setattr(neighbours, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sysconf", lambda name: 100)

    def set_to(seconds, busy_ticks, own_seconds):
        (tmp_path / "stat").write_text(f"cpu  {busy_ticks} 0 0 {10_000 - busy_ticks} 50 0 0 0 {busy_ticks} 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
        monkeypatch.setattr(neighbours.time, "perf_counter", lambda: seconds)
        monkeypatch.setattr(neighbours.time, "process_time", lambda: own_seconds)

    return set_to


@pytest.mark.parametrize(("busy_ticks", "own_seconds", "expected"), [(1500, 5.0, 1.0), (1000, 5.0, 0.5), (500, 5.0, 0.0), (400, 5.0, 0.0)])
def test_what_others_used_is_all_less_our_own(machine, busy_ticks, own_seconds, expected):
    machine(100.0, 200, 3.0)
    others = neighbours.watch()
    machine(110.0, 200 + busy_ticks, 3.0 + own_seconds)
    assert others() == pytest.approx(expected)


def test_nobody_knows_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(neighbours, "_STAT", tmp_path / "none")
    assert neighbours.watch()() is None
