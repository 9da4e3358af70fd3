"""The committed baseline: read, held against a report, and updated. An update may only tighten it; people loosen it by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from toolkit import display, plugins
from toolkit.artifact import Frozen
from toolkit.checks.baseline import UPDATE, Baseline, Entry, judge
from toolkit.checks.budgets import row_verdict
from toolkit.config import BASELINE_FILE, load_project, read_text
from toolkit.errors import ConfigError
from toolkit.evidence import Finding, Report, Row, Verdict, worst
from toolkit.mistakes import explain
from toolkit.pipeline import deliver
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.tighten import Revision, revise
from toolkit.store import Store

Outcomes = Mapping[tuple[str, str], np.ndarray]


class Updated(Frozen):
    """What an update did.

    Attributes:
        file: The baseline file.
        changes: What was recorded or tightened, one sentence each.
        kept: What was measured looser than it is recorded, and stays.
        refused: Rows that fail and are not recorded, with their reasons.
    """

    file: Path
    changes: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        rows = [(kind, line) for kind in ("changes", "kept", "refused") for line in getattr(self, kind)]
        return display.table_html(str(self.file), ("", "what"), rows)


def update_baseline(
    project: str | Path,
    *,
    file: str | Path | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
    jobs: int | None = None,
) -> Updated:
    """Measures a project and tightens its baseline with what is better now; rows that are new are added.

    Args:
        project: Folder with an ``edgekit.toml``, or the file itself.
        file: The baseline file; ``edgekit-baseline.json`` in the project's folder by default.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.
        jobs: How many steps may run side by side.

    Returns:
        What changed, what was looser and stays, and which rows fail and are not recorded.

    Raises:
        ToolkitError: As :func:`toolkit.run`; and :class:`ConfigError` when the baseline is damaged.
    """
    from toolkit.pipeline.run import evidence_of  # which imports this module

    path = baseline_file(project, file)
    deliver.check_writable(path.parent)  # this and a damaged file are told before minutes are spent
    if os.path.lexists(path):
        load(path)
    report, outcomes = evidence_of(project, store=store, listener=listener, jobs=jobs)
    return update(path, report, outcomes)


def load_baseline(project: str | Path, *, file: str | Path | None = None) -> Baseline:
    """Reads a project's baseline.

    Args:
        project: Folder with an ``edgekit.toml``, or the file itself.
        file: The baseline file; ``edgekit-baseline.json`` in the project's folder by default.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    return load(baseline_file(project, file))


def baseline_file(project: str | Path, file: str | Path | None = None) -> Path:
    """Returns where a project's baseline is, or would be."""
    return Path(file) if file is not None else load_project(Path(project))[1] / BASELINE_FILE


def find(folder: Path) -> Path | None:
    """Returns the baseline of a project's folder; ``None`` when it has none. A link to nowhere is one, which cannot be read."""
    path = folder / BASELINE_FILE
    return path if os.path.lexists(path) else None


def load(path: Path) -> Baseline:
    """Reads a baseline file.

    Raises:
        ConfigError: It does not exist, is not JSON, or does not say what a baseline says.
    """
    if not os.path.lexists(path):
        raise ConfigError("there is no baseline here", where=str(path), hint=f"{UPDATE}, and commit the file")
    try:
        document = json.loads(read_text(path, "baseline file"), object_pairs_hook=_each_key_once)
    except _Twice as error:
        raise ConfigError(f"key {error} stands there twice", where=str(path), hint=f"mend it; after a merge, take one side and {UPDATE}") from error
    except RecursionError as error:
        raise ConfigError("is nested too deeply for a baseline", where=str(path), hint=f"take an earlier version of the file, or {UPDATE}") from error
    except json.JSONDecodeError as error:
        hint = f"mend line {error.lineno}; after a merge, take one side and {UPDATE}"
        raise ConfigError(f"is not valid JSON: {error}", where=str(path), hint=hint) from error
    try:
        return Baseline.model_validate(document)
    except ValidationError as error:
        raise explain(Baseline, error, str(path)) from error


def check_recorded(baseline: Baseline, artifact: str, target: str, where: str) -> None:
    """Makes sure that a baseline says something about one model file: under another name nothing would be held against it.

    Raises:
        ConfigError: It does not.
    """
    known = baseline.by_place()
    if (artifact, target) not in known:
        found = ", ".join(f"{name} on {place}" for name, place in sorted(known)) or "nothing"
        raise ConfigError(f"does not record {artifact} on {target}", where=where, hint=f"it has {found}; to add a row, {UPDATE}")


