"""JAX to ONNX by writing the captured StableHLO operator by operator; exporters that trace Python cannot take a captured program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import jax_programs
from toolkit.artifact import Signature
from toolkit.convert import stablehlo, stablehlo_gelu, stablehlo_onnx
from toolkit.convert.stablehlo_values import Unsupported
from toolkit.errors import StageFailed
from toolkit.factory import first_line
from toolkit.plugins import Obstacle, Route

_IR_VERSION = 10
_HINT = "replace that operator in the model, or compute it outside of it"


class JaxOnnx:
    """Writes one self-contained ``.onnx`` file whose bytes depend on the program and the versions alone."""

    name = "jax_onnx"
    version = 2
    source = "jax"
    format = "onnx"
    modules: tuple[str, ...] = ("jax", "litert_converter", "onnx")
    distributions: tuple[str, ...] = ("jax", "jaxlib", "litert-converter", "onnx")
    extra = "edgekit[jax,onnx]"
    preload = jax_programs.PRELOAD
    trust = 0.75

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a ``.jax`` program.

        Args:
            program: The captured function.
            out: The ``.onnx`` file to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: An operator has no ONNX counterpart, or the result is not valid ONNX.
        """
        import onnx

        try:
            model = to_onnx(jax_programs.load(program))
            onnx.checker.check_model(model, full_check=True)
        except Unsupported as error:
            raise StageFailed(f"the program has no ONNX counterpart: {error}", where=self.name, hint=_HINT) from error
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
            raise StageFailed(f"the program became invalid ONNX: {first_line(error)}", where=self.name, hint="report it to Edgekit") from error
        onnx.save_model(model, str(out))

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Returns what has no counterpart; or, by converting without writing, what has none as it is used here.

        See :class:`toolkit.plugins.Route`.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: The program cannot be read.
        """
        return obstacles(program)


ROUTE: Route = JaxOnnx()


def obstacles(program: Path) -> list[Obstacle]:
    """Returns what stands in the way of a ``.jax`` program, for every route that goes through ONNX.

    Raises:
        InputRejected: The program is damaged.
        StageFailed: The program cannot be read.
    """
    loaded = jax_programs.load(program)
    with stablehlo.context():
        found = stablehlo_onnx.unknown(stablehlo.parse(loaded))
    try:
        if not found:
            to_onnx(loaded)
    except Unsupported as error:
        found = [error]
    return [Obstacle(error.operator, error.layer, error.reason, _HINT) for error in found]


def to_onnx(program: jax_programs.Program) -> Any:
    """Returns a program as an ONNX ``ModelProto``.

    Raises:
        StageFailed: The program cannot be read.
        Unsupported: An operator has no counterpart.
    """
    from litert_converter.mlir import ir
    from onnx import helper

    with stablehlo.context(), ir.Location.unknown():
        module = stablehlo.parse(program)
        if stablehlo_gelu.fuse(module):
            stablehlo.drop_unused(module)
        graph = stablehlo_onnx.lower(module, program.inputs, program.outputs)
    opsets = [helper.make_opsetid("", stablehlo_onnx.OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="edgekit")
