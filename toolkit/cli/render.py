"""Text for results that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from toolkit.cli.common import facts

if TYPE_CHECKING:
    from rich.console import Console

    from toolkit.artifact import Artifact


def artifact_facts(artifact: Artifact) -> Callable[[Console], None]:
    """Shows a delivered model file and the evidence behind it."""
    manifest = artifact.manifest
    rows: dict[str, object] = {
        "file": artifact.path,
        "format": f"{artifact.format}, {artifact.scheme}",
        "size_bytes": f"{artifact.size_bytes:,}",
        "inputs": ", ".join(map(str, artifact.signature.inputs)),
        "outputs": ", ".join(map(str, artifact.signature.outputs)),
        "made by": manifest.made_by + (" (cached)" if artifact.cached else ""),
    }
    for rewrite, places in manifest.evidence.get("rewritten", {}).items():
        rows[f"rewrite {rewrite}"] = f"{len(places)} of {', '.join(places[:3])}{', ...' * (len(places) > 3)}" if places else "found nothing to change"
    for attempt in manifest.evidence.get("attempts", ()):
        if attempt["outcome"] != "taken" and attempt["code"] != "not-needed":
            rows[f"route {attempt['route']}"] = f"{attempt['outcome']}: {attempt['reason']}"
    parity = manifest.evidence.get("checks", {}).get("parity", {})
    if "not_done" in parity:
        rows["parity"] = f"not executed here: {parity['not_done']}"
    elif parity:
        compared = manifest.evidence.get("parity_inputs", "real samples")
        outputs = ", ".join(f"{name} {found['sqnr_db']:.1f} dB, max |difference| {found['max_abs']:.2g}" for name, found in parity["outputs"].items())
        rows["parity"] = f"{outputs} ({compared}, n={parity['n']})"
    audit = manifest.evidence.get("checks", {}).get("audit", {})
    if "not_done" in audit:
        rows["audit"] = f"not done: {audit['not_done']}"
    if notes := manifest.evidence.get("notes"):
        rows["notes"] = "\n".join(notes)
    return facts(rows)
