"""Models of Hugging Face transformers, by folder or hub id: ``transformers:./my-model``, ``transformers:./whisper#encoder``.

What a model does, and which class does it, comes from its configuration and Optimum's ``TasksManager``; shapes of inputs come
from Optimum's dummy inputs. Code in a model's repository is never run, and weights are read from ``.safetensors`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.collections import transformers_files, transformers_inputs
from toolkit.collections.examples import RANDOM_START, RANDOM_WEIGHTS, is_weights_file, seeded
from toolkit.errors import ConfigError, InputRejected
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.mistakes import nearest
from toolkit.plugins import Built, Collection
from toolkit.weights import load_weights, start_from

_ENCODER = "encoder"
_FEATURES = "feature-extraction"
# An encoder-decoder does these in one pass; for all others its decoder runs again for every token.
_ONE_PASS = ("text-classification", "question-answering", "token-classification")
# With transformers' own 0.02 all outputs of a randomly initialized model are nearly alike.
_RANDOM_SPREAD = 0.1
# Plain matrix products and a softmax; the fused operator converts to the same but for its masks, which not every route takes.
_ATTENTION = "eager"


class Transformers:
    """Builds transformers models of any task that Optimum knows, from a folder, the hub's cache or the hub."""

    name = "transformers"
    version = 2
    framework = "torch"
    modules: tuple[str, ...] = ("torch", "transformers", "optimum", "safetensors")
    distributions: tuple[str, ...] = ("torch", "transformers", "optimum", "safetensors")
    extra = "edgekit[torch,hf]"

    def build(self, model: str, *, weights: str | None = None, task: str | None = None, classes: Sequence[str] = ()) -> Built:
        """Builds a model; see :meth:`toolkit.plugins.Collection.build`.

        Args:
            model: A folder with ``config.json``, or an id on the hub; ``#encoder`` after it takes the encoder of an encoder-decoder.
            weights: ``None`` for the folder's own, or random ones of seed 0 where it has none; or another ``.safetensors`` file.
            task: What it shall do; by default what the class named in its configuration does.
            classes: Names of the classes to train a classifier for; the weights may be those of a model without a head.

        Raises:
            ConfigError: There is no such folder, task or part, or the model does not do that task.
            InputRejected: The configuration or the weights cannot be used.
            SetupError: The model would have to be downloaded and cannot be.
        """
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        place, _, part = model.partition("#")
        folder = transformers_files.folder(place)
        config = _config(folder)
        task = _task(config, task)
        _check_part(config, part, task, model)
        kind = _class(config, task)
        if classes:
            _name_classes(config, part, task, tuple(classes))
        if weights is not None and not is_weights_file(weights, trained=bool(classes)):
            hint = "leave weights out for the folder's own, or give a .safetensors file"
            raise ConfigError(f"transformers has no weights called {weights!r}", where="weights", hint=hint)
        notes: list[str] = transformers_files.notes(folder)
        replaced: list[dict[str, Any]] = []
        with seeded():
            if weights is not None:
                whole = _random(kind, config, folder)
                if classes:
                    replaced = start_from(whole, Path(weights), lambda name: _in_head(whole, name))
                else:
                    load_weights(whole, Path(weights))
            elif transformers_files.has_weights(folder):
                whole, replaced = _load_for_classes(kind, config, folder) if classes else (_load(kind, config, folder), [])
            else:
                notes.append(RANDOM_START if classes else RANDOM_WEIGHTS)
                config.initializer_range = _RANDOM_SPREAD
                whole = _random(kind, config, folder)
            chosen = whole.get_encoder() if part else whole
            examples = transformers_inputs.make(chosen.eval(), _FEATURES if part else task, folder)
        if part:
            notes.append(f"it is the encoder of a {config.model_type} model alone; the decoder is left out")
        labels = tuple(classes) or (() if part else _labels(config, task))
        return Built(chosen, examples, _outputs(chosen, examples), _FEATURES if part else task, labels, tuple(notes), tuple(replaced))


COLLECTION: Collection = Transformers()


def _config(folder: Path) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except CODE_ERRORS as error:
        own = "custom code" in str(error)
        hint = (
            "code in a model's folder is never run; build such a model in a factory of your own"
            if own
            else "give a folder that save_pretrained wrote"
        )
        raise InputRejected(f"has no configuration that transformers can read: {first_line(error)}", where=str(folder), hint=hint) from error
    for one in (config, *(getattr(config, name) for name in ("text_config", "decoder", "encoder") if hasattr(config, name))):
        if hasattr(one, "use_cache"):
            one.use_cache = False  # keys and values of earlier tokens would become outputs
    return config


