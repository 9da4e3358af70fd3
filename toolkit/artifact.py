"""Frozen facts about model files: what goes in, what comes out, who made it. No I/O happens here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from toolkit import display

MANIFEST_SUFFIX = ".manifest.json"


class Frozen(BaseModel):
    """A strict, immutable record; an unknown field is an error, not a surprise later."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class TensorSpec(Frozen):
    """One input or output of a model.

    Attributes:
        name: The name callers use in the signature.
        dtype: NumPy's name of the element type, for example ``float32``.
        shape: Sizes; a string names a dimension that is free at run time.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} [{' x '.join(str(size) for size in self.shape)}] {self.dtype}"


class Signature(Frozen):
    """The named inputs and outputs of a model, in calling order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Manifest(Frozen):
    """What is known about one model file; written beside it as ``<file>.manifest.json``.

    Attributes:
        manifest: Version of this layout.
        name: Name of the model, the same through all formats.
        format: ``pt2``, ``onnx``, ``tflite`` or a plugin's own.
        scheme: ``float32``, ``static_wi8_ai8`` and so on.
        sha256: Digest of the model file.
        size_bytes: Size of the model file.
        signature: Inputs and outputs.
        made_by: The route, quantizer or source that wrote the file.
        versions: Distributions that took part, with their versions.
        parent_sha256: Digest of the file this one was made from; empty for a captured source.
        evidence: What was measured before the file was published: parity, audit, calibration, options.
    """

    manifest: int = 1
    name: str
    format: str
    scheme: str
    sha256: str
    size_bytes: int
    signature: Signature
    made_by: str
    versions: dict[str, str] = Field(default_factory=dict)
    parent_sha256: str = ""
    evidence: dict[str, Any] = Field(default_factory=dict)


class Artifact(Frozen):
    """A model file on disk together with its manifest.

    Attributes:
        path: Where the file is.
        manifest: What is known about it.
        cached: Whether it came from the store instead of being computed now.
    """

    path: Path
    manifest: Manifest
    cached: bool = False

    @property
    def format(self) -> str:
        """The model's format."""
        return self.manifest.format

    @property
    def scheme(self) -> str:
        """The model's number format."""
        return self.manifest.scheme

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.manifest.size_bytes

    @property
    def signature(self) -> Signature:
        """Inputs and outputs."""
        return self.manifest.signature

    def _repr_html_(self) -> str:
        facts = {
            "file": self.path,
            "format": self.format,
            "scheme": self.scheme,
            "size_bytes": f"{self.size_bytes:,}",
            "inputs": ", ".join(map(str, self.signature.inputs)),
            "outputs": ", ".join(map(str, self.signature.outputs)),
            "made by": self.manifest.made_by,
            "sha256": self.manifest.sha256,
        }
        return display.facts_html(f"{self.manifest.name} ({self.format}, {self.scheme})", facts)
