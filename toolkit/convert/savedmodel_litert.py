"""SavedModel to TFLite through TensorFlow's converter, from a graph that holds its weights and nothing that was not asked for."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from toolkit import savedmodel_graphs, savedmodels
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Obstacle, Route

_WHERE = "savedmodel_litert"
# As the converter prints them: loc(fused["Erfc:", "layer/Erfc"]): error: 'tf.Erfc' op is neither a custom op nor a flex op
_REFUSED = re.compile(r"loc\((?:(?:callsite|fused)\W*)*(?:\"\w+:\", )?\"([^\"]*)\"[^\n]*?'tf\.(\w+)' op ([^\n]*)")
_LISTS = "needs a size that is only known when the model runs"
_NO_KERNEL = "has no TFLite kernel"
_HINT = "replace that operator in the model"
_HINTS = {
    "Erf": "write the exact GELU as tf.nn.gelu(x, approximate=False), which TFLite knows as a whole, or use the approximate one",
    "Erfc": "use each exact GELU's input for nothing but that GELU, so that it is seen as a whole, or use the approximate one",
    "ResizeBicubic": "resize with method bilinear or nearest",
    "ResizeArea": "resize with method bilinear or nearest",
    "ScaleAndTranslate": "resize with method bilinear or nearest, without antialias",
    "MaxPoolWithArgmax": "use tf.nn.max_pool2d, or find the places outside of the model",
    "Atanh": "write it as 0.5 * tf.math.log((1 + x) / (1 - x))",
    "Tan": "write it as tf.sin(x) / tf.cos(x)",
    "Sinh": "write it as 0.5 * (tf.exp(x) - tf.exp(-x))",
    "Cosh": "write it as 0.5 * (tf.exp(x) + tf.exp(-x))",
    "PrintV2": "remove tf.print",
}
# What the converter of TensorFlow 2.21 refused in a function of that operator alone. Erf and Erfc, which it refuses too, are left to
# the converter: as parts of a GELU it knows them.
_LACKING = re.findall(
    r"\w+",
    "Acos Acosh AdjustContrastv2 AdjustHue Angle Asin Asinh Atan Atanh AvgPool3D BesselI0e BesselI1e Betainc BitwiseAnd BitwiseOr Cholesky Cosh"
    " CropAndResize Cross CumulativeLogsumexp Cumprod DenseBincount Digamma Dilation2D Erfinv ExtractImagePatches FractionalMaxPool HSVToRGB Igamma"
    " InTopKV2 Invert LeftShift LowerBound Lu MatrixDeterminant MatrixDiagPartV3 MatrixInverse MatrixSolve MatrixTriangularSolve MaxPool3D"
    " MaxPoolWithArgmax Ndtri NextAfter PopulationCount PrintV2 Qr RGBToHSV ResizeArea ResizeBicubic ScaleAndTranslate SegmentMax SegmentMean"
    " SelfAdjointEigV2 Sinh StatelessRandomUniformV2 Svd Tan TensorScatterMax TruncateMod Zeta",
)


class SavedModelLiteRT:
    """Writes a ``.tflite`` file with one signature, of TFLite's own operators alone."""

    name = "savedmodel_litert"
    version = 1
    source = "savedmodel"
    format = "tflite"
    modules: tuple[str, ...] = ("tensorflow",)
    distributions: tuple[str, ...] = ("tensorflow",)
    extra = "edgekit[tensorflow]"
    preload = savedmodels.PRELOAD
    options: tuple[str, ...] = ("dynamic",)
    trust = 0.9

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Lists the operators that TFLite is known to lack, without converting.

        Raises:
            InputRejected: The folder is damaged, could run code, or does not fit the signature.
        """
        frozen = savedmodels.pinned(savedmodels.load(program), signature)
        nodes = [node for node in savedmodel_graphs.nodes(frozen.graph) if node.op in _LACKING]
        return [Obstacle(node.op, _layer(node.name), _NO_KERNEL, _HINTS.get(node.op, _HINT)) for node in nodes]

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a SavedModel.

        Args:
            program: The SavedModel folder.
            out: The ``.tflite`` file to write.
            signature: Inputs and outputs; sizes that are free in the model may stay so.

        Raises:
            InputRejected: The folder is damaged, could run code, or does not fit the signature.
            StageFailed: An operator has no TFLite counterpart.
        """
        frozen = savedmodels.pinned(savedmodels.load(program), signature)
        # The converter reads folders: only of these it keeps the signature's names.
        with tempfile.TemporaryDirectory(prefix="edgekit-savedmodel-") as folder:
            savedmodels.write(frozen, Path(folder))
            out.write_bytes(_convert(folder))

    def contract_example(self, folder: Path) -> tuple[Path, Signature, dict[str, Any], dict[str, Any]]:
        """Writes a small model for ``tests/contract``."""
        return savedmodels.example(folder)


ROUTE: Route = SavedModelLiteRT()


def _convert(folder: str) -> bytes:
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    try:
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[savedmodels.SERVING])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return bytes(converter.convert())
    except (*CODE_ERRORS, ConverterError, tf.errors.OpError) as error:
        raise _explain(error) from error


def _explain(error: BaseException) -> StageFailed:
    """The converter prints the whole program after its reason; operators and layers are what a user can act on."""
    found = list(dict.fromkeys((operator, _layer(name), reason) for name, operator, reason in _REFUSED.findall(str(error))))
    if not found:
        return StageFailed(f"TensorFlow cannot convert the graph to TFLite: {first_line(error)[:300]}", where=_WHERE, hint=_HINT)
    listed = list(dict.fromkeys(f"{operator} ({layer or 'the model itself'})" for operator, layer, _ in found))
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    reason = _LISTS if "static" in found[0][2] else _NO_KERNEL
    hint = next((_HINTS[operator] for operator, _, _ in found if operator in _HINTS), _HINT)
    return StageFailed(f"{', '.join(listed[:3])}{more} {reason}", where=_WHERE, hint=hint)


def _layer(node: str) -> str:
    """Path of the layer that a node belongs to: its name without the operator and the wrappers of calls."""
    path = [part for part in node.split("/") if not re.fullmatch(r"(Stateful)?PartitionedCall(_\d+)?", part)]
    return "/".join(path[:-1])
