"""Holds a comparison against its targets: no worse than the best peer, and repaired wherever a peer can do it."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from toolkit.stats.proportions import holm, mcnemar_p, paired_difference_interval

OURS = "ours, "
REPAIRED = "ours, ladder"
PLAIN = "ours, static"
_NEAR, _REPAIRED = 0.01, 0.005
_LEVEL = 0.05


def judge(rows: list[dict[str, Any]]) -> list[str]:
    """Says of each network and format whether the targets hold, a sentence each.

    Args:
        rows: Those of one run; ``right`` is which samples a file gets right, a digit each.
    """

    return [line for (network, format), group in groupby(rows, _cell) for line in _judge(f"{network}, {format}", list(group))]


def together(rows: list[dict[str, Any]]) -> str:
    """Says how many files are below the best peer, each comparison on its own and all of them together.

    The best of several peers is the luckiest one, and one in forty of many comparisons fails by chance: Holm's correction bounds the chance
    of any false one among all.
    """
    chances, below = [], 0
    for _, group in groupby(rows, _cell):
        mine, best = _sides(list(group))
        for row in mine if best else ():
            _, _, high = difference(row["right"], best["right"])
            below += high < 0
            _, lost, gained, _ = _counts(row["right"], best["right"])
            chances.append(mcnemar_p(lost, gained) if lost > gained else 1.0)
    sure = sum(one < _LEVEL for one in holm(chances))
    return f"{below} of {len(chances)} comparisons with the best peer are below it beyond their own interval, {sure} after Holm's correction"


def _cell(row: dict[str, Any]) -> tuple[str, str]:
    return row["network"], row["format"]


def _sides(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    """Our files that are judged, and the best peer's."""
    made = [row for row in rows if "reason" not in row]
    peers = [row for row in made if not row["maker"].startswith(OURS)]
    mine = [row for row in made if row["maker"].startswith(OURS) and row["maker"] != PLAIN]
    return mine, max(peers, key=lambda row: row["accuracy"][0], default=None)


def _judge(what: str, rows: list[dict[str, Any]]) -> list[str]:
    ours, best = _sides(rows)
    failed = [f"{what}: MISSED, {row['maker']} made no file: {row['reason']}" for row in rows if "reason" in row and row["maker"].startswith(OURS)]
    if not best:
        return failed
    return failed + [_beside(what, row, best) for row in ours] + _repaired(what, ours, best)


def _beside(what: str, mine: dict[str, Any], best: dict[str, Any]) -> str:
    value, low, high = difference(mine["right"], best["right"])
    verdict, points = "MISSED" if high < 0 else "holds", f"{100 * value:+.2f} pp [{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{what}: {verdict}, {mine['maker']} {points} to {best['maker']}, the best peer, n={mine['n']}"


def _repaired(what: str, ours: list[dict[str, Any]], best: dict[str, Any]) -> list[str]:
    repaired = next((row for row in ours if row["maker"] == REPAIRED), None)
    if repaired is None or best["change"][0] < -_NEAR:
        return []
    verdict = "holds" if repaired["change"][0] >= -_REPAIRED else "MISSED"
    return [f"{what}: {verdict}, {REPAIRED} {100 * repaired['change'][0]:+.2f} pp to float, where {best['maker']} is within a point"]


def difference(mine: str, other: str) -> tuple[float, float, float]:
    """The paired difference of two accuracies with its 95 % interval."""
    return paired_difference_interval(*_counts(mine, other))


def _counts(mine: str, other: str) -> tuple[int, int, int, int]:
    """Samples that both get right, only the other one, only mine, and none."""
    a, b = (np.array(list(one)) == "1" for one in (mine, other))
    return int((a & b).sum()), int((b & ~a).sum()), int((a & ~b).sum()), int((~a & ~b).sum())
