"""What can be said about a file that no reader looks into: what its runtime says of it, and that nobody has looked."""

from __future__ import annotations

from toolkit import intake, modelfile, plugins
from toolkit.contents import Contents
from toolkit.job import Facts, Job

UNKNOWN = "unknown"


def run(job: Job) -> Facts:
    """Stands in for :func:`toolkit.audit.stage.run`: the label is compared with nothing, and the facts say so.

    Option: ``format``.

    Returns:
        ``not_done``, why there was no audit; ``size_bytes``; ``signature`` as the runtime states it.

    Raises:
        InputRejected: The file is damaged.
        NoRoute: No runtime executes this format.
        MissingExtra: The runtime is not installed.
    """
    contents = _open(job)
    return {**contents.details, "size_bytes": contents.size_bytes, "signature": contents.signature.model_dump(mode="json")}


def describe(job: Job) -> Facts:
    """Stands in for :func:`toolkit.audit.stage.describe`. Option: ``format``.

    Returns:
        ``contents``, a :class:`toolkit.contents.Contents` without operators or weights; ``scheme``, ``unknown``.

    Raises:
        InputRejected: The file is damaged.
        NoRoute: No runtime executes this format.
        MissingExtra: The runtime is not installed.
    """
    return {"contents": _open(job).model_dump(mode="json"), "scheme": UNKNOWN}


def _open(job: Job) -> Contents:
    model = job.inputs["model"]
    format = intake.check_model(model, job.options["format"])
    runtime = plugins.runtime_for(format)
    plugins.require(runtime)
    return Contents(
        format=format,
        size_bytes=modelfile.size_bytes(model),
        sha256=modelfile.sha256(model),
        signature=runtime.open(model, threads=1).signature,
        operators={},
        weight_bytes={},
        details={"not_done": f"no reader for {format}"},
    )
