"""JAX to TFLite by way of ONNX and Edgekit's own compiler, without TensorFlow."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from toolkit import jax_programs
from toolkit.artifact import Signature
from toolkit.convert import jax_onnx, onnx_litert
from toolkit.plugins import Obstacle, Route


class JaxOnnxLiteRT:
    """Writes a ``.tflite`` file with the signature ``serving_default``; 64-bit integers become 32-bit ones."""

    name = "jax_onnx_litert"
    version = 1
    source = "jax"
    format = "tflite"
    modules: tuple[str, ...] = (*jax_onnx.ROUTE.modules, "ai_edge_litert")
    distributions: tuple[str, ...] = (*jax_onnx.ROUTE.distributions, "ai-edge-litert")
    extra = "edgekit[jax,onnx,litert]"
    preload = jax_programs.PRELOAD
    options: tuple[str, ...] = ("layout", "batch_sizes")
    trust = 0.6

    def convert(self, program: Path, out: Path, signature: Signature, *, layout: str | None = None, batch_sizes: Sequence[int] = ()) -> None:
        """Converts a ``.jax`` program.

        Args:
            program: The captured function.
            out: The ``.tflite`` file to write.
            signature: Inputs and outputs.
            layout: ``channels_last`` for four-dimensional inputs ``[n x h x w x c]`` of functions that take ``[n x c x h x w]``.
            batch_sizes: Batch sizes to write signatures for; 1 is always there.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: An operator has no counterpart in ONNX or in TFLite.
        """
        with tempfile.TemporaryDirectory(prefix="edgekit-onnx-") as folder:
            between = Path(folder) / "model.onnx"
            jax_onnx.ROUTE.convert(program, between, signature)
            stated = jax_programs.load(program).signature
            onnx_litert.OnnxLiteRT().convert(between, out, stated, layout=layout, batch_sizes=batch_sizes)

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Returns what ONNX, the way between, has no counterpart for; what TFLite lacks shows a second after that.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: The program cannot be read.
        """
        return jax_onnx.obstacles(program)


ROUTE: Route = JaxOnnxLiteRT()
