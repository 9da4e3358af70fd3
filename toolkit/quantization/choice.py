"""Stage: takes the better one of the file that the repair ladder ended with and the one that was trained for int8."""

from __future__ import annotations

from typing import Any

from toolkit import modelfile
from toolkit.job import Facts, Job, read_facts
from toolkit.quantization.stage import LABEL

QAT = "qat"


def run(job: Job) -> Facts:
    """Copies one of two files.

    Args:
        job: Inputs ``ladder`` and ``qat``, the folders of two steps that quantized, of which one may be missing; option ``model``, the
            file's name in both.

    Returns:
        The facts of the file that was taken. Where both are there, the ladder's facts are those of all rungs.
    """
    facts = {role: read_facts(folder) for role, folder in job.inputs.items()}
    taken = max(facts, key=lambda role: _rank(facts[role]))
    folder = job.inputs[taken]
    modelfile.copy(folder / job.options["model"], job.out / job.options["model"])
    (job.out / LABEL).write_bytes((folder / LABEL).read_bytes())
    told = {name: value for name, value in facts[taken].items() if name != "checks"}
    return told | ({"ladder": _both(facts, taken)} if len(facts) == 2 else {})


def _rank(facts: Facts) -> tuple[float, float]:
    ladder = facts.get("ladder") or {"drop": [0.0], "sqnr_db": 0.0}
    return -ladder["drop"][0], ladder["sqnr_db"]


def _both(facts: dict[str, Facts], taken: str) -> dict[str, Any]:
    """The rungs of the ladder, then those climbed after training."""
    before, after = facts["ladder"]["ladder"], facts[QAT]["ladder"]
    trained = [
        {**one, "rung": QAT if one["rung"] == "default" else f"{QAT}, {one['rung']}", "adopted": taken == QAT and one["adopted"]}
        for one in after["rungs"]
    ]
    rungs = [one["rung"] for one in trained if one["adopted"]]
    return {**(after if taken == QAT else before), "rungs": [*before["rungs"], *trained], "taken": list(dict.fromkeys(rungs)) or before["taken"]}
