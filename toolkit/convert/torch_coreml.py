"""PyTorch to a Core ML package (``.mlpackage``) through coremltools. It can be written on any system and executed on Apple's alone."""

from __future__ import annotations

import json
import traceback
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import coreml_models, pt2
from toolkit.artifact import Signature
from toolkit.convert import torch_programs, torch_rewrites
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Obstacle, Route

if TYPE_CHECKING:
    import torch

_WHERE = "torch_coreml"
_CANNOT = "coremltools cannot convert the program"
_NO_COUNTERPART = "has no Core ML counterpart that coremltools knows"
_DATE = "com.github.apple.coremltools.conversion_date"
_SOURCE = "com.github.apple.coremltools.source"
_FOREIGN = "executorch_debug_handle_mapping.json"
_MANIFEST = "Manifest.json"


class TorchCoreML:
    """Writes an ML program of float32 numbers; 64-bit integer inputs become 32-bit ones. The same program gives the same bytes."""

    name = "torch_coreml"
    version = 1
    source = "pt2"
    format = "mlpackage"
    modules: tuple[str, ...] = ("torch", "coremltools")
    distributions: tuple[str, ...] = ("torch", "coremltools")
    extra = "edgekit[torch,coreml]"
    preload = pt2.PRELOAD
    options: tuple[str, ...] = ("rewrites",)
    rewrites: Mapping[str, str] = torch_rewrites.OFFERED
    trust = 0.8

    def convert(self, program: Path, out: Path, signature: Signature, *, rewrites: Sequence[str] = ()) -> torch_rewrites.Changed:
        """Converts a ``.pt2`` program.

        Args:
            program: The exported program; it takes the signature's inputs by keyword.
            out: The ``.mlpackage`` folder to write.
            signature: Inputs and outputs, with static shapes.
            rewrites: Names of the rewrites to apply; see :mod:`toolkit.convert.torch_rewrites`.

        Returns:
            The places that each rewrite changed.

        Raises:
            InputRejected: The program is damaged, or its inputs and outputs are others.
            StageFailed: An operator has no counterpart, the program was captured in training mode, or names were lost.
        """
        loaded, changed = torch_rewrites.apply(pt2.load(program), rewrites)
        torch_programs.check_names(loaded, signature, _WHERE)
        torch_programs.refuse_training(loaded, _WHERE)
        model = _convert(loaded)
        model.save(str(out))
        _forget_origin(out)
        _check(coreml_models.read_spec(out), signature)
        return changed

    def preflight(self, program: Path, signature: Signature, *, rewrites: Sequence[str] = ()) -> list[Obstacle]:
        """Returns the operators that coremltools has no conversion for.

        Raises:
            InputRejected: The program is damaged.
        """
        loaded, _ = torch_rewrites.apply(pt2.load(program, keep=True), rewrites)
        return torch_programs.training_obstacles(loaded) + _obstacles(loaded.run_decompositions({}))


ROUTE: Route = TorchCoreML()


def _convert(program: torch.export.ExportedProgram) -> Any:
    library = coreml_models.library()
    names = torch_programs.output_names(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it leaves temporary folders to the garbage collector, which warns of each
        try:
            return library.convert(
                program.run_decompositions({}),
                outputs=[library.TensorType(name=name) for name in names],
                convert_to="mlprogram",
                compute_precision=library.precision.FLOAT32,
                skip_model_load=True,
            )
        except CODE_ERRORS as error:
            traceback.clear_frames(error.__traceback__)
            raise _explain(error, program) from error


def _explain(error: BaseException, program: torch.export.ExportedProgram) -> StageFailed:
    found = _obstacles(program.run_decompositions({}))
    if found:
        return torch_programs.refusal(_CANNOT, found, _WHERE)
    reason = first_line(error)
    layers = torch_programs.layers_of(program, reason)
    return StageFailed(f"{_CANNOT}: {reason}{layers}", where=_WHERE, hint="replace that operator in the model")


def _obstacles(program: torch.export.ExportedProgram) -> list[Obstacle]:
    coreml_models.library()
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as REGISTRY

    return torch_programs.obstacles(program, lambda operator: REGISTRY.get_func(operator.name().replace("::", ".")) is not None, _NO_COUNTERPART)


def _forget_origin(package: Path) -> None:
    """Drops the date, random identifiers and the build tag of torch, and a file of another project's."""
    spec = coreml_models.read_spec(package)
    notes = spec.description.metadata.userDefined
    notes.pop(_DATE, None)
    notes[_SOURCE] = notes[_SOURCE].partition("+")[0]
    spec.mlProgram.attributes.pop("buildInfo", None)
    (package / coreml_models.SPEC).write_bytes(spec.SerializeToString(deterministic=True))
    (package / _FOREIGN).unlink(missing_ok=True)
    manifest = json.loads((package / _MANIFEST).read_text(encoding="utf-8"))
    renamed = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])) for old, entry in manifest["itemInfoEntries"].items()}
    manifest["itemInfoEntries"] = dict(sorted((renamed[old], entry) for old, entry in manifest["itemInfoEntries"].items()))
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    (package / _MANIFEST).write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")


def _check(spec: Any, signature: Signature) -> None:
    """Core ML renames what is not an identifier of its own, without a word."""
    for side, features, specs in (("inputs", spec.description.input, signature.inputs), ("outputs", spec.description.output, signature.outputs)):
        found, wanted = sorted(feature.name for feature in features), sorted(one.name for one in specs)
        if found != wanted:
            raise StageFailed(
                f"coremltools wrote the {side} {found}, expected {wanted}", where=_WHERE, hint="use names of letters, digits and underscores"
            )
