"""Puts results where the user asked for them. Every file appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from toolkit import modelfile, onnx_external
from toolkit.artifact import MANIFEST_SUFFIX, Artifact, Manifest, Signature
from toolkit.errors import ConfigError, InputRejected, SetupError
from toolkit.job import Facts
from toolkit.pipeline.execute import Result
from toolkit.pipeline.fingerprint import OUTPUT_MARK
from toolkit.pipeline.plan import Candidate
from toolkit.pipeline.steps import model_file


def deliver_model(
    result: Result, out: Path, *, name: str, format: str, scheme: str, parent_sha256: str, evidence: Mapping[str, Any] | None = None
) -> Artifact:
    """Copies a finished model to its place and writes its manifest beside it.

    Args:
        result: The step that made it.
        out: Where it goes.
        name: The model's name.
        format: Its format.
        scheme: Its number format.
        parent_sha256: Digest of the file that it was made from.
        evidence: Facts of other steps that belong to this file, such as how its calibration samples were chosen.

    Raises:
        SetupError: The place cannot be written.
    """
    if result.folder is None:
        raise RuntimeError(f"{result.record.step} made no model")
    model = result.folder / model_file(format)
    copy(model, out)
    manifest = Manifest(
        name=name,
        format=format,
        scheme=scheme,
        sha256=modelfile.sha256(out),
        size_bytes=modelfile.size_bytes(out),
        signature=signature_of(result.facts),
        made_by=result.facts["made_by"],
        versions=result.facts["versions"],
        parent_sha256=parent_sha256,
        evidence={**_evidence(result.facts), **_attempts(result), **(evidence or {})},
    )
    write_text(manifest_path(out), manifest.model_dump_json(indent=2) + "\n")
    return Artifact(path=out, manifest=manifest, cached=result.cached)


def check_output(folder: Path, project: Path) -> None:
    """Makes sure, before anything runs, that results may go to a folder.

    Raises:
        ConfigError: It is a file, the project's own folder, or a folder of it that holds files of the user's.
        SetupError: It cannot be written.
    """
    place, home = folder.resolve(), project.resolve()
    if place == home:
        raise ConfigError("results cannot go into the project's own folder", where=str(folder), hint="give another --output")
    if place.exists() and not place.is_dir():
        raise ConfigError("is a file, not a folder", where=str(folder), hint="give another --output")
    check_writable(place)
    if place.is_relative_to(home) and place.is_dir() and any(place.iterdir()) and not (place / OUTPUT_MARK).exists():
        raise ConfigError(
            "is a part of the project and holds files that Edgekit did not write", where=str(folder), hint="give an empty or a new folder as --output"
        )


def check_writable(folder: Path) -> None:
    """Makes sure that a folder can be made and written, before minutes are spent on what goes there.

    Raises:
        SetupError: It cannot, or a part of the way to it is a file.
    """
    existing = next((place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place)), folder)
    if not existing.is_dir():
        raise SetupError("cannot be written: is a file, not a folder", where=str(existing), hint="choose another place for the results")
    if not os.access(existing, os.W_OK):
        raise SetupError(
            "cannot be written: Permission denied", where=str(existing), hint="mend its permissions, or choose another place for the results"
        )


def mark_output(folder: Path, project: str, models: Collection[str] = ()) -> set[str]:
    """Marks a folder as filled by Edgekit, so that results inside a project are not taken for a part of it.

    Args:
        folder: The output folder.
        project: Name of the project.
        models: Files that a run delivers into ``models/``.

    Returns:
        The files that an earlier run of the project delivered and this one does not.

    Raises:
        SetupError: The folder cannot be written.
    """
    mark = folder / OUTPUT_MARK
    try:
        delivered: dict[str, list[str]] = json.loads(mark.read_text(encoding="utf-8"))["models"]
    except (OSError, ValueError, KeyError, TypeError):
        delivered = {}
    stale = set(delivered.get(project, [])) - set(models)
    write_text(mark, _mark({**delivered, project: sorted(models)}))
    return stale


def mark_new(folder: Path) -> None:
    """Marks a folder that does not exist yet, or is empty, as filled by Edgekit; one that holds anything stays as it is.

    Raises:
        SetupError: The folder cannot be written.
    """
    if not folder.exists() or not any(folder.iterdir()):
        write_text(folder / OUTPUT_MARK, _mark({}))


def manifest_path(model: Path) -> Path:
    """Where a model's manifest is."""
    return model.with_name(model.name + MANIFEST_SUFFIX)


