"""Text for results that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

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
    rows |= _of_quantization(manifest.evidence)
    audit = manifest.evidence.get("checks", {}).get("audit", {})
    if "not_done" in audit:
        rows["audit"] = f"not done: {audit['not_done']}"
    if notes := manifest.evidence.get("notes"):
        rows["notes"] = "\n".join(notes)
    return facts(rows)


def _of_quantization(evidence: Mapping[str, Any]) -> dict[str, object]:
    rows: dict[str, object] = {}
    if ranges := evidence.get("ranges"):
        rows["ranges"] = f"{ranges['verdict']}: {ranges['reason']}"
    if chosen := evidence.get("auto"):
        rows["auto"] = f"{chosen['scheme']}: {chosen['why']}"
    if kept := evidence.get("label", {}).get("kept_float"):
        rows["float"] = f"{len(kept)} layers, as labelled: {', '.join(kept[:4])}{', ...' * (len(kept) > 4)}"
    if climbed := evidence.get("ladder"):
        rows["repair"] = "\n".join(ladder_lines(climbed))
    return rows


def ladder_lines(climbed: Mapping[str, Any]) -> list[str]:
    """Says what the repair ladder tried, a line each, and where it ended."""
    lines = [_tried(one) for one in climbed["rungs"]]
    if not climbed["asked"] and climbed["held"] and len(lines) == 1:
        return [*lines, "nothing to repair"]
    allowed = f"{climbed['max_drop'] * 100:g} points {'allowed' if climbed['asked'] else 'aimed at'}, n={climbed['n']} search samples"
    taken = ", ".join(climbed["taken"])
    return [*lines, f"taken: {taken} ({allowed})" if climbed["held"] else f"nothing held ({allowed}); the best: {taken}"]


def _tried(one: Mapping[str, Any]) -> str:
    done = f" ({'; '.join(one['done'][:2])}{'; ...' * (len(one['done']) > 2)})" if one["done"] else ""
    if "reason" in one:
        return f"{one['rung']}{done}: not made: {one['reason']}"
    value, low, high = (100 * figure for figure in one["drop"])
    kept = "" if one["adopted"] else ", not kept"
    return f"{one['rung']}{done}: {value:z.1f} points lost [{low:z.1f}, {high:z.1f}], {one['sqnr_db']:.0f} dB{kept}"
