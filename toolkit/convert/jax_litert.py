"""JAX to TFLite through LiteRT's own converter, without TensorFlow and without PyTorch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from toolkit import jax_programs
from toolkit.artifact import Signature
from toolkit.convert import stablehlo, stablehlo_gelu, tfl_loops
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Obstacle, Route

_SIGNATURE = "serving_default"
_ILLEGAL = re.compile(r"'(?:tfl|stablehlo|vhlo|mhlo|chlo)\.(\w+)'|TF Select ops: (\w+)")


class JaxLiteRT:
    """Writes a ``.tflite`` file with one signature; 64-bit integers become 32-bit ones."""

    name = "jax_litert"
    version = 1
    source = "jax"
    format = "tflite"
    modules: tuple[str, ...] = ("jax", "litert_converter")
    distributions: tuple[str, ...] = ("jax", "jaxlib", "litert-converter")
    extra = "edgekit[jax]"
    preload = jax_programs.PRELOAD
    trust = 0.75

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a ``.jax`` program.

        Args:
            program: The captured function.
            out: The ``.tflite`` file to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: An operator has no TFLite kernel, or an output would have another shape.
        """
        out.write_bytes(to_tflite(jax_programs.load(program), self.name))

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Returns what TFLite has no kernel for; see :class:`toolkit.plugins.Route`.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: The converter cannot read the program.
        """
        return obstacles(program)


ROUTE: Route = JaxLiteRT()


def obstacles(program: Path) -> list[Obstacle]:
    """Returns what TFLite has no kernel for in a ``.jax`` program, for every route that goes through it.

    Raises:
        InputRejected: The program is damaged.
        StageFailed: The converter cannot read the program.
    """
    loaded = jax_programs.load(program)
    with stablehlo.context():
        return stablehlo.obstacles(stablehlo.parse(loaded))


def to_tflite(program: jax_programs.Program, route: str) -> bytes:
    """Returns a program as the bytes of a ``.tflite`` file with one signature of the program's names.

    Args:
        program: The captured function.
        route: Name of the route that asks, for messages.

    Raises:
        StageFailed: An operator has no TFLite kernel, or an output would have another shape.
    """
    from litert_converter.mlir import ir

    with stablehlo.context(), ir.Location.unknown():
        module = stablehlo.parse(program)
        found = stablehlo.obstacles(module)
        if found:
            raise _cannot(f"{found[0].operator} {found[0].reason}", found[0].layer, route, found[0].hint)
        stablehlo.mend_transposed_convolutions(module)
        stablehlo_gelu.fuse(module)
        _name_after_layers(module)
        try:
            return _convert(module, program, route)
        except (*CODE_ERRORS, ir.MLIRError) as error:
            raise _cannot(_reason(error), "", route, "replace that operator in the model") from error


def _convert(module: Any, program: jax_programs.Program, route: str) -> bytes:
    from litert_converter import converter_api_ext
    from litert_converter.mlir import passmanager

    names = {"input_names": list(program.inputs), "output_names": list(program.outputs)}
    converter_api_ext.set_signature(module.operation, signature_name=_SIGNATURE, **names)
    merged = converter_api_ext.merge_modules([module])
    config = converter_api_ext.ConvertToTFLConfig()
    config.enable_x64 = False
    config.unsafe_fuse_dynamic_shaped_broadcast = True  # the shapes are static
    converter_api_ext.run_convert_to_tfl_passes(merged, passmanager.PassManager(), config)
    _check_shapes(merged, program, route)
    tfl_loops.outline(merged)
    return bytes(converter_api_ext.export_flatbuffer_to_bytes(merged.operation))


def _check_shapes(module: Any, program: jax_programs.Program, route: str) -> None:
    """Holds what the converted function returns against the program: a converter has changed sizes without a word before."""
    from litert_converter.mlir import ir

    main = next(one for one in stablehlo.operations(module, "func.func") if one.attributes["sym_name"].value == _SIGNATURE)
    end = list(main.regions[0].blocks[0].operations)[-1].operation
    for value, spec in zip(end.operands, program.signature.outputs, strict=True):
        found = tuple(ir.ShapedType(value.type).shape)
        if found != spec.shape:
            raise _cannot(f"it would give output {spec.name!r} the shape {list(found)} instead of {list(spec.shape)}", "", route, "report it")


def _name_after_layers(module: Any) -> None:
    """Calls every tensor after its layer, ``layer:stem``: what later tools keep of a node is its output's name."""
    from litert_converter.mlir import ir

    for operation in stablehlo.operations(module):
        path = stablehlo.layer(operation)
        operation.location = ir.Location.name(f"layer:{path.replace('/', '.')};") if path else ir.Location.unknown()


def _reason(error: BaseException) -> str:
    """The converter's messages span pages; the operator that it could not place is the reason."""
    named = _ILLEGAL.search(str(error))
    return f"{named[1] or named[2]} has no TFLite kernel for these types" if named else first_line(error)


def _cannot(reason: str, layer: str, route: str, hint: str) -> StageFailed:
    return StageFailed(f"LiteRT's converter cannot convert the program: {reason}", where=f"{route}, layer {layer}" if layer else route, hint=hint)
