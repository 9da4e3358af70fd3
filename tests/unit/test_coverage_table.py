"""The coverage table: which models it has, what it says of a cell, and its bars. No model is converted here."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.coverage import FORMATS, child, table
from benchmarks.coverage.cells import Cell, Side
from benchmarks.coverage.models import models

ONLY_OURS = Cell("keras:lstm", "pte", Side(route="keras_torch", ok=True, seconds=9.0, start_seconds=8.0, sqnr_db=120.0, size_mb=1.0), None)


def cell(ours_ms: float = 1.0, peer_ms: float = 1.0, *, ours: dict | None = None, peer: dict | None = None) -> Cell:
    good = {"ok": True, "sqnr_db": 100.0, "size_mb": 1.0, "seconds": 10.0}
    mine = Side(**{"route": "torch_onnx", **good, "start_seconds": 4.0, "latency_ms": ours_ms, **(ours or {})})
    return Cell("timm:net", "onnx", mine, Side(route="torch.onnx.export", **{**good, "seconds": 5.0, "latency_ms": peer_ms, **(peer or {})}))


def figures(*cells: Cell) -> dict:
    return {figure.name.removeprefix("coverage."): figure for figure in table.summary(cells)}


def test_the_table_has_the_models_that_were_promised():
    assert Counter(name.split(":")[0] for name in models()) == {"torchvision": 14, "timm": 10, "transformers": 10, "keras": 4, "jax": 2}


def test_every_peer_is_a_call_and_of_a_format():
    assert set(child.PEERS.values()) <= set(child.BARE)
    assert {format for _, format in child.PEERS} <= set(FORMATS)


def test_a_conversion_is_compared_without_the_start_of_its_worker():
    assert cell().seconds_ratio == pytest.approx((10 - 4) / 5)
    assert cell(peer={"ok": False}).seconds_ratio is None and ONLY_OURS.seconds_ratio is None


def test_a_slower_file_says_what_it_has_more():
    slow = cell(2.0, ours={"operators": {"Mul": 19, "Conv": 2}}, peer={"operators": {"Conv": 2, "Add": 1}})
    assert slow.latency_ratio == 2.0 and slow.difference == "-1 Add, +19 Mul"
    assert "- timm:net, onnx: 2.00 x, -1 Add, +19 Mul" in table.markdown([slow])
    assert cell(ours={"operators": {"Conv": 2}}, peer={"operators": {"Conv": 2}}).difference == "the same operators"


def test_bars_hold_and_break():
    lost = cell(ours={"ok": False, "code": "parity", "reason": "far off", "seconds": None})
    held = figures(cell(), ONLY_OURS)
    assert {name: held[name].holds for name in ("passed", "lost", "more", "latency")} == dict.fromkeys(("passed", "lost", "more", "latency"), True)
    broken = figures(cell(2.0), lost)
    assert {name: broken[name].holds for name in ("passed", "lost", "more", "latency")} == dict.fromkeys(("passed", "lost", "more", "latency"), False)
    assert broken["slower"].value == 1 and broken["longer"].value == 1
    assert "`parity`: far off" in table.markdown([lost])


def test_what_was_written_is_read_again(tmp_path):
    cells = [cell(), ONLY_OURS]
    table.write(cells, tmp_path)
    assert table.read(tmp_path) == cells and table.read(tmp_path / "none") == []


def test_trust_is_what_to_expect_of_the_next_model():
    refused = {"route": "torch_onnx", "outcome": "passed over", "code": "unsupported-operator"}
    failed, unasked = {"route": "torch_onnx", "outcome": "failed", "code": "parity"}, {"route": "other", "outcome": "passed over", "code": "option"}
    cells = [cell(), cell(), *(cell(ours={"route": "torch_litert", "attempts": [one]}) for one in (refused, failed, unasked))]
    assert table.trust(cells) == {"torch_litert": (3, 3, 0.8), "torch_onnx": (2, 4, 0.5)}
    assert "| torch_onnx | 2 | 4 | 0.50 |" in table.markdown(cells)
