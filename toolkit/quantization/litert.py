"""TFLite to every scheme that LiteRT runs, with ai-edge-quantizer, which takes any float ``.tflite`` whoever wrote it.

Ranges are our own statistics: the library's default, a moving average, was measured to cost 10 dB of signal-to-noise ratio. Inputs and
outputs stay float in every scheme.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed, ToolkitError
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Quantizer
from toolkit.quantization import litert_nodes, tflite_file, tflite_pads
from toolkit.quantization.calibrated import METHODS, find_ranges
from toolkit.quantization.observe_tflite import complete
from toolkit.quantization.scheme import Scheme, decode

_ALL = ".*"


class LiteRTQuantizer:
    """Static, dynamic and weight-only integers, and float16 weights."""

    name = "litert"
    version = 3
    format = "tflite"
    schemes: tuple[str, ...] = (
        "static_wi8_ai8", "static_wi8_ai16", "static_wi4_ai8", "dynamic_wi8", "weight_only_wi8", "weight_only_wi4", "float16",
    )  # fmt: skip
    needs_calibration: tuple[str, ...] = ("static_wi8_ai8", "static_wi8_ai16", "static_wi4_ai8")
    methods: tuple[str, ...] = METHODS
    keeps_float = True
    takes_statistics = True
    modules: tuple[str, ...] = ("ai_edge_quantizer", "ai_edge_litert")
    distributions: tuple[str, ...] = ("ai-edge-quantizer", "ai-edge-litert")
    extra = "edgekit[litert]"

    def quantize(self, model: Path, out: Path, *, scheme: str, calibration: Dataset | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the quantized model.

        Args:
            model: The float ``.tflite`` file.
            out: The file to write.
            scheme: One of ``schemes``.
            calibration: Finite samples that fit the model's inputs; needed by static schemes.
            options: ``per_channel``: a scale for every output channel of a weight (default) or one for the whole tensor.
                ``method`` and ``statistics``, see :func:`toolkit.quantization.calibrated.find_ranges`. ``keep_float``: names of layers
                that stay float.

        Returns:
            ``kept_float``, names of layers that stay float, and ``why``, a sentence for those that were not asked for.

        Raises:
            ConfigError: ``dynamic_wi8`` with one scale per tensor, which LiteRT's kernels compute wrongly.
            InputRejected: The model or the statistics are damaged.
            StageFailed: The library cannot quantize the model, or a calibrated range is not finite.
        """
        decoded, per_channel = decode(scheme), bool(options.get("per_channel", True))
        if decoded.kind == "dynamic" and not per_channel:
            raise ConfigError(
                "dynamic_wi8 for tflite needs one scale per channel; per tensor, convolutions return garbage",
                where="per_channel",
                hint="set per_channel = true",
            )
        asked = _asked(model, options)
        with warnings.catch_warnings(), TemporaryDirectory(prefix=".padded-", dir=out.parent) as folder:
            warnings.simplefilter("ignore", UserWarning)  # the interpreter warns about the mode that calibration needs
            model = tflite_pads.with_zeros(model, Path(folder) / model.name)
            quantizer = _open(model)
            try:
                _apply(quantizer, decoded, per_channel)
                floats, layers, ranges = _static(model, decoded, calibration, options) if decoded.kind == "static" else (asked, [], None)
                _keep(quantizer, floats)
                result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
            except ToolkitError:
                raise
            except CODE_ERRORS as error:
                raise StageFailed(
                    f"cannot quantize the model to {scheme}: {first_line(error)}", where="ai-edge-quantizer", hint="try another scheme"
                ) from error
            out.write_bytes(bytes(result.quantized_model))
            return _told(model, decoded, asked, layers)


QUANTIZER: Quantizer = LiteRTQuantizer()


def _open(model: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer.quantizer import Quantizer as Library

    try:
        Interpreter(str(model))  # it refuses damaged files that the quantizer would parse
        return Library(str(model))
    except CODE_ERRORS as error:
        raise InputRejected(f"is not a readable TFLite model: {first_line(error)}", where=model.name, hint="convert the model again") from error


def _apply(quantizer: Any, scheme: Scheme, per_channel: bool) -> None:
    """Writes the library's recipe for a scheme. What comes later overrides what is there."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    name = qtyping.TFLOperationName
    granularity = qtyping.QuantGranularity.CHANNELWISE if per_channel else qtyping.QuantGranularity.TENSORWISE
    packed = (name.CONV_2D, name.FULLY_CONNECTED)
    if scheme.kind == "static":
        for operator, bits in ((name.ALL_SUPPORTED, 8), *((one, 4) for one in packed if scheme.weight_bits == 4)):
            wide = {"activation_num_bits": scheme.activation_bits, "weight_num_bits": bits}
            quantizer.add_static_config(_ALL, operator, **wide, weight_granularity=granularity)
        for border in (name.INPUT, name.OUTPUT):
            quantizer.update_quantization_recipe(_ALL, border, algorithm_key=AlgorithmName.NO_QUANTIZE)
    elif scheme.kind == "dynamic":
        quantizer.add_dynamic_config(_ALL, name.ALL_SUPPORTED, num_bits=scheme.weight_bits, granularity=granularity)
    elif scheme.kind == "weight_only":
        quantizer.add_weight_only_config(_ALL, name.ALL_SUPPORTED, num_bits=scheme.weight_bits, granularity=granularity)
    else:
        half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True)
        quantizer.update_quantization_recipe(_ALL, name.ALL_SUPPORTED, config, AlgorithmName.FLOAT_CASTING)


def _keep(quantizer: Any, scopes: Sequence[str]) -> None:
    """Leaves operators in float, by the names of what they compute."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    for scope in scopes:
        quantizer.update_quantization_recipe(f"^{re.escape(scope)}$", qtyping.TFLOperationName.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE)


def _asked(model: Path, options: Mapping[str, Any]) -> list[str]:
    """Scopes of the layers that are to stay float.

    Raises:
        ConfigError: There is no such layer.
        InputRejected: The model is damaged.
    """
    names = tuple(options.get("keep_float", ()))
    known = {node.name: node.scope for node in litert_nodes.nodes(tflite_file.read(model))} if names else {}
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no layer {name!r} to keep in float", where="keep_float", hint="edgekit inspect lists the layers")
    return [known[name] for name in names]


def _static(
    model: Path, scheme: Scheme, calibration: Dataset | None, options: Mapping[str, Any]
) -> tuple[Sequence[str], Sequence[str], dict[str, Any]]:
    """Scopes that stay float, layers among them, and the ranges of what does not, as the library takes them."""
    columns = tuple(calibration.columns) if calibration else ()
    planned = litert_nodes.plan(model, tuple(options.get("keep_float", ())), columns)
    found = find_ranges(model, planned.ranges, calibration, options, bits=scheme.activation_bits)
    ranges = {name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)} for name, (low, high) in complete(model, found).items()}
    return planned.floats, planned.layers, ranges


def _told(model: Path, scheme: Scheme, asked: Sequence[str], layers: Sequence[str]) -> dict[str, Any]:
    known = {node.scope: node.name for node in litert_nodes.nodes(tflite_file.read(model))} if asked else {}
    mine = {known[scope] for scope in asked}
    without = set(litert_nodes.without_nibbles(model)) if scheme.name == "weight_only_wi4" else set()
    others = (set(layers) | without) - mine
    return {"kept_float": sorted(mine | others), "why": f"{len(others)} without an integer kernel" if others else ""}