def hold(report: Report, outcomes: Outcomes, baseline: Baseline, *, whole: bool = True) -> Report:
    """Adds what the baseline says to each row of a report, and judges rows and report again.

    Args:
        report: The report, judged by its budgets.
        outcomes: For artifact and target, whether each sample was answered right, ``[n] bool``; absent where that is not simply so.
        baseline: The baseline.
        whole: Whether the report is that of a whole project, so that an entry without a row is a failure.
    """
    entries = baseline.by_place()
    rows = [_held(row, entries.get((row.artifact, row.target)), outcomes, baseline, report) for row in report.rows]
    if whole:
        made = {(row.artifact, row.target) for row in report.rows}
        rows += [_vanished(entry) for place, entry in entries.items() if place not in made]
    return report.model_copy(update={"rows": tuple(rows), "verdict": worst(row.verdict for row in rows)})


def update(path: Path, report: Report, outcomes: Outcomes) -> Updated:
    """Tightens a baseline file with a report; a file that would not change is not written.

    Raises:
        ConfigError: The file is damaged.
        SetupError: It cannot be written.
    """
    before = load(path) if os.path.lexists(path) else Baseline(schema=1)
    entries = before.by_place()
    revisions: list[Revision] = []
    refused = []
    for row in report.rows:
        place = (row.artifact, row.target)
        if row.verdict is Verdict.FAIL:
            refused.append(f"{row.artifact} on {row.target} fails and is not recorded: {row.reason}")
            continue
        revision = revise(entries.get(place), row, outcomes.get(place), before.tolerances, _setting(report, row))
        entries[place] = revision.entry
        revisions.append(revision)
    made = {(row.artifact, row.target) for row in report.rows}
    gone = [f"{name} on {target}, which this run did not make; remove its row by hand" for name, target in entries if (name, target) not in made]
    after = before.model_copy(update={"rows": tuple(entries[place] for place in sorted(entries))})
    if after != before:
        deliver.write_text(path, render(after))
    kept = [line for revision in revisions for line in revision.kept]
    return Updated(
        file=path,
        changes=tuple(line for revision in revisions for line in revision.changes),
        kept=(*kept, *gone),
        refused=tuple(refused),
    )


def render(baseline: Baseline) -> str:
    """Writes a baseline with one value a line in a fixed order, so that an update is a small difference."""
    document = {
        "schema": baseline.schema_version,
        "tolerances": baseline.tolerances.model_dump(mode="json"),
        "rows": [_entry_document(entry) for entry in baseline.rows],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class _Twice(Exception):
    """A key that an object has twice, of which JSON readers silently take one."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Twice(repr(name))
        found[name] = value
    return found


def _entry_document(entry: Entry) -> dict[str, Any]:
    document = entry.model_dump(mode="json", exclude_none=True)
    if entry.tolerances is not None:
        document["tolerances"] = entry.tolerances.model_dump(mode="json", exclude_unset=True)
    return {name: value for name, value in document.items() if value not in ("", {})}


def _held(row: Row, entry: Entry | None, outcomes: Outcomes, baseline: Baseline, report: Report) -> Row:
    if _has_no_evidence(row):
        return row
    place = (row.artifact, row.target)
    if entry is None:
        reason = f"{row.artifact} on {row.target} is not in the baseline; {UPDATE}"
        added: tuple[Finding, ...] = (Finding(budget="baseline", verdict=Verdict.INCONCLUSIVE, reason=reason),)
    else:
        added = judge(entry, row, outcomes.get(place), baseline.tolerances, report.environment)
    findings = (*row.findings, *added)
    verdict, reason = row_verdict(findings)
    return row.model_copy(update={"findings": findings, "verdict": verdict, "reason": reason})


def _has_no_evidence(row: Row) -> bool:
    """Whether a stage failed behind the row: its verdict is not its findings' doing, and nothing is left to compare."""
    return row.verdict is Verdict.FAIL and all(finding.verdict is not Verdict.FAIL for finding in row.findings)


def _vanished(entry: Entry) -> Row:
    """Stands for a row that is recorded and was not made: a model that silently disappears is a regression too."""
    reason = f"the baseline has {entry.artifact} on {entry.target}, which this run did not make; remove its row by hand if it is meant to go"
    stem, _, format = entry.artifact.rpartition(".")
    return Row(
        artifact=entry.artifact,
        format=format,
        scheme=stem.rpartition(".")[2],
        runtime="",
        target=entry.target,
        stand_in="",
        verdict=Verdict.FAIL,
        reason=reason,
        findings=(Finding(budget="baseline", verdict=Verdict.FAIL, reason=reason),),
    )


def _setting(report: Report, row: Row) -> Mapping[str, Any]:
    """The CPU, and the versions of what executed the row."""
    versions = report.environment.get("versions", {})
    names = _distributions(row.runtime)
    return {"cpu": str(report.environment.get("cpu", "")), "versions": {name: versions[name] for name in names if name in versions}}


def _distributions(runtime: str) -> Sequence[str] | Iterator[str]:
    found = plugins.discover("runtimes").get(runtime)
    return found.distributions if found else ()
