"""Torchvision's models, by name: ``torchvision:mobilenet_v2``; of SSD detectors the head: ``torchvision:ssdlite320_mobilenet_v3_large#head``.

Whole detectors are left out: they end in non-maximum suppression, whose number of boxes depends on the picture, and no route gives that
a fixed shape.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.collections import detection, heads
from toolkit.collections.examples import RANDOM_START, RANDOM_WEIGHTS, SAMPLES, images, is_weights_file, online, seeded, settle
from toolkit.errors import ConfigError, InputRejected, SetupError
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.mistakes import nearest
from toolkit.plugins import Built, Collection
from toolkit.weights import load_weights, start_from

_CLASSIFICATION, _SEGMENTATION, _BOXES = "image-classification", "image-segmentation", "object-detection"
_DETECTION = (
    "is a detection model, which ends in non-maximum suppression: its number of boxes depends on the picture, and the formats here have fixed shapes"
)
_DETECTION_HINT = "return the head's boxes and scores from a factory of your own, and suppress boxes outside of the graph"
_FEW = 2  # pictures for segmentation, which are large
_INITIALIZED_SLOWLY = ("googlenet", "inception_v3")


class Torchvision:
    """Builds models of ``torchvision.models`` with random weights, torchvision's own, or those of a file."""

    name = "torchvision"
    version = 3
    framework = "torch"
    modules: tuple[str, ...] = ("torch", "torchvision")
    distributions: tuple[str, ...] = ("torch", "torchvision")
    extra = "edgekit[all]"

    def build(self, model: str, *, weights: str | None = None, task: str | None = None, classes: Sequence[str] = ()) -> Built:
        """Builds a model; see :meth:`toolkit.plugins.Collection.build`.

        Args:
            model: Name in ``torchvision.models``; ``#head`` after it takes an SSD detector without its non-maximum suppression.
            weights: ``DEFAULT`` or another of torchvision's names; a ``.safetensors`` file; ``None`` for random weights of seed 0.
            task: ``image-classification``, ``image-segmentation`` or ``object-detection``; must be what the model does.
            classes: Names of the classes to train a classifier for; auxiliary heads are dropped then.

        Raises:
            ConfigError: There are no such models or weights, or the model does another task.
            InputRejected: The weights do not fit, or are damaged.
            SetupError: The weights are not on this machine and cannot be downloaded.
        """
        does = _task_of(model)
        if task not in (None, does):
            raise ConfigError(f"{model!r} does {does}, not {task}", where="model.task", hint=f"write {does}, or leave the task out")
        if classes and does != _CLASSIFICATION:
            raise ConfigError(f"{model!r} does {does}, and only classifiers get other classes", where="model.name", hint="name a classifier")
        if classes:
            return _for_classes(model, weights, tuple(classes))
        name = model.partition("#")[0]
        entry = _entry(name, weights)
        with seeded():
            built = _construct(name, does, own=weights is not None and not is_weights_file(weights))
            size = detection.image_size(built) if does == _BOXES else getattr(built, "image_size", None) or _size(entry)
            pictures = images(3, size, size, SAMPLES if does == _CLASSIFICATION else _FEW)
            if weights is None and does != _BOXES:
                settle(built.eval(), pictures)
        if is_weights_file(weights):
            load_weights(built, Path(str(weights)))
        elif weights is not None:
            _load(built, entry, name)
        if does == _BOXES:
            return _detector(built, pictures, entry, weights)
        labels = tuple(str(label) for label in entry.meta.get("categories", ())) if weights and not is_weights_file(weights) else ()
        outputs = ("logits",) if does == _CLASSIFICATION else ("out",)
        notes = (RANDOM_WEIGHTS,) if weights is None else ()
        return Built(built.eval(), {"image": pictures}, outputs, does, labels, notes)


COLLECTION: Collection = Torchvision()


def _for_classes(name: str, weights: str | None, classes: tuple[str, ...]) -> Built:
    """A classifier to train: the weights asked for, but for a head for other classes."""
    from_file = is_weights_file(weights, trained=True)
    entry = _entry(name, None if from_file else weights)
    with seeded():
        built = _construct(name, _CLASSIFICATION, own=not from_file and weights is not None)
        head = heads.name_of(built, len(entry.meta["categories"]))
        if weights is not None and not from_file:
            _load(built, entry, name)
        replaced = heads.replace(built, head, len(classes))
        pictures = images(3, *([getattr(built, "image_size", None) or _size(entry)] * 2))
        if weights is None:
            settle(built.eval(), pictures)
    if from_file:
        replaced = start_from(built, Path(str(weights)), lambda name: name.startswith((f"{head}.", *(f"{one}." for one in heads.AUXILIARY))))
    notes = (RANDOM_START,) if weights is None else ()
    began = tuple(replaced) if weights is not None else ()
    return Built(built.eval(), {"image": pictures}, ("logits",), _CLASSIFICATION, classes, notes, began)


