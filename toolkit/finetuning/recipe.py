"""The numbers of a training run: rows in batches, a held-out share, learning rates and weights.

The cosine is Loshchilov and Hutter's, "SGDR" (2017), without restarts; the warm-up is Goyal et al., "Accurate, Large Minibatch SGD" (2017); a
learning rate for each block is Howard and Ruder's, "Universal Language Model Fine-tuning for Text Classification" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from toolkit.finetuning.blocks import Block


def schedule(step: int, steps: int, warmup: float) -> float:
    """Returns the factor on the peak learning rate: a line up to 1 in the first share of steps, then half a cosine towards 0.

    Args:
        step: Counted from 0.
        steps: All steps of the run.
        warmup: Share of steps that warm up, 0..1.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cuts rows into batches; a single row left over joins the batch before, because batch norm cannot learn from one value."""
    cuts = [order[start : start + size] for start in range(0, len(order), size)]
    if size > 1 and len(cuts) > 1 and len(cuts[-1]) == 1:
        last = cuts.pop()
        cuts[-1] = np.concatenate([cuts[-1], last])
    return cuts


def class_weights(label: np.ndarray) -> np.ndarray:
    """Returns what one sample of each class weighs so that all classes weigh the same, ``n / (classes * samples of it)``.

    King and Zeng, "Logistic Regression in Rare Events Data" (2001). A class without samples weighs one.
    """
    counts = np.bincount(label)
    present = counts > 0
    return np.where(present, len(label) / (present.sum() * np.maximum(counts, 1)), 1.0)


def parameter_groups(model: torch.nn.Module, weight_decay: float, parts: Sequence[Block] = (), layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups trainable parameters: biases and norm scales (one axis or none) are not decayed.

    Each group has a ``factor`` on the learning rate: 1 for the last block, and ``layer_decay`` less for each block before it.
    """
    place = {id(one): len(parts) - 1 - number for number, block in enumerate(parts) for one in block.parameters} if layer_decay < 1 else {}
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for one in model.parameters():
        if one.requires_grad:
            groups.setdefault((place.get(id(one), 0), one.ndim > 1), []).append(one)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    return [{"params": found, "weight_decay": weight_decay if wide else 0.0, "factor": layer_decay**back} for (back, wide), found in ordered]