def _task(config: Any, task: str | None) -> str:
    """Returns the task asked for, by the name that Optimum knows it by; else the one of the class that the configuration names."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    known = sorted(TasksManager.get_all_tasks())
    if task is not None:
        found = str(TasksManager.map_from_synonym(task))
        if found not in known:
            raise ConfigError(f"there is no task {task!r}", where="model.task", hint=nearest(task, known))
        return found
    for name in config.architectures or ():
        architecture = getattr(transformers, name, None)
        try:
            if architecture is not None:
                return str(TasksManager.infer_task_from_model(architecture))
        except (ValueError, KeyError):
            continue
    named = ", ".join(config.architectures or ()) or "no class"
    raise ConfigError(
        f"its configuration names {named}, which does not tell what it does", where="model.task", hint="say it: task = feature-extraction"
    )


def _check_part(config: Any, part: str, task: str, model: str) -> None:
    """An encoder-decoder runs its decoder once for every token, so that only its parts are programs of fixed shapes."""
    whole = bool(getattr(config, "is_encoder_decoder", False) or config.model_type in ("encoder-decoder", "vision-encoder-decoder"))
    if part and (part != _ENCODER or not whole):
        known = f"write {model.partition('#')[0]}#{_ENCODER}" if whole else "leave out what stands after #"
        raise ConfigError(f"a {config.model_type} model has no part {part!r}", where=model, hint=known)
    if whole and not part and task not in _ONE_PASS:
        what = f"is a {config.model_type} model of an encoder and a decoder, which runs again for every token: {task} is no single program"
        raise ConfigError(what, where=model, hint=f"name the part to export: transformers:{model}#{_ENCODER}")


def _class(config: Any, task: str) -> Any:
    from optimum.exporters.tasks import TasksManager

    try:
        kind = TasksManager.get_model_class_for_task(task, model_type=config.model_type)
    except (KeyError, ValueError, AttributeError) as error:
        raise _not_done(config, task) from error
    mapping = getattr(kind, "_model_mapping", None)
    if mapping is not None and type(config) not in mapping:
        raise _not_done(config, task)
    return kind


def _not_done(config: Any, task: str) -> ConfigError:
    named = ", ".join(config.architectures or ()) or "none"
    hint = f"its configuration names {named}; leave the task out to take that"
    return ConfigError(f"a {config.model_type} model does not do {task}", where="model.task", hint=hint)


def _random(kind: Any, config: Any, folder: Path) -> Any:
    make = getattr(kind, "from_config", None) or kind._from_config
    try:
        return make(config, attn_implementation=_ATTENTION)
    except CODE_ERRORS as error:
        raise InputRejected(f"its configuration builds no model: {first_line(error)}", where=str(folder), hint="mend config.json") from error


def _name_classes(config: Any, part: str, task: str, classes: tuple[str, ...]) -> None:
    """Makes a configuration that of a classifier for these classes."""
    if part or not task.endswith("-classification") or task == "token-classification":
        what = f"only whole classifiers get classes, not one for {task}" if not part else f"the {part} alone is no classifier"
        raise ConfigError(what, where="model.name", hint="leave out model.task, or what stands after #")
    config.id2label, config.label2id = dict(enumerate(classes)), {name: index for index, name in enumerate(classes)}


def _in_head(model: Any, name: str) -> bool:
    """Whether a tensor is no part of what all models of an architecture have below their heads, or of a pooler, which many are saved without."""
    return not name.startswith(f"{model.base_model_prefix}.") or "pooler" in name


def _load_for_classes(kind: Any, config: Any, folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Loads the folder's weights, but for a head that it has not, or has for another number of classes; says what began afresh."""
    model, fresh = _read(kind, config, folder, {"ignore_mismatched_sizes": True})
    alien = [name for name in fresh if not _in_head(model, name)]
    if alien:
        what = f"lacks {len(alien)} weights of {type(model).__name__} below its head, such as {alien[0]}"
        raise InputRejected(what, where=str(folder), hint="give the folder of a model of this architecture, whole")
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return model, [{"name": name, "file": shape, "model": shapes[name]} for name, shape in fresh.items()]


def _load(kind: Any, config: Any, folder: Path) -> Any:
    """Loads the folder's weights; every weight of the class must be there. A pooler that is not there is left out of the model."""
    model, missing = _read(kind, config, folder, {})
    if missing and all("pooler" in name for name in missing):
        model, missing = _read(kind, config, folder, {"add_pooling_layer": False})
    if missing:
        what = f"lacks {len(missing)} weights of {type(model).__name__}, such as {next(iter(missing))}"
        raise InputRejected(what, where=str(folder), hint="name the task that these weights were trained for: model.task")
    return model


def _read(kind: Any, config: Any, folder: Path, options: dict[str, Any]) -> tuple[Any, dict[str, list[int] | None]]:
    """Loads the folder's weights; also returns what of the model was not in it, with the shape it has there, or ``None``."""
    import torch
    from safetensors import SafetensorError

    try:
        model, told = kind.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation=_ATTENTION,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except (*CODE_ERRORS, SafetensorError) as error:
        raise InputRejected(f"its weights cannot be loaded: {first_line(error)}", where=str(folder), hint="save the model again") from error
    missing = dict.fromkeys(told["missing_keys"]) | {name: list(shape) for name, shape, *_ in told["mismatched_keys"]}
    return model, dict(sorted(missing.items()))


def _outputs(model: Any, examples: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Names of the outputs that are tensors, without what the first half of an encoder-decoder gave to the second.

    Empty where the model does not take the made up examples: samples of the user's may do.
    """
    import torch

    try:
        with torch.inference_mode():
            found = model(**{name: torch.from_numpy(column[:1]) for name, column in examples.items()})
    except CODE_ERRORS:
        return ()
    return tuple(name for name, value in found.items() if isinstance(value, torch.Tensor) and name != "encoder_last_hidden_state")


def _labels(config: Any, task: str) -> tuple[str, ...]:
    """Names of the classes in their order; transformers makes up ``LABEL_0`` and so on where nobody gave any."""
    if not task.endswith(("classification", "segmentation", "detection")):
        return ()
    names = [str(config.id2label[index]) for index in sorted(config.id2label)]
    return () if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else tuple(names)