def _detector(built: Any, pictures: np.ndarray, entry: Any, weights: str | None) -> Built:
    """An SSD detector up to its boxes and scores. Its own normalization is part of it, so pictures are 0..1."""
    head, colours = detection.head_of(built), np.clip(0.5 + 0.25 * pictures, 0, 1).astype(np.float32)
    if weights is None:
        settle(head, colours)
    labels = tuple(str(label) for label in entry.meta.get("categories", ())) if weights and not is_weights_file(weights) else ()
    notes = (detection.NOTE, *((RANDOM_WEIGHTS,) if weights is None else ()))
    return Built(head, {"image": colours}, detection.OUTPUTS, _BOXES, labels, notes)


def _task_of(model: str) -> str:
    from torchvision import models

    name, mark, part = model.partition("#")
    if mark:
        if part == detection.HEAD and detection.has_head(name) and name in models.list_models(module=models.detection):
            return _BOXES
        hint = "leave out what stands after #"
        raise ConfigError(f"{name!r} has no part {part!r}; #{detection.HEAD} is for SSD detectors", where="torchvision", hint=hint)
    if model in models.list_models(module=models):
        return _CLASSIFICATION
    if model in models.list_models(module=models.segmentation):
        return _SEGMENTATION
    if model in models.list_models(module=models.detection):
        hint = f"name its head: torchvision:{model}#{detection.HEAD}" if detection.has_head(model) else _DETECTION_HINT
        raise ConfigError(f"{model!r} {_DETECTION}", where="torchvision", hint=hint)
    known = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
    raise ConfigError(f"torchvision has no model {model!r} for classification or segmentation", where="torchvision", hint=nearest(model, known))


def _entry(model: str, weights: str | None) -> Any:
    """Returns torchvision's entry of the weights asked for; of its default ones when they are random or the user's."""
    from torchvision import models

    known = models.get_model_weights(model)
    if weights is None or is_weights_file(weights):
        return known.DEFAULT
    found = getattr(known, weights, None) if weights.isidentifier() else None
    if not isinstance(found, known):
        names = ["DEFAULT", *(entry.name for entry in known)]
        hint = f"{nearest(weights, names)}; a file must be .safetensors"
        raise ConfigError(f"torchvision has no weights {weights!r} of {model}", where="weights", hint=hint)
    return found


def _construct(model: str, task: str, *, own: bool) -> Any:
    """Makes a model without weights, in the form that torchvision's ``own`` weights need where those will be loaded."""
    from torchvision import models

    if task == _BOXES:
        return models.get_model(model, weights=None, weights_backbone=None)
    if task == _SEGMENTATION:
        options = {} if model.startswith("lraspp") else {"aux_loss": True}  # the weights that torchvision has are of that form
        return models.get_model(model, weights=None, weights_backbone=None, **options)
    return models.get_model(model, weights=None, **({"init_weights": False, "transform_input": own} if model in _INITIALIZED_SLOWLY else {}))


def _size(entry: Any) -> int:
    """The size of the pictures that the weights' own transform makes, which crops for classification and only resizes otherwise."""
    transform = entry.transforms()
    return int((getattr(transform, "crop_size", None) or transform.resize_size)[0])


def _load(model: Any, entry: Any, name: str) -> None:
    """Loads torchvision's weights, as tensors alone: torchvision itself would run what else is in the file."""
    import torch

    file = _downloaded(entry, name)
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (*CODE_ERRORS, EOFError, pickle.UnpicklingError) as error:
        raise InputRejected(f"is not torchvision's file of weights: {first_line(error)}", where=str(file), hint="download it again") from error


def _downloaded(entry: Any, model: str) -> Path:
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    if file.is_file():
        return file
    host = entry.url.split("/")[2]
    what = f"the weights {entry.name} of {model} are not on this machine"
    hint = f"download {entry.url} elsewhere and put it at {file}, or give a file of your own: weights = file.safetensors"
    if not online(host):
        raise SetupError(f"{what}, and {host} cannot be reached", where="torchvision", hint=hint)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(file), hash_prefix=file.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError) as error:
        raise SetupError(f"{what}, and cannot be downloaded: {first_line(error)}", where="torchvision", hint=hint) from error
    return file
