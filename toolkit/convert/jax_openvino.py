"""JAX to OpenVINO IR by way of TFLite, whose operators OpenVINO's frontend knows; its own frontend for JAX wants live functions."""

from __future__ import annotations

import tempfile
from pathlib import Path

from toolkit import jax_programs, openvino_ir
from toolkit.artifact import Signature
from toolkit.convert import jax_litert, tflite_openvino
from toolkit.errors import StageFailed
from toolkit.plugins import Obstacle, Route


class JaxOpenVino:
    """Writes a folder with ``model.xml`` and ``model.bin``; 64-bit integers become 32-bit ones."""

    name = "jax_openvino"
    version = 1
    source = "jax"
    format = "openvino"
    modules: tuple[str, ...] = ("jax", "litert_converter", "ai_edge_litert", "openvino")
    distributions: tuple[str, ...] = ("jax", "jaxlib", "litert-converter", "ai-edge-litert", "openvino")
    extra = "edgekit[jax,litert,openvino]"
    preload = jax_programs.PRELOAD
    trust = 0.75

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a ``.jax`` program.

        Args:
            program: The captured function.
            out: The folder to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: An operator has no TFLite kernel or no OpenVINO counterpart.
        """
        loaded = jax_programs.load(program)
        with tempfile.TemporaryDirectory() as folder:
            between = Path(folder) / "model.tflite"
            between.write_bytes(jax_litert.to_tflite(loaded, self.name))
            try:
                tflite_openvino.ROUTE.convert(between, out, loaded.signature)
            except openvino_ir.library().frontend.OpConversionFailure as error:
                reason = openvino_ir.reason(error)
                hint = "take the route jax_onnx_openvino, or replace that operator in the model"
                raise StageFailed(f"OpenVINO cannot convert the model by way of TFLite: {reason}", where=self.name, hint=hint) from error

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Returns what TFLite, the way between, has no kernel for; see :class:`toolkit.plugins.Route`.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: The converter cannot read the program.
        """
        return jax_litert.obstacles(program)


ROUTE: Route = JaxOpenVino()
