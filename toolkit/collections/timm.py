"""Timm's image models, by name: ``timm:mobilenetv4_conv_small``, with or without the tag of its weights."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.collections.examples import RANDOM_START, RANDOM_WEIGHTS, images, is_weights_file, online, seeded, settle
from toolkit.errors import ConfigError, InputRejected, SetupError
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.mistakes import nearest
from toolkit.plugins import Built, Collection
from toolkit.weights import load_weights, start_from

_TASK = "image-classification"
_DEFAULT = "DEFAULT"
_HUB = "huggingface.co"


class Timm:
    """Builds timm's models with random weights, timm's own, or those of a file."""

    name = "timm"
    version = 2
    framework = "torch"
    modules: tuple[str, ...] = ("torch", "timm")
    distributions: tuple[str, ...] = ("torch", "timm")
    extra = "edgekit[all]"

    def build(self, model: str, *, weights: str | None = None, task: str | None = None, classes: Sequence[str] = ()) -> Built:
        """Builds a model; see :meth:`toolkit.plugins.Collection.build`.

        Args:
            model: Name in timm, with or without a tag: ``mobilenetv4_conv_small.e2400_r224_in1k``.
            weights: ``DEFAULT`` or a tag; a ``.safetensors`` file; ``None`` for random weights of seed 0.
            task: ``image-classification``, the only one.
            classes: Names of the classes to train it for.

        Raises:
            ConfigError: There are no such models or weights, or another task was asked for.
            InputRejected: The weights do not fit.
            SetupError: The weights are not on this machine and cannot be downloaded.
        """
        import timm

        if task not in (None, _TASK):
            raise ConfigError(f"timm's models do {_TASK}, not {task}", where="model.task", hint=f"write {_TASK}, or leave the task out")
        from_file = is_weights_file(weights, trained=bool(classes))
        own = weights is not None and not from_file
        _check_name(model, weights if own else None)
        tagged = f"{model.partition('.')[0]}.{weights}" if own and weights != _DEFAULT else model
        with seeded():
            count = {"num_classes": len(classes)} if classes else {}
            built = (_pretrained(tagged, count) if own else timm.create_model(tagged, pretrained=False, **count)).eval()
            data = timm.data.resolve_model_data_config(built)
            pictures = images(*data["input_size"])
            if weights is None:
                settle(built, pictures)
        replaced = _replaced(built) if own and classes else []
        if from_file and classes:
            replaced = start_from(built, Path(str(weights)), lambda name: name.startswith(_heads(built)))
        elif from_file:
            load_weights(built, Path(str(weights)))
        notes = (RANDOM_START if classes else RANDOM_WEIGHTS,) if weights is None else ()
        labels = tuple(classes) or (_labels(built) if own else ())
        return Built(built.eval(), {"image": pictures}, ("logits",), _TASK, labels, notes, tuple(replaced))


COLLECTION: Collection = Timm()


def _check_name(model: str, weights: str | None) -> None:
    import timm

    architecture, _, tag = model.partition(".")
    if ":" in model or "/" in model:
        hint = "give a name that timm.list_models() has; weights of a hub's repository as a file: weights = file.safetensors"
        raise ConfigError(f"{model!r} is a repository, not the name of a model", where="timm", hint=hint)
    if not timm.is_model(architecture):
        raise ConfigError(f"timm has no model {architecture!r}", where="timm", hint=nearest(architecture, timm.list_models()))
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*") + timm.list_pretrained(architecture)]
    if weights == _DEFAULT and not tags:
        raise ConfigError(
            f"timm has no weights of {architecture}", where="weights", hint="give a .safetensors file, or leave weights out for random ones"
        )
    wanted = tag or (weights if weights not in (None, _DEFAULT) else "")
    if wanted and wanted not in tags:
        known = [_DEFAULT, *sorted(set(filter(None, tags)))]
        raise ConfigError(f"timm has no weights {wanted!r} of {architecture}", where="weights", hint=nearest(wanted, known))


def _heads(model: Any) -> tuple[str, ...]:
    """How the names of tensors of a model's last layers begin; a distilled one has two."""
    named = model.pretrained_cfg["classifier"]
    return tuple(f"{one}." for one in ([named] if isinstance(named, str) else named))


def _replaced(model: Any) -> list[dict[str, Any]]:
    """What timm did not take from its weights: the last layers, where the weights are for another number of classes."""
    before, heads = model.pretrained_cfg["num_classes"], _heads(model)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if name.startswith(heads)}
    return [{"name": name, "file": [before, *shape[1:]], "model": shape} for name, shape in shapes.items() if model.num_classes != before]


def _pretrained(model: str, options: dict[str, Any]) -> Any:
    """Creates a model with timm's weights: those in the cache of downloads, else from the network."""
    import timm

    settings = timm.models.get_pretrained_cfg(model)
    repository = (settings.hf_hub_id or "").rstrip("/") if settings else ""
    repository = f"{repository}/{settings.architecture}.{settings.tag}" if repository == "timm" else repository
    where, file = f"timm:{model}", f"https://{_HUB}/{repository}/resolve/main/model.safetensors"
    hint = f"download {file} elsewhere and give it: weights = model.safetensors"
    what = f"the weights of {model} are not on this machine"
    if not _cached(repository) and not online(_HUB):
        raise SetupError(f"{what}, and {_HUB} cannot be reached", where=where, hint=hint)
    try:
        return timm.create_model(model, pretrained=True, **options)
    except (*CODE_ERRORS, pickle.UnpicklingError) as error:
        if isinstance(error, OSError):
            raise SetupError(f"{what}, and cannot be downloaded: {first_line(error)}", where=where, hint=hint) from error
        raise InputRejected(f"the weights cannot be loaded: {first_line(error)}", where=where, hint=hint) from error


def _cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    offline = bool(os.environ.get("HF_HUB_OFFLINE"))  # the library then says itself what is missing, and at once
    return offline or (bool(repository) and isinstance(try_to_load_from_cache(repository, "model.safetensors"), str))


def _labels(model: Any) -> tuple[str, ...]:
    """Names of ImageNet's classes, where the weights were trained on one of its known sets."""
    import timm

    subset = timm.data.infer_imagenet_subset(model)
    if not subset:
        return ()
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))
