"""What belongs beside the models: how they were trained, and what a device must do to a sample before it is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from toolkit.pipeline import deliver
from toolkit.pipeline.execute import Result

PREPROCESSING = ("classes.json", "preprocessing.json", "split.json", "tokenizer")
TRAINING = "training.json"


def copy(results: Mapping[str, Result], folder: Path) -> tuple[Path, ...]:
    """Copies what the steps left for people and devices, and returns the pictures of the training.

    Raises:
        SetupError: The folder cannot be written.
    """
    given, trained = results.get("data"), results.get("finetune")
    for name in PREPROCESSING:
        if given and given.folder and (given.folder / name).exists():
            deliver.copy(given.folder / name, folder / name)
    if not trained or not trained.folder:
        return ()
    pictures = tuple(trained.facts.get("pictures", ()))
    for name in (TRAINING, *pictures):
        deliver.copy(trained.folder / name, folder / name)
    return tuple(folder / name for name in pictures)
