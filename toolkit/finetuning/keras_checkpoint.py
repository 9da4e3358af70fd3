"""Where the training of a Keras model stood: everything that decides how it goes on, so that a resumed run ends as the unbroken one does."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.factory import CODE_ERRORS
from toolkit.finetuning.checkpoint import Position

NAME = "checkpoint.npz"


@dataclass
class KerasCheckpoint:
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

    def write(self, at: Position, variables: Mapping[str, Sequence[Any]], generator: np.random.Generator) -> None:
        """Writes where a run stands.

        Args:
            at: How far it is.
            variables: Those of the model, which has the states of its dropout among them, of the optimizers, and of a moving average.
            generator: The generator of the order of rows.
        """
        assert at.order is not None
        plain = {"epoch": at.epoch, "step": at.step, "done": at.done, "summed": at.summed, "history": at.history}
        text = json.dumps({"position": plain, "rows": generator.bit_generator.state})
        arrays = {f"{part}.{place}": one.numpy() for part, found in variables.items() for place, one in enumerate(found)}
        arrays |= {f"best.{place}": np.asarray(array) for place, array in at.weights.items()}
        new = self.folder / f"{NAME}.new"
        with new.open("wb") as file:
            np.savez(file, text=np.array(text), order=at.order, **arrays)
        new.replace(self.folder / NAME)
        self._written = time.monotonic()

    def read(self, variables: Mapping[str, Sequence[Any]], generator: np.random.Generator) -> Position | None:
        """Puts everything back to where the last checkpoint was; ``None`` where there is none that can be read."""
        try:
            with np.load(self.folder / NAME, allow_pickle=False) as file:
                arrays = dict(file)
        except (*CODE_ERRORS, EOFError, zipfile.BadZipFile):
            return None
        text = json.loads(str(arrays["text"]))
        for part, found in variables.items():
            for place, one in enumerate(found):
                one.assign(arrays[f"{part}.{place}"])
        generator.bit_generator.state = text["rows"]
        count = sum(name.startswith("best.") for name in arrays)
        weights: dict[str, Any] = {str(place): arrays[f"best.{place}"] for place in range(count)}
        return Position(**text["position"], order=arrays["order"], weights=weights)
