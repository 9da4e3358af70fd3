"""Where a model comes from: a project's factory, a name in a collection, or a file. Each becomes the step ``source``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import plugins
from toolkit.config import PROJECT_FILE, Conversion, Model, Parity
from toolkit.errors import ConfigError
from toolkit.mistakes import nearest
from toolkit.pipeline.conversion import dynamic_option
from toolkit.pipeline.steps import PARITY, PROJECT, Fact, Need, Step, audit, wire
from toolkit.sources import variants
from toolkit.training import Finetune

STAGE = "toolkit.sources.stage:run"
TRAINED = Need("finetune", "weights.safetensors")
SAVED = "transformers"
CONFIG = "config.json"


@dataclass(frozen=True)
class Named:
    """A model of a collection.

    Attributes:
        collection: Name of the collection.
        model: The model's name there; empty where it is a folder.
        folder: The folder that the model is in; ``None`` where the collection knows it by its name alone.
        weights: The collection's name of the weights, or a file; random ones where the collection can do that.
        task: What the model shall do, where its name leaves that open.
    """

    collection: str
    model: str
    folder: Path | None = None
    weights: str | Path | None = None
    task: str | None = None

    @property
    def source(self) -> plugins.Source:
        """The source that captures what the collection builds."""
        return source_of(plugins.get("collections", self.collection).framework)

    @property
    def title(self) -> str:
        """A name for files: the last part of the model's own."""
        last = f"{self.folder.resolve().name}{self.model}" if self.folder else self.model.rstrip("/").rpartition("/")[2]
        return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in last).lstrip("._-") or "model"


@dataclass(frozen=True)
class Tuned:
    """What a model of a collection is trained for.

    Attributes:
        classes: Names of the classes; those that step ``data`` finds where there are none.
    """

    classes: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The names as a stage's option, where they are known."""
        return {"classes": list(self.classes)} if self.classes else {}

    @property
    def derived(self) -> dict[str, Fact]:
        """The same option, where the data will tell."""
        return {} if self.classes else {"classes": Fact("data", "class_names")}


def find_named(text: str, folder: Path = Path()) -> Named | None:
    """Reads the name of a model of a collection.

    Args:
        text: ``collection:model``, or the path of a folder that transformers wrote.
        folder: Where relative paths begin.

    Returns:
        The model; ``None`` where the text is neither.
    """
    place, mark, part = text.partition("#")  # a part of a model, such as its #encoder
    path = folder / (text if (folder / text).exists() else place)
    if place and path.exists():
        saved = _was_saved(path) and SAVED in plugins.discover("collections")
        return Named(SAVED, f"{mark}{part}" if path == folder / place else "", path) if saved else None
    collection, colon, model = place.partition(":")
    if not colon or not model or collection not in plugins.discover("collections"):
        return None
    inside = folder / model
    return Named(collection, f"{mark}{part}", inside) if inside.is_dir() else Named(collection, f"{model}{mark}{part}")


def named(text: str, folder: Path) -> Named:
    """Reads the name of a model of a collection, which must be one.

    Raises:
        ConfigError: It is none.
    """
    found = find_named(text, folder)
    if found is None:
        known = list(plugins.discover("collections"))
        collection, colon, _ = text.partition(":")
        hint = nearest(collection, known) if colon and known else "write COLLECTION:MODEL, for example torchvision:mobilenet_v2"
        raise ConfigError(f"{text!r} is no model of a collection; installed: {', '.join(known) or 'none'}", where="model.name", hint=hint)
    return found


def weights_of(text: str | Path | None, folder: Path = Path()) -> str | Path | None:
    """Tells a file of weights from a collection's own name for them."""
    if text is None:
        return None
    return folder / text if (folder / text).is_file() else str(text)


def source_of(framework: str) -> plugins.Source:
    """Returns the source that captures a framework's models.

    Raises:
        ConfigError: None is installed.
    """
    installed: list[plugins.Source] = list(plugins.discover("sources").values())
    for source in installed:
        if source.framework == framework:
            return source
    known = [source.framework for source in installed]
    raise ConfigError(f"no source captures models of {framework!r}", where="model.framework", hint=nearest(framework, known))


