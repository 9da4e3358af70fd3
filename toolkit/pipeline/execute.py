"""Runs steps: key, store, worker, checks, publication. Steps that do not depend on each other run side by side."""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from toolkit import plugins
from toolkit.errors import Interrupted, ToolkitError
from toolkit.evidence import Attempt, StageRecord
from toolkit.job import FACTS, Facts, Job, read_facts
from toolkit.onnx_external import DATA_SUFFIX
from toolkit.pipeline import race
from toolkit.pipeline.fingerprint import fingerprint, fingerprint_project, own_code
from toolkit.pipeline.listener import Listener, Silent
from toolkit.pipeline.steps import PROJECT, Check, Need, Step
from toolkit.store import Entry, Store, digest_of
from toolkit.worker import Workers

# What stages without a preload of their own import anyway, and no framework: half a second of each.
_COMMON = ("toolkit.dataset", "toolkit.evidence", "toolkit.config", "toolkit.columns")


@dataclass(frozen=True)
class Result:
    """What became of a step.

    Attributes:
        record: Status, key and time.
        facts: The stage's facts; empty unless it is done or cached.
        folder: Its output folder; ``None`` unless it is done or cached.
        error: Why it failed.
    """

    record: StageRecord
    facts: Facts = field(default_factory=dict)
    folder: Path | None = None
    error: ToolkitError | None = None

    @property
    def ok(self) -> bool:
        """Whether there is an output."""
        return self.folder is not None

    @property
    def cached(self) -> bool:
        """Whether the output came from the store."""
        return self.record.status == "cached"

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every way to this output that was looked at; empty where there is only one."""
        return self.record.attempts


def execute(
    steps: Iterable[Step],
    store: Store,
    *,
    listener: Listener | None = None,
    timeout_seconds: float = 3600.0,
    jobs: int | None = None,
    workers: Workers | None = None,
) -> dict[str, Result]:
    """Runs steps in an order that respects their needs.

    A step that fails does not stop those that do not need it.

    Args:
        steps: The steps.
        store: Where outputs come from and go to.
        listener: Who hears about it.
        timeout_seconds: Limit of each stage.
        jobs: How many steps may run at a time; at most two by default, as frameworks take memory.
        workers: Workers to use, which go on after it; its own otherwise.

    Returns:
        One result per step, by identifier.

    Raises:
        MissingExtra: A plugin that a step needs is not installed; nothing has run then.
        Interrupted: The user pressed Ctrl-C; every child has been ended.
    """
    ordered = {step.id: step for step in steps}
    for step in ordered.values():
        for plugin in (*step.plugins, *(plugin for check in step.checks for plugin in check.plugins)):
            plugins.require(plugin)
    run = _Run(ordered, store, listener or Silent(), timeout_seconds, workers)
    run.listener.planned(list(ordered))
    with store.in_use(), tempfile.TemporaryDirectory(prefix="edgekit-run-") as scratch:
        run.scratch = Path(scratch)
        return run.go(jobs or min(2, os.cpu_count() or 1))


class _Run:
    """The state of one execution."""

    def __init__(self, steps: dict[str, Step], store: Store, listener: Listener, timeout_seconds: float, workers: Workers | None) -> None:
        self.steps = steps
        self.store = store
        self.listener = listener
        self.timeout_seconds = timeout_seconds
        self.results: dict[str, Result] = {}
        self.entries: dict[str, Entry] = {}
        self.scratch = Path()
        self.workers = workers or Workers()
        self._borrowed = workers is not None
        self._announced: set[str] = set()
        self._fingerprints: dict[tuple[str, Path], Any] = {}
        self._fingerprint_lock = threading.Lock()

    def go(self, jobs: int) -> dict[str, Result]:
        running: dict[Future[Result], Step] = {}
        with ThreadPoolExecutor(jobs) as pool:
            try:
                while len(self.results) < len(self.steps):
                    for step in self._startable({step.id for step in running.values()}, jobs):
                        running[pool.submit(self._run_step, step)] = step
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        step = running.pop(future)
                        self._settle(step, future.result())
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                self.workers.stop()
                if isinstance(error, KeyboardInterrupt):
                    raise Interrupted("interrupted; finished stages are kept, and the next run continues from them") from None
                raise
        if not self._borrowed:
            self.workers.stop()
        return {id: self.results[id] for id in self.steps}

    def _startable(self, running: set[str], jobs: int) -> list[Step]:
        """Steps whose needs are settled; an exclusive one only when nothing else could run."""
        self._skip_the_hopeless()
        waiting = [step for step in self.steps.values() if step.id not in self.results and step.id not in running]
        ready = [step for step in waiting if all(id in self.results for id in step.upstream)]
        shared = [step for step in ready if not step.exclusive]
        if any(self.steps[id].exclusive for id in running):
            return []
        if shared or running:
            return shared[: jobs - len(running)]
        return ready[:1]

    def _skip_the_hopeless(self) -> None:
        for step in self.steps.values():
            failed = sorted(id for id in step.upstream if id in self.results and not self.results[id].ok)
            if step.id not in self.results and failed and not (step.partial and self._worth_running(step)):
                needed = any(self.results[id].record.status != "unneeded" for id in failed)
                status: Literal["skipped", "unneeded"] = "skipped" if needed else "unneeded"
                self._settle(step, Result(StageRecord(step=step.id, status=status), error=self.results[failed[0]].error))

            elif step.id not in self.results and self._not_asked_for(step):
                self._settle(step, Result(StageRecord(step=step.id, status="unneeded")))

    def _not_asked_for(self, step: Step) -> bool:
        """Whether every fact that would call for a step is known, and none does."""
        known = all(fact.step in self.results for fact in step.only_if)
        return bool(step.only_if) and known and not any(self.results[fact.step].facts.get(fact.name) for fact in step.only_if)

    def _worth_running(self, step: Step) -> bool:
        """Whether a partial step still has, or may get, something besides the samples to work on."""
        models = {need.step for role, need in step.needs.items() if role != "data"}
        return any(id not in self.results or self.results[id].ok for id in models)

    def _settle(self, step: Step, result: Result) -> None:
        self.results[step.id] = result
        self.listener.finished(result.record)

    def _run_step(self, step: Step) -> Result:
        return race.run(step, self._attempt) if step.route else self._attempt(step)

    def _attempt(self, step: Step) -> Result:
        started = time.monotonic()
        key = ""
        try:
            inputs, document = self._resolve(step)
            key = digest_of(document) if step.cached else ""
            entry = self.store.get(key) if key else None
            status: Literal["cached", "done"] = "done" if entry is None else "cached"
            if entry is None:
                self._announce(step.id)
                if not key:
                    return self._uncached(step, inputs, document, started)
                entry = self._publish(step, key, inputs, document)
            self.entries[step.id] = entry
            record = StageRecord(step=step.id, status=status, key=key, seconds=_since(started))
            return Result(record, read_facts(entry.folder), entry.folder)
        except ToolkitError as error:
            self._say_where(step, error)
            record = StageRecord(step=step.id, status="failed", key=key, seconds=_since(started), error=error.to_dict())
            return Result(record, error=error)

    def _announce(self, id: str) -> None:
        """Says once that a step runs, in however many ways it is tried."""
        if id not in self._announced:
            self._announced.add(id)
            self.listener.started(id)

    def _say_where(self, step: Step, error: ToolkitError) -> None:
        """Names files by the step that made them: nobody knows the store's folders, and a failed output is gone."""
        for role, need in step.needs.items():
            folder = self.results[need.step].folder
            if folder:
                error.where = error.where.replace(str(folder / need.path), f"{role} of {need.step}" if need.path else need.step)
                error.where = error.where.replace(str(folder), need.step)
        error.where = re.sub(rf"{re.escape(str(self.store.root))}.*?{re.escape(os.sep)}out{re.escape(os.sep)}", f"{step.id}/", error.where)

    def _uncached(self, step: Step, inputs: dict[str, Path], document: dict[str, Any], started: float) -> Result:
        out = self.scratch / digest_of(step.id)[:16]
        out.mkdir()
        facts = self._work(step, inputs, document["options"], out)
        return Result(StageRecord(step=step.id, status="done", seconds=_since(started)), facts, out)

    def _publish(self, step: Step, key: str, inputs: dict[str, Path], document: dict[str, Any]) -> Entry:
        with self.store.staging(key, document) as out, self.store.unfinished(key) if step.resumable else nullcontext() as kept:
            facts = self._work(step, inputs, document["options"], out, kept)
            (out / FACTS).write_text(json.dumps(facts, sort_keys=True, indent=1, allow_nan=False), encoding="utf-8")
        entry = self.store.get(key)
        if entry is None:
            raise RuntimeError(f"the store lost {key} right after publishing it")
        return entry

    def _work(self, step: Step, inputs: dict[str, Path], options: Mapping[str, Any], out: Path, kept: Path | None = None) -> Facts:
        """Calls the stage, then its checks on what it wrote."""
        progress = self._progress_of(step.id)
        log = self.store.log_path(step.id)
        job = Job(inputs, options, out, progress, kept)
        facts = self.workers.run(step.stage, job, timeout_seconds=self.timeout_seconds, log=log, preload=preload(step), warm=self._warm(step))
        not_done: Facts = {name: {"not_done": reason} for name, reason in step.not_checked.items()}
        if step.checks or not_done:
            facts["checks"] = {check.name: self._check(check, out, log) for check in step.checks} | not_done
        log.unlink(missing_ok=True)  # it is kept only where somebody will ask what went wrong
        return facts

    def _warm(self, step: Step) -> tuple[str, ...]:
        """What the one step that follows in the same server will import; of several none is preferred, as frameworks do not mix."""
        following = [one for one in self.steps.values() if step.id in one.upstream and one.preload == () and preload(one) == preload(step)]
        return plugins.warm(following[0].plugins[0]) if len(following) == 1 and following[0].plugins else ()

    def _check(self, check: Check, out: Path, log: Path) -> Facts:
        inputs = {**check.files, **{role: self._locate(need) for role, need in check.needs.items()}, "model": out / check.model}
        with tempfile.TemporaryDirectory(dir=self.scratch) as scratch:
            job = Job(inputs, check.options, Path(scratch))
            output = log.with_suffix(f".{check.name}.txt")
            facts = self.workers.run(check.stage, job, timeout_seconds=self.timeout_seconds, log=output, preload=_preload(check.plugins))
            output.unlink(missing_ok=True)
            return facts

    def _progress_of(self, id: str) -> Any:
        return lambda done, total, note: self.listener.progressed(id, done, total, note)

    def _resolve(self, step: Step) -> tuple[dict[str, Path], dict[str, Any]]:
        """Finds a step's inputs and the canonical document of everything that decides its output."""
        options = {**step.options, **{name: self.results[fact.step].facts[fact.name] for name, fact in step.derived.items()}}
        needs = {role: need for role, need in step.needs.items() if self.results[need.step].ok}
        inputs = {**step.files, **{role: self._locate(need) for role, need in needs.items()}}
        document = {
            "stage": step.stage,
            "code": own_code(),
            "options": options,
            "inputs": self._describe(needs, step.files, step.apart),
            "versions": _versions(step.plugins),
            "checks": [
                [check.stage, dict(check.options), self._describe(check.needs, check.files), _versions(check.plugins)] for check in step.checks
            ],
            **({"not_checked": dict(step.not_checked)} if step.not_checked else {}),
        }
        return inputs, document

    def _describe(self, needs: Mapping[str, Need], files: Mapping[str, Path], apart: tuple[Path, ...] = ()) -> dict[str, Any]:
        found = {role: self._digest(need) for role, need in needs.items()}
        return {**found, **{role: self._fingerprint(role, path, apart) for role, path in files.items()}}

    def _locate(self, need: Need) -> Path:
        folder = self.results[need.step].folder
        if folder is None:
            raise RuntimeError(f"{need.step} has no output")
        return folder / need.path

    def _digest(self, need: Need) -> str:
        entry = self.entries[need.step]
        files = (need.path, need.path + DATA_SUFFIX)  # an ONNX graph, and the weights that it refers to
        chosen = {name: digest for name, digest in entry.files.items() if not need.path or name in files or name.startswith(f"{need.path}/")}
        return digest_of(chosen)

    def _fingerprint(self, role: str, path: Path, apart: tuple[Path, ...]) -> Any:
        """Digests each of the user's paths once a run."""
        with self._fingerprint_lock:
            if (role, path) not in self._fingerprints:
                self._fingerprints[role, path] = fingerprint_project(path, apart) if role == PROJECT else fingerprint(path)
            return self._fingerprints[role, path]


def preload(step: Step) -> tuple[str, ...]:
    """Returns the modules that a server imports before it forks this step's stage."""
    return step.preload or _preload(step.plugins)


def _preload(used: Iterable[plugins.Plugin]) -> tuple[str, ...]:
    """What the stages of these plugins share; no framework as soon as they differ, as frameworks do not mix."""
    found = {plugins.preload(plugin) for plugin in used}
    return (found.pop() if len(found) == 1 else ()) or _COMMON


def _versions(used: Iterable[plugins.Plugin]) -> dict[str, Any]:
    return {plugin.name: [plugin.version, plugins.versions(plugin)] for plugin in used}


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
