"""``toolkit.audit_model``: what a model file really contains, held against what it is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit import display
from toolkit.artifact import Artifact, Frozen, Signature
from toolkit.audit.stage import LABEL, classify, compare, read_label, without
from toolkit.audit.suspects import suspects
from toolkit.contents import Contents, Layer, Structure
from toolkit.errors import AuditFailed, ConfigError
from toolkit.mistakes import nearest
from toolkit.pipeline.deliver import manifest_path
from toolkit.pipeline.single import open_model
from toolkit.store import Store
from toolkit.suspects import Suspect

COMPUTED = "-"
_FOUND = ("float32", "float16", "bfloat16", "int8", "uint8", "int16")


class Label(Frozen):
    """What a file is called.

    Attributes:
        scheme: The scheme that all layers with weights follow, but for those kept.
        kept_float: Names of layers that are float on purpose.
        given_by: Who says so: ``--expect``, ``label.json`` or the manifest.
    """

    scheme: str
    kept_float: tuple[str, ...] = ()
    given_by: str = ""


class Audit(Frozen):
    """What a model file contains, and whether its label fits.

    Attributes:
        artifact: The file.
        format: Its format.
        size_bytes: Its size.
        scheme: What all layers follow but for those that the label keeps in float; ``mixed`` where they differ.
        label: What it is called; ``None`` where nobody says.
        problems: Why the label does not fit, a sentence each; empty where it does.
        signature: Inputs and outputs with their element types.
        weight_bytes: Stored bytes of weights by element type.
        layers: Every layer that multiplies, the largest first.
        structure: Share of work in integers, operators without a kernel, float islands; ``None`` where the format's reader does not tell.
        suspects: Operators that are known to be slow.
    """

    artifact: str
    format: str
    size_bytes: int
    scheme: str
    label: Label | None
    problems: tuple[str, ...]
    signature: Signature
    weight_bytes: dict[str, int]
    layers: tuple[Layer, ...]
    structure: Structure | None
    suspects: tuple[Suspect, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the label; so it is where there is none."""
        return not self.problems

    def _repr_html_(self) -> str:
        verdict = "; ".join(self.problems) or ("as labelled" if self.label else "no label")
        rows = [(one.name, one.operator, one.weight_dtype, one.activation_dtype, f"{one.weight_bytes:,}") for one in self.layers]
        return display.table_html(f"{self.artifact}: {self.scheme}, {verdict}", ("layer", "operator", "weights", "activations", "bytes"), rows)


def audit_model(
    model: Artifact | str | Path,
    *,
    expect: str | None = None,
    kept_float: Sequence[str] = (),
    io: str | None = None,
    store: Store | None = None,
) -> Audit:
    """Reads a model file's bytes back and holds them against its label.

    Args:
        model: The file.
        expect: The scheme that it should follow. Without it, a ``label.json`` beside the file counts, else its manifest.
        kept_float: Names of layers that should be float; those of ``label.json`` where none is given.
        io: Element type that every input and output should have, for example ``int8``.
        store: Where the reading is kept; the user's cache by default.

    Raises:
        ConfigError: An unknown element type, or layers are given without a scheme.
        InputRejected: The file or its label is damaged, or of a format that must not be read.
        MissingExtra: The library that reads this format is not installed.
        NoRoute: No reader looks into this format, and no runtime executes it.
    """
    if io is not None and io not in _FOUND:
        raise ConfigError(f"unknown element type {io!r}", where="io", hint=nearest(io, list(_FOUND)))
    opened, contents = open_model(model, store)
    label = _label(opened, expect, tuple(kept_float))
    if kept_float and label is None:
        raise ConfigError("layers that are kept in float say nothing without a scheme", where="kept_float", hint="give expect too")
    return Audit(
        artifact=opened.path.name,
        format=opened.format,
        size_bytes=contents.size_bytes,
        scheme=classify(without(contents, label.kept_float if label else ())),
        label=label,
        problems=tuple(_problems(contents, label, io)),
        signature=contents.signature,
        weight_bytes=contents.weight_bytes,
        layers=tuple(sorted(contents.layers, key=lambda layer: -layer.weight_bytes)),
        structure=contents.structure,
        suspects=tuple(suspects(contents)),
    )


def _label(opened: Artifact, expect: str | None, kept_float: tuple[str, ...]) -> Label | None:
    beside: dict[str, Any] = read_label(opened.path)
    if expect:
        return Label(scheme=expect, kept_float=kept_float or tuple(beside.get("kept_float", ())), given_by="--expect")
    if beside:
        return Label(scheme=beside["scheme"], kept_float=kept_float or tuple(beside["kept_float"]), given_by=LABEL)
    if not manifest_path(opened.path).is_file():
        return None
    delivered = opened.manifest.evidence.get("label") or {}
    kept = kept_float or tuple(delivered.get("kept_float", ()))
    return Label(scheme=delivered.get("scheme", opened.scheme), kept_float=kept, given_by="the manifest")


def _problems(contents: Contents, label: Label | None, io: str | None) -> list[str]:
    found = []
    if label:
        try:
            compare(contents, label.scheme, kept_float=label.kept_float)
        except AuditFailed as error:
            found.append(error.message)
    specs = (*contents.signature.inputs, *contents.signature.outputs)
    wrong = [f"{spec.name} {spec.dtype}" for spec in specs if io and spec.dtype != io]
    return [*found, *([f"inputs and outputs should be {io}, but these are not: {', '.join(wrong)}"] if wrong else [])]
