"""Makes a split where nobody made one: a share of every class, and never a part of a group."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from toolkit.errors import InputRejected


def divide(labels: Sequence[Hashable], groups: Sequence[Hashable], share: float, seed: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Divides samples into training and evaluation.

    Whole groups are drawn, in random order, into the evaluation split for as long as the classes of their samples have room there: a group
    goes where it fills more of the missing than it overfills. Every class keeps a sample on the training side.

    Args:
        labels: Class of each sample.
        groups: What each belongs to; samples of one group, such as a patient's pictures or copies of one file, stay together.
        share: Share of each class that is wanted for evaluation, 0..1.
        seed: Seed of the order of groups.
        where: The origin, for messages.

    Returns:
        Rows to train on and rows to evaluate, ascending.

    Raises:
        InputRejected: No division leaves samples on both sides.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    total = Counter(labels)
    wanted = {label: max(1, round(share * count)) if count > 1 else 0 for label, count in total.items()}
    taken: Counter[Hashable] = Counter()
    chosen: list[int] = []
    order = list(members)
    for place in np.random.default_rng(seed).permutation(len(order)):
        rows = members[order[place]]
        added = Counter(labels[row] for row in rows)
        fills = sum(min(count, max(0, wanted[label] - taken[label])) for label, count in added.items())
        leaves = all(total[label] - taken[label] - count > 0 for label, count in added.items())
        if 2 * fills > len(rows) and leaves:
            taken += added
            chosen += rows
    if not chosen or len(chosen) == len(labels):
        told = f"no {share:.0%} of {len(labels)} samples in {len(order)} groups can be held out for evaluation"
        raise InputRejected(told, where=where, hint="give data.eval, more samples, or smaller groups")
    held = np.sort(np.array(chosen, np.int64))
    return np.setdiff1d(np.arange(len(labels)), held), held
