"""What the single verbs share: opening one model file, taking samples as they come, running a few steps."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from toolkit import intake, modelfile, plugins
from toolkit.artifact import Artifact, Manifest
from toolkit.config import Target
from toolkit.contents import Contents
from toolkit.dataset import LABEL, Dataset, as_label
from toolkit.errors import ConfigError, InputRejected, ToolkitError
from toolkit.mistakes import NAME_PATTERN
from toolkit.pipeline.deliver import check_writable, manifest_path
from toolkit.pipeline.execute import Result, execute
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.steps import Step, inspection
from toolkit.store import Store
from toolkit.worker import Workers

Samples = str | Path | Dataset | Mapping[str, Any]


def run_steps(
    steps: list[Step], store: Store | None, listener: Listener | None, *, timeout_seconds: float = 3600.0, workers: Workers | None = None
) -> dict[str, Result]:
    """Runs steps of which every one must succeed.

    Raises:
        ToolkitError: The first failure.
    """
    results = execute(steps, store or Store(), listener=listener, timeout_seconds=timeout_seconds, workers=workers)
    for result in results.values():
        if result.error:
            raise result.error
    return results


def open_model(model: Artifact | str | Path, store: Store | None = None) -> tuple[Artifact, Contents]:
    """Opens a model file: checks its bytes, reads what it contains, and takes over its manifest if that fits.

    Args:
        model: The file, or an artifact that points to it.
        store: Where the reading is kept.

    Raises:
        ConfigError: A live model was given.
        InputRejected: The file must not be read, or differs from its manifest or its artifact.
        NoRoute: No reader looks into this format, and no runtime executes it.
    """
    if not isinstance(model, Artifact | str | Path):
        raise ConfigError(f"expected a model file, found a live {type(model).__name__}", hint="export it first: toolkit.export(...)")
    path = model.path if isinstance(model, Artifact) else Path(model)
    manifest = read_manifest(path)
    if isinstance(model, Artifact) and modelfile.exists(path) and modelfile.sha256(path) != model.manifest.sha256:
        raise InputRejected("the file has changed since this artifact was made (SHA-256 differs)", where=str(path), hint="open it anew by its path")
    format = intake.check_model(path, manifest.format if manifest else plugins.format_of(path))
    facts = run_steps([inspection(path, format)], store, None)["inspect"].facts
    contents = Contents.model_validate(facts["contents"])
    if manifest is None:
        manifest = Manifest(
            name=path.name.split(".")[0],
            format=format,
            scheme=facts["scheme"],
            sha256=contents.sha256,
            size_bytes=contents.size_bytes,
            signature=contents.signature,
            made_by="file",
        )
    return Artifact(path=path, manifest=manifest), contents


def check_bytes(path: Path) -> str:
    """Decides whether a model file may be parsed at all, and returns its format.

    Raises:
        InputRejected: It is missing, damaged, or not what its suffix says.
    """
    return intake.check_model(path, plugins.format_of(path))


def read_manifest(path: Path) -> Manifest | None:
    """Reads the manifest beside a model file, if there is one.

    Raises:
        InputRejected: The manifest is damaged, or the file has changed since it was written.
    """
    file = manifest_path(path)
    if not file.is_file() or not modelfile.exists(path):
        return None
    try:
        manifest = Manifest.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputRejected("the manifest is damaged", where=str(file), hint="delete it to use the model without its history") from error
    if modelfile.sha256(path) != manifest.sha256:
        hint = "make the model again, or delete the manifest to use the file without its history"
        raise InputRejected("the file is not the one its manifest describes (SHA-256 differs)", where=str(path), hint=hint)
    return manifest


@contextlib.contextmanager
def on_disk(samples: Samples) -> Iterator[Path]:
    """Gives samples as a path that a stage can read.

    Args:
        samples: A path, a data set, or arrays by input name (NumPy or anything that converts; ``label`` for answers).

    Raises:
        InputRejected: The arrays do not make a data set.
    """
    if isinstance(samples, str | Path):
        path = Path(samples)
        if not path.exists():
            raise InputRejected("does not exist", where=str(path), hint="give a folder of .npy files or an .npz file")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-samples-") as scratch:
        folder = Path(scratch) / "samples"
        as_dataset(samples).write(folder)
        try:
            yield folder
        except ToolkitError as error:
            error.where = error.where.replace(str(folder), "samples")  # the folder is gone when anybody reads this
            raise


def as_dataset(samples: Dataset | Mapping[str, Any]) -> Dataset:
    """Makes a data set of named arrays."""
    if isinstance(samples, Dataset):
        return samples
    arrays = {name: as_array(value) for name, value in samples.items()}
    label = arrays.pop(LABEL, None)
    return Dataset(arrays, None if label is None else as_label(label, "samples"), "samples")


def as_array(value: Any) -> np.ndarray:
    """Makes a NumPy array of a framework's tensor, wherever it lives.

    Raises:
        InputRejected: It is ragged, or of a type that NumPy does not have.
    """
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
        array = np.ascontiguousarray(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        hint = "give arrays of one shape; convert bfloat16 tensors with .float()"
        raise InputRejected(f"is not an array: {error}", where="samples", hint=hint) from error
    if array.dtype.kind == "O":
        raise InputRejected("holds Python objects, expected numbers", where="samples", hint="give arrays of one shape and a numeric dtype")
    return array


def check_name(name: str | None) -> None:
    """Makes sure that a model's name can be part of a file name.

    Raises:
        ConfigError: It cannot.
    """
    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        hint = "use letters, digits, '.', '_' and '-', and begin with a letter or a digit"
        raise ConfigError(f"{name!r} cannot be a model's name", where="name", hint=hint)


def runtime_of(target: Target, artifact: Artifact) -> plugins.Runtime:
    """Returns the target's runtime.

    Raises:
        ConfigError: It does not execute the artifact's format, or nothing here does.
    """
    runtime: plugins.Runtime = plugins.get("runtimes", target.runtime)
    if not any(artifact.format in one.formats for one in plugins.discover("runtimes").values()):
        hint = "convert the source to a format that something runs here; run: edgekit doctor"
        raise ConfigError(f"no runtime executes {artifact.format} on this machine", where=str(artifact.path), hint=hint)
    if artifact.format not in runtime.formats:
        message = f"target {target.name!r} runs {', '.join(runtime.formats)} on {runtime.name}, found {artifact.format}"
        raise ConfigError(message, where=str(artifact.path), hint="choose a target whose runtime fits; run: edgekit targets")
    return runtime


def output_path(output: str | Path | None, name: str, scheme: str, format: str, source: Path | None) -> Path:
    """Where a verb writes its model: where the user said, else in the current folder.

    Raises:
        ConfigError: It would overwrite its own input, or has another format's suffix.
        SetupError: The folder cannot be written.
    """
    out = Path(output) if output else Path(f"{name}.{scheme}.{format}")
    if out.is_dir() and out.suffix != f".{format}":
        out = out / f"{name}.{scheme}.{format}"
    if out.suffix != f".{format}":
        raise ConfigError(f"the file will be {format}, found the suffix {out.suffix!r}", where=str(out), hint=f"end its name in .{format}")
    check_writable(out.parent)
    if source is not None and out.resolve() == source.resolve():
        raise ConfigError("output and input are the same file", where=str(out), hint="give another --output")
    return out
