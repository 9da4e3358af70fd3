"""JAX to OpenVINO IR by way of ONNX: the way for recurrent models, whose loops OpenVINO's TFLite frontend does not know."""

from __future__ import annotations

import tempfile
from pathlib import Path

from toolkit import jax_programs
from toolkit.artifact import Signature
from toolkit.convert import jax_onnx, onnx_openvino
from toolkit.plugins import Obstacle, Route


class JaxOnnxOpenVino:
    """Writes a folder with ``model.xml`` and ``model.bin``."""

    name = "jax_onnx_openvino"
    version = 2
    source = "jax"
    format = "openvino"
    modules: tuple[str, ...] = (*jax_onnx.ROUTE.modules, "openvino")
    distributions: tuple[str, ...] = (*jax_onnx.ROUTE.distributions, "openvino")
    extra = "edgekit[jax,onnx,openvino]"
    preload = jax_programs.PRELOAD
    trust = 0.4  # after the way by TFLite, whose convolutions come out faster

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a ``.jax`` program.

        Args:
            program: The captured function.
            out: The folder to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: An operator has no ONNX or no OpenVINO counterpart.
        """
        with tempfile.TemporaryDirectory() as folder:
            between = Path(folder) / "model.onnx"
            jax_onnx.ROUTE.convert(program, between, signature)
            onnx_openvino.ROUTE.convert(between, out, jax_programs.load(program).signature)

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Returns what ONNX, the way between, has no counterpart for; see :class:`toolkit.plugins.Route`.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: The program cannot be read.
        """
        return jax_onnx.obstacles(program)


ROUTE: Route = JaxOnnxOpenVino()
