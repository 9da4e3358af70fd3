"""Where training stood: everything that decides how it goes on, so that a resumed run ends as the unbroken one does."""

from __future__ import annotations

import pickle
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.factory import CODE_ERRORS

if TYPE_CHECKING:
    import torch

NAME = "checkpoint.pt"


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        epoch: The epoch that is running, counted from 1.
        step: Steps of it that are done.
        done: Steps of all epochs that are done.
        order: Its rows in order ``[n] int64``; ``None`` before its first step.
        summed: Sum of its losses so far.
        history: What the epochs before it gave, as plain values.
        weights: Those of the best epoch so far.
    """

    epoch: int = 1
    step: int = 0
    done: int = 0
    order: np.ndarray | None = None
    summed: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """One file that is written from time to time, at once or not at all.

    Attributes:
        folder: Where it is.
        every_seconds: How long the last one is good enough.
    """

    folder: Path
    every_seconds: float = 60.0
    _written: float = field(default_factory=time.monotonic, init=False)

    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() - self._written >= self.every_seconds

    def write(self, position: Position, parts: dict[str, Any], generator: np.random.Generator) -> None:
        """Writes where a run stands.

        Args:
            position: How far it is.
            parts: What has a ``state_dict``: the model, the optimizer, a moving average.
            generator: The generator of the order of rows. Those of PyTorch, NumPy and Python are kept too.
        """
        import torch

        kind, numbers, *rest = np.random.get_state()
        state = {
            "position": {**vars(position), "order": None if position.order is None else torch.from_numpy(position.order)},
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "rows": generator.bit_generator.state,
            "numpy": [str(kind), torch.from_numpy(np.asarray(numbers, np.int64)), *rest],
            "python": random.getstate(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        new = self.folder / f"{NAME}.new"
        torch.save(state, new)
        new.replace(self.folder / NAME)
        self._written = time.monotonic()

    def read(self, parts: dict[str, Any], generator: np.random.Generator) -> Position | None:
        """Puts everything back to where the last checkpoint was; ``None`` where there is none that can be read."""
        import torch

        try:
            state = torch.load(self.folder / NAME, map_location="cpu", weights_only=True)
        except (*CODE_ERRORS, pickle.UnpicklingError, EOFError):
            return None
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        generator.bit_generator.state = state["rows"]
        kind, numbers, *rest = state["numpy"]
        np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
        random.setstate(state["python"])
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
        position = Position(**state["position"])
        position.order = None if position.order is None else np.asarray(position.order)
        return position