def from_factory(model: Model, folder: Path, parity: Parity, wanted: Conversion, *, tuned: bool, apart: tuple[Path, ...]) -> Step:
    """The project's model, captured as a program together with its outputs on real samples."""
    source = source_of(model.framework)
    needs = {"data": PARITY} | ({"weights": TRAINED} if tuned else {})
    files = {PROJECT: folder} | ({"weights": folder / model.weights} if model.weights and not tuned else {})
    options = {"factory": model.factory, "framework": model.framework, **_common(model.outputs, parity, wanted, source)}
    return Step("source", STAGE, options, needs=needs, files=files, plugins=(source,), apart=apart)


def from_name(
    model: Named, parity: Parity, wanted: Conversion, data: Need | Path | None, outputs: tuple[str, ...] = (), *, tuned: Tuned | None = None
) -> Step:
    """A model of a collection, built with its weights and captured like any other; without samples the collection makes some up.

    A ``tuned`` one is built as for its training and gets the weights of step ``finetune``.
    """
    source = model.source
    needs, files = wire("data", data) if data is not None else ({}, {})
    needs |= {"tuned": TRAINED} if tuned else {}
    named, own = _parts(model)
    options = {**named, **_common(outputs, parity, wanted, source), **(tuned.options if tuned else {})}
    used, derived = (plugins.get("collections", model.collection), source), tuned.derived if tuned else {}
    return Step("source", STAGE, options, needs=needs, files=files | own, plugins=used, derived=derived, preload=plugins.preload(source))


def train_by_name(
    settings: Finetune, model: Named, tuned: Tuned, folder: Path, *, seed: int, outputs: tuple[str, ...], apart: tuple[Path, ...]
) -> Step:
    """The trained weights of a model of a collection. The project's code counts only where a teacher comes from it.

    Raises:
        ConfigError: It is no model of PyTorch.
    """
    source = model.source
    if source.framework != "torch":
        told = f"{model.collection} builds models of {source.framework}, and only those of PyTorch are fine-tuned by name"
        raise ConfigError(told, where="model.name", hint="leave out [finetune]")
    named, files = _parts(model)
    files |= {PROJECT: folder} if settings.teacher not in (None, "start") else {}
    return Step(
        "finetune",
        "toolkit.finetuning.stage:run",
        {**settings.model_dump(mode="json"), **named, "seed": seed, "outputs": list(outputs), **tuned.options},
        needs={"data": Need("data", "train")},
        files=files,
        plugins=(plugins.get("collections", model.collection), source),
        derived=tuned.derived,
        apart=apart,
        resumable=True,
    )


def from_file(
    file: Path, format: str, parity: Parity, wanted: Conversion, data: Need | Path | None, outputs: tuple[str, ...] = (), *, scheme: str = "float32"
) -> Step:
    """A model file taken as it is, together with its outputs on real samples; on random ones where there are none."""
    runtime = plugins.runtime_for(format)
    options = {"file": True, "format": format, "runtime": runtime.name, **_common(outputs, parity, wanted)}
    needs, files = wire("data", data) if data is not None else ({}, {})
    files = {"model": file, **files}
    return Step("source", STAGE, options, needs=needs, files=files, plugins=(runtime,), checks=(audit(format, scheme),))


def check_dynamic(source: plugins.Source, wanted: Conversion) -> None:
    """Makes sure that a source can leave sizes free when that is asked for, and keep to their bounds.

    Raises:
        ConfigError: It cannot.
    """
    variants.check_source(source, wanted.dynamic)


def _parts(model: Named) -> tuple[dict[str, Any], dict[str, Path]]:
    """What tells a stage which model to build: options, and files by role."""
    files = {"model": model.folder} if model.folder else {}
    files |= {"weights": model.weights} if isinstance(model.weights, Path) else {}
    weights = model.weights if isinstance(model.weights, str) else None
    return {"collection": model.collection, "model": model.model, "weights": weights, "task": model.task}, files


def _common(outputs: tuple[str, ...], parity: Parity, wanted: Conversion, source: plugins.Source | None = None) -> dict[str, Any]:
    """Options that every kind of source has."""
    if source:
        check_dynamic(source, wanted)
    return {"outputs": list(outputs), "samples": parity.samples, **({"dynamic": dynamic_option(wanted)} if wanted.dynamic else {})}


def _was_saved(path: Path) -> bool:
    return path.is_dir() and (path / CONFIG).is_file() and not (path / PROJECT_FILE).exists()
