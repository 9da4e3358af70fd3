"""Holds a model file against its label: "int8" is a claim until the bytes are read back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from toolkit import intake, plugins
from toolkit.contents import Contents, Layer
from toolkit.errors import AuditFailed, InputRejected
from toolkit.job import Facts, Job

MIXED = "mixed"
_MAX_NAMED = 3
_COMPUTED = "-"
_DYNAMIC = "dynamic"
_FOUR_BITS = "static_wi4_ai8"
_WITHOUT_FOUR_BITS = ("DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")  # no runtime has kernels for their weights in 4 bits
_FLOATS = ("float32", "float16")
LABEL = "label.json"
_INTEGER = re.compile(r"u?int(\d+)")


def run(job: Job) -> Facts:
    """Reads ``inputs["model"]`` and compares what it contains with what it is called.

    Options: ``format`` (taken from the suffix when absent) and ``expect``, the scheme that the file is labelled with. A file
    ``label.json`` beside the model names layers that were kept in float on purpose, and the scheme where ``expect`` does not; without
    either the facts are returned and nothing is compared.

    Returns:
        ``scheme_found``; ``layers`` and ``int8_layers``, which count layers that store weights; ``weight_bytes`` by
        element type; ``size_bytes``; ``signature`` as the file states it.

    Raises:
        InputRejected: The file is damaged.
        NoRoute: No reader looks into this format.
        MissingExtra: The library that reads this format is not installed.
        AuditFailed: The file is not what its label says; the message names the first layers that do not fit.
    """
    contents = _read(job)
    label = read_label(job.inputs["model"])
    expected = job.options.get("expect") or label.get("scheme")
    kept = tuple(label.get("kept_float", ()))
    if expected:
        compare(contents, expected, kept_float=kept, where=str(job.inputs["model"]))
    weighted = _weighted(contents.layers)
    return {
        "scheme_found": classify(without(contents, kept)),
        "int8_layers": sum(layer.weight_dtype in ("int8", "uint8") for layer in weighted),
        "layers": len(weighted),
        "weight_bytes": dict(contents.weight_bytes),
        "size_bytes": contents.size_bytes,
        "signature": contents.signature.model_dump(mode="json"),
    }


def describe(job: Job) -> Facts:
    """Reads ``inputs["model"]`` and compares it with nothing. Option: ``format``, taken from the suffix when absent.

    Returns:
        ``contents``, a :class:`toolkit.contents.Contents` as plain values; ``scheme``, what :func:`classify` calls it.

    Raises:
        InputRejected: The file is damaged.
        NoRoute: No reader looks into this format.
        MissingExtra: The library that reads this format is not installed.
    """
    contents = _read(job)
    return {"contents": contents.model_dump(mode="json"), "scheme": classify(contents)}


def _read(job: Job) -> Contents:
    model = job.inputs["model"]
    reader = plugins.reader(intake.check_model(model, job.options.get("format")))
    plugins.require(reader)
    return reader.read(model)


def classify(contents: Contents) -> str:
    """Names the scheme that every layer of a model follows.

    Returns:
        ``float32``, ``float16``, ``static_wi8_ai8``, ``static_wi8_ai16``, ``static_wi4_ai8``, ``dynamic_wi8``,
        ``weight_only_wi8``, ``weight_only_wi4`` or another combination spelled the same way; ``mixed`` when layers
        differ. Matrix products of two computed tensors have no weights to judge, but their activations must fit:
        integers in a static scheme, floats or integers made on the fly elsewhere.
    """
    weighted = _weighted(contents.layers)
    schemes = {_scheme(layer) for layer in weighted}
    if schemes == {_FOUR_BITS, "static_wi8_ai8"} and not _offenders(contents.layers, _FOUR_BITS):
        schemes = {_FOUR_BITS}
    if not schemes:
        schemes = {"float16"} if set(contents.weight_bytes) & {"float16", "float32"} == {"float16"} else {"float32"}
    if len(schemes) > 1:
        return MIXED
    scheme = schemes.pop()
    return MIXED if _offenders(contents.layers, scheme) else scheme


def read_label(model: Path) -> dict[str, Any]:
    """Reads ``label.json`` beside a model; empty where there is none.

    Raises:
        InputRejected: It is damaged.
    """
    path = model.with_name(LABEL)
    if not path.is_file():
        return {}
    try:
        label: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(label["scheme"], str) or not all(isinstance(name, str) for name in label["kept_float"]):
            raise ValueError("scheme must be a text, and kept_float a list of names")
    except (ValueError, KeyError, TypeError) as error:
        raise InputRejected(f"is no label: {error}", where=str(path), hint="quantize the model again") from error
    return label


def without(contents: Contents, kept_float: Iterable[str]) -> Contents:
    """The contents but for some layers."""
    names = set(kept_float)
    return contents.model_copy(update={"layers": tuple(layer for layer in contents.layers if layer.name not in names)}) if names else contents


def compare(contents: Contents, expected: str, *, kept_float: Sequence[str] = (), where: str = "") -> None:
    """Makes sure that a model is what its label says.

    Args:
        contents: What the file contains.
        expected: The scheme it is labelled with.
        kept_float: Names of the layers that the label says are float: exactly these must be.
        where: The file, for the message.

    Raises:
        AuditFailed: It is not.
    """
    _check_kept(contents, kept_float, where)
    contents = without(contents, kept_float)
    found = classify(contents)
    if found == expected:
        return
    offenders = _offenders(contents.layers, expected)
    named = "; ".join(_describe(layer) for layer in offenders[:_MAX_NAMED])
    more = f"; and {len(offenders) - _MAX_NAMED} more" if len(offenders) > _MAX_NAMED else ""
    verb = "is" if len(offenders) == 1 else "are"
    reason = f"{len(offenders)} of {len(contents.layers)} layers {verb} not: {named}{more}" if offenders else "it has no layer that stores weights"
    hint = f"label the file {found}, or quantize it again; edgekit inspect lists every layer"
    raise AuditFailed(f"labelled {expected}, but {reason} (found {found})", where=where, hint=hint)


def _check_kept(contents: Contents, kept_float: Sequence[str], where: str) -> None:
    """Refuses a label that calls a layer float which is not, or is not there."""
    hint = "label the file by what it holds, or quantize it again; edgekit inspect lists every layer"
    layers = {layer.name: layer for layer in contents.layers}
    for name in kept_float:
        if name not in layers:
            raise AuditFailed(f"the label says that layer {name!r} is float, and there is no such layer", where=where, hint=hint)
        if not _is_float(layers[name]):
            raise AuditFailed(f"the label says that layer {name!r} is float, but {_describe(layers[name])}", where=where, hint=hint)


def _is_float(layer: Layer) -> bool:
    if layer.weight_dtype == _COMPUTED:
        return not _INTEGER.fullmatch(layer.activation_dtype)
    return _scheme(layer) in _FLOATS


def _weighted(layers: Iterable[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer.weight_dtype != _COMPUTED]


def _scheme(layer: Layer) -> str:
    """Names the scheme of one layer that stores weights."""
    weights = _INTEGER.fullmatch(layer.weight_dtype)
    if not weights:
        return layer.weight_dtype
    activations = _INTEGER.fullmatch(layer.activation_dtype)
    if activations:
        return f"static_wi{weights[1]}_ai{activations[1]}"
    return f"{'dynamic' if layer.activation_dtype.startswith(_DYNAMIC) else 'weight_only'}_wi{weights[1]}"


def _offenders(layers: Iterable[Layer], scheme: str) -> list[Layer]:
    return [layer for layer in layers if not _fits(layer, scheme)]


def _fits(layer: Layer, scheme: str) -> bool:
    if layer.weight_dtype != _COMPUTED:
        wider = scheme == _FOUR_BITS and layer.operator in _WITHOUT_FOUR_BITS
        return _scheme(layer) in ((scheme, "static_wi8_ai8") if wider else (scheme,))
    activations = _INTEGER.fullmatch(layer.activation_dtype)
    wanted = re.fullmatch(r"static_wi\d+_ai(\d+)", scheme)
    return (activations[1] if activations else None) == (wanted[1] if wanted else None)


def _describe(layer: Layer) -> str:
    name = f"{layer.operator} {layer.name!r}"
    if layer.weight_dtype == _COMPUTED:
        return f"{name} multiplies {layer.activation_dtype} activations"
    if not _INTEGER.fullmatch(layer.weight_dtype):
        return f"{name} has {layer.weight_dtype} weights"
    return f"{name} has {layer.weight_dtype} weights and {layer.activation_dtype} activations"
