"""Captured JAX programs (``.jax``) for everyone who needs one: the source that writes them, the runtime, the routes.

A ``.jax`` file is a mark (``intake.JAX_MAGIC``), the length of a JSON header, the header with the names of inputs and outputs
and the digest of what follows, and the function as ``jax.export`` serializes it: StableHLO for the CPU with the parameters as
constants. No part of it is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import intake
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected, StageOutOfMemory
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    from jax import export

PRELOAD = ("jax",)
PLATFORM = "cpu"

# Calls into compiled code that are JAX's own: linear algebra by LAPACK, and marks that compute nothing. A call of another
# target could be a Python callback, whose address the file would choose.
_KNOWN_CALLS = re.compile(r"lapack_[a-z0-9_]+|Sharding|shape_assertion|stablehlo\.dynamic_\w+|AllocateBuffer|ApproxTopK")
_CALL = re.compile(r'stablehlo\.custom_call"?\s*(?:@([\w.$]+)|@"([^"]+)"|.*?call_target_name\s*=\s*"([^"]+)")', re.DOTALL)
_CALL_MARK = b"custom_call"


@dataclass(frozen=True)
class Program:
    """A function as it was captured.

    Attributes:
        exported: The function; it takes the inputs by position and returns a tuple.
        inputs: Names of its inputs, in order.
        outputs: Names of its outputs, in order.
    """

    exported: export.Exported
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs; a size that is free at run time is a string."""
        return Signature(inputs=_specs(self.inputs, self.exported.in_avals), outputs=_specs(self.outputs, self.exported.out_avals))

    def wide(self) -> AbstractContextManager[Any]:
        """The setting under which the program computes what it computed when it was captured: with or without 64-bit numbers."""
        import jax

        return jax.enable_x64(any(aval.dtype.itemsize == 8 for aval in (*self.exported.in_avals, *self.exported.out_avals)))


def save(program: Program, out: Path) -> None:
    """Writes a ``.jax`` file; the same program gives the same bytes."""
    body = bytes(program.exported.serialize())
    fields = {"inputs": program.inputs, "outputs": program.outputs, "sha256": hashlib.sha256(body).hexdigest()}
    header = json.dumps(fields, sort_keys=True).encode()
    out.write_bytes(intake.JAX_MAGIC + len(header).to_bytes(8, "little") + header + body)


def load(path: Path) -> Program:
    """Reads a ``.jax`` file.

    Raises:
        InputRejected: The file is damaged, of another kind, for another platform, or calls code that is not JAX's own.
        StageOutOfMemory: The process may not have the memory that the program needs.
    """
    intake.check_model(path, "jax")
    from jax import export

    try:
        with path.open("rb") as file:
            header, body = intake.read_jax(file, path.stat().st_size)
        program = Program(export.deserialize(bytearray(body)), tuple(header["inputs"]), tuple(header["outputs"]))
        _check(program)
    except MemoryError as error:
        raise StageOutOfMemory(f"loading the program ran out of memory: {first_line(error)}", where=path.name) from error
    except (*CODE_ERRORS, struct.error) as error:
        raise InputRejected(f"is not a readable .jax program: {first_line(error)}", where=path.name, hint="capture the model again") from error
    return program


def _check(program: Program) -> None:
    exported = program.exported
    if len(program.inputs) != len(exported.in_avals) or len(program.outputs) != len(exported.out_avals):
        raise ValueError(
            f"it names {len(program.inputs)} inputs and {len(program.outputs)} outputs, has {len(exported.in_avals)} and {len(exported.out_avals)}"
        )
    for names in (program.inputs, program.outputs):
        if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise ValueError(f"its inputs or outputs are named {list(names)}")
    if exported.in_tree.num_nodes != len(program.inputs) + 3 or exported.nr_devices != 1:  # nodes: ((inputs), {})
        raise ValueError("it takes nested inputs or several devices")
    if PLATFORM not in exported.platforms:
        raise ValueError(f"it is for {', '.join(exported.platforms)}, expected {PLATFORM}")
    foreign = sorted(_calls(exported.mlir_module_serialized, exported) - {""})
    if foreign:
        raise ValueError(f"it calls {foreign[0]!r}, which is not code of JAX itself")


def _calls(module: bytes, exported: export.Exported) -> set[str]:
    """Returns what a program calls beyond the known; its text, twice as long as its weights, is only made where it calls at all."""
    if _CALL_MARK not in module:
        return set()
    targets = {next(filter(None, found)) for found in _CALL.findall(exported.mlir_module())}
    return {target for target in targets if not _KNOWN_CALLS.fullmatch(target)}


def _specs(names: tuple[str, ...], avals: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, dtype=str(aval.dtype), shape=tuple(size if isinstance(size, int) else str(size) for size in aval.shape))
        for name, aval in zip(names, avals, strict=True)
    )