def signature_of(facts: Facts) -> Signature:
    """The signature of a finished model: read back from its bytes when it was audited, else as its stage stated it."""
    audited = facts.get("checks", {}).get("audit", {})
    return Signature.model_validate(audited.get("signature") or facts["signature"])


def source_evidence(facts: Facts) -> dict[str, Any]:
    """What the source's facts say that every file made from it should carry along."""
    return {name: facts[name] for name in ("output", "task", "labels", "notes", "bounds") if facts.get(name) or name == "output"}


def parent_digest(candidate: Candidate, results: Mapping[str, Result], formats: Mapping[str, str]) -> str:
    """Digest of the file that a candidate was made from; empty for the source."""
    if not candidate.parent:
        return ""
    folder = results[candidate.parent].folder
    return modelfile.sha256(folder / model_file(formats[candidate.parent])) if folder else ""


def copy(source: Path, out: Path) -> None:
    """Copies a model so that ``out`` is never half-written. ONNX weights in other files become one file, ``<out>.data``.

    Raises:
        InputRejected: Weights that the model refers to are missing.
        SetupError: The place cannot be written.
    """
    if source.is_dir():
        _replace_folder(source, out)
        return
    place, data = onnx_external.data_path(out), onnx_external.data_files(source)
    outdated = place.exists() and (bool(data) or _refers_to(out, place))
    if outdated:
        out.unlink(missing_ok=True)  # no graph beside the weights of another one, not for a moment
    if data:
        _replace(place, lambda partial: onnx_external.write_data(data, partial))
        _replace(out, lambda partial: partial.write_bytes(onnx_external.graph_for(source, out.name, data)))
    else:
        _replace(out, lambda partial: shutil.copyfile(source, partial))
        if outdated:
            place.unlink(missing_ok=True)


def remove(model: Path) -> None:
    """Removes a delivered model with all that belongs to it.

    Raises:
        SetupError: It cannot be removed.
    """
    data = onnx_external.data_path(model)
    belongs = (data,) if _refers_to(model, data) else ()
    try:
        if model.is_dir():
            shutil.rmtree(model)
        for path in (model, *belongs, manifest_path(model)):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(f"cannot be removed: {error.strerror or error}", where=str(model), hint="check the folder's permissions") from error


def _refers_to(model: Path, data: Path) -> bool:
    try:
        return data.resolve() in onnx_external.data_files(model)
    except InputRejected:  # what it refers to is damaged, and as such no longer anybody's
        return True


def write_text(out: Path, text: str) -> None:
    """Writes a text file so that ``out`` is never half-written.

    Raises:
        SetupError: The place cannot be written.
    """
    _replace(out, lambda partial: partial.write_text(text, encoding="utf-8"))


def _mark(models: Mapping[str, Collection[str]]) -> str:
    note = "Edgekit fills this folder; what is in it does not count as a part of the project around it."
    return json.dumps({"note": note, "models": models}, indent=1) + "\n"


def _replace(out: Path, write: Any) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".partial")
        os.close(descriptor)
        partial = Path(name)
        try:
            write(partial)
            partial.chmod(0o644)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"cannot be written: {error.strerror or error}", where=str(out), hint="check the folder's permissions and free space"
        ) from error


def _replace_folder(source: Path, out: Path) -> None:
    """Puts a folder in place by two renames: for a moment there is none, but never half of one."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".partial") as scratch:
            modelfile.copy(source, Path(scratch) / "new")
            if out.is_dir():
                out.rename(Path(scratch) / "old")
            (Path(scratch) / "new").rename(out)
    except OSError as error:
        raise SetupError(
            f"cannot be written: {error.strerror or error}", where=str(out), hint="check the folder's permissions and free space"
        ) from error


def _evidence(facts: Facts) -> dict[str, Any]:
    """What was measured or decided while the file was made, without what the manifest says elsewhere."""
    kept = {name: value for name, value in facts.items() if name not in {"signature", "made_by", "versions", "format"}}
    if "ladder" in kept:  # without times, which differ from run to run
        rungs = [{name: value for name, value in one.items() if name != "seconds"} for one in kept["ladder"]["rungs"]]
        kept["ladder"] = {**kept["ladder"], "rungs": rungs}
    return kept


def _attempts(result: Result) -> dict[str, Any]:
    """Which routes were tried; without times and logs, which differ from run to run."""
    told = [attempt.model_dump(mode="json", exclude={"seconds", "hint"}) for attempt in result.attempts]
    return {"attempts": told} if told else {}
