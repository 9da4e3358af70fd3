"""Says what makes a file slower than its float twin: which operators, by what it contains and by what they take."""

from __future__ import annotations

from pathlib import Path

from toolkit import modelfile
from toolkit.artifact import Artifact
from toolkit.audit.suspects import suspects
from toolkit.checks.latency import is_slower
from toolkit.columns import random_samples
from toolkit.config import Target
from toolkit.contents import Contents
from toolkit.errors import ToolkitError
from toolkit.figures import Latency, OperatorTime
from toolkit.pipeline import profile
from toolkit.pipeline.single import on_disk, open_model, run_steps, runtime_of
from toolkit.store import Store
from toolkit.suspects import Slower

_SECONDS = 0.5


def explain(model: Path, latency: Latency | None, target: Target, store: Store | None = None) -> Slower | None:
    """Looks for the operators that are responsible, where a file was measured slower than its float twin.

    The file is profiled once more only then, on the target's runtime and with random samples.

    Args:
        model: The file.
        latency: What was measured, beside its twin.
        target: Where.
        store: Where the reading of the file is kept.

    Returns:
        How much slower it is, and why; ``None`` where it is not.
    """
    if latency is None or not is_slower(latency) or not modelfile.exists(model):
        return None
    ratio, low, high = latency.ratio_to_float, latency.ratio_low, latency.ratio_high
    if ratio is None or low is None or high is None:
        return None
    try:
        opened, contents = open_model(model, store)
    except ToolkitError:  # a plugin's format without a reader: the figures stand, nobody can say why
        return Slower(ratio=ratio, low=low, high=high)
    found = suspects(contents, _profile(opened, contents, target, store))
    return Slower(ratio=ratio, low=low, high=high, suspects=tuple(found))


def _profile(opened: Artifact, contents: Contents, target: Target, store: Store | None) -> list[OperatorTime] | None:
    """Times of the operators; ``None`` where the runtime cannot tell."""
    try:
        runtime = runtime_of(target, opened)
        if not hasattr(runtime, "open_profiled"):
            return None
        with on_disk(random_samples(contents.signature)) as samples:
            wanted = profile.step(opened, samples, target, runtime, _SECONDS)
            facts = run_steps([wanted], store, None)[wanted.id].facts
    except ToolkitError:
        return None
    return [OperatorTime.model_validate(operator) for operator in facts["operators"]]
