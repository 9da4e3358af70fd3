"""Runs a project through Edgekit's own machinery with the evidence taken out, so that what is left can be held against raw calls.

Taken out are the source's own evaluation, the checks (parity, audits), the paired comparison, latency, manifests and
reports. Left in are processes, files, hashing, caching, the validation of samples, and accuracy.
Called as ``python -m benchmarks.without_evidence PROJECT OUT``; ``EDGEKIT_CACHE`` names the store.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import toolkit
from toolkit.pipeline.execute import execute
from toolkit.pipeline.steps import Step, model_file
from toolkit.store import Store


def main(project: Path, out: Path) -> None:
    """Runs the steps, delivers the models, and writes the seconds of every step to ``steps.json``."""
    plan = toolkit.plan(project)
    results = execute([bare(step) for step in plan.steps if not is_evidence(step)], Store())
    failed = [result.error for result in results.values() if result.error]
    if failed:
        raise failed[0]
    for candidate in plan.candidates:
        shutil.copyfile(results[candidate.step].folder / model_file(candidate.format), out / candidate.file)
    seconds = {id: result.record.seconds for id, result in results.items()}
    (out / "steps.json").write_text(json.dumps(seconds, indent=1), encoding="utf-8")


def is_evidence(step: Step) -> bool:
    """Whether a step measures what the raw script does not."""
    return step.id == "evaluate:source" or step.id.startswith("benchmark:")


def bare(step: Step) -> Step:
    """The step without its checks and without the reference it would be compared with."""
    return replace(step, checks=(), needs={role: need for role, need in step.needs.items() if role != "reference"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
