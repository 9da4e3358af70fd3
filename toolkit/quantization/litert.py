"""TFLite to int8 and float16 with ai-edge-quantizer, which takes any float ``.tflite`` whoever wrote it.

Calibration keeps the true minimum and maximum: the library's default, a moving average, was measured to cost 10 dB of
signal-to-noise ratio. Inputs and outputs stay float in every scheme.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Quantizer

_ALL = ".*"


class LiteRTQuantizer:
    """Static, dynamic and weight-only int8, and float16 weights."""

    name = "litert"
    version = 1
    format = "tflite"
    schemes: tuple[str, ...] = ("static_wi8_ai8", "dynamic_wi8", "weight_only_wi8", "float16")
    needs_calibration: tuple[str, ...] = ("static_wi8_ai8",)
    methods: tuple[str, ...] = ("min_max",)
    modules: tuple[str, ...] = ("ai_edge_quantizer", "ai_edge_litert")
    distributions: tuple[str, ...] = ("ai-edge-quantizer", "ai-edge-litert")
    extra = "edgekit[litert]"

    def quantize(self, model: Path, out: Path, *, scheme: str, calibration: Dataset | None, options: Mapping[str, Any]) -> None:
        """Writes the quantized model.

        Args:
            model: The float ``.tflite`` file.
            out: The file to write.
            scheme: One of ``schemes``.
            calibration: Finite samples that fit the model's inputs; needed by ``static_wi8_ai8``.
            options: ``per_channel``: a scale for every output channel of a weight (default) or one for the whole tensor.

        Raises:
            ConfigError: ``dynamic_wi8`` with one scale per tensor, which LiteRT's kernels compute wrongly.
            InputRejected: The model is damaged.
            StageFailed: The library cannot quantize the model, or a calibrated range is not finite.
        """
        per_channel = bool(options.get("per_channel", True))
        if scheme == "dynamic_wi8" and not per_channel:
            raise ConfigError(
                "dynamic_wi8 for tflite needs one scale per channel; per tensor, convolutions return garbage",
                where="per_channel",
                hint="set per_channel = true",
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the interpreter warns about the mode that calibration needs
            quantizer = _open(model)
            try:
                _apply(quantizer, scheme, per_channel)
                ranges = _calibrate(model, quantizer.get_quantization_recipe(), calibration) if scheme in self.needs_calibration else None
                result = quantizer.quantize(ranges, enable_progress_report=False)
            except CODE_ERRORS as error:
                raise StageFailed(
                    f"cannot quantize the model to {scheme}: {first_line(error)}", where="ai-edge-quantizer", hint="try another scheme"
                ) from error
        out.write_bytes(bytes(result.quantized_model))


QUANTIZER: Quantizer = LiteRTQuantizer()


class _Samples:
    """Samples that can be walked twice: the library counts them before it uses them."""

    def __init__(self, calibration: Dataset, dtypes: Mapping[str, Any]) -> None:
        self._calibration, self._dtypes = calibration, dtypes

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for batch in self._calibration.batches(1):
            yield {name: np.ascontiguousarray(batch[name], dtype=dtype) for name, dtype in self._dtypes.items()}


def _open(model: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer.quantizer import Quantizer as Library

    try:
        Interpreter(str(model))  # it refuses damaged files that the quantizer would parse
        return Library(str(model))
    except CODE_ERRORS as error:
        raise InputRejected(f"is not a readable TFLite model: {first_line(error)}", where=model.name, hint="convert the model again") from error


def _apply(quantizer: Any, scheme: str, per_channel: bool) -> None:
    """Writes the library's recipe for a scheme."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    every = qtyping.TFLOperationName.ALL_SUPPORTED
    granularity = qtyping.QuantGranularity.CHANNELWISE if per_channel else qtyping.QuantGranularity.TENSORWISE
    if scheme == "static_wi8_ai8":
        quantizer.add_static_config(_ALL, every, activation_num_bits=8, weight_num_bits=8, weight_granularity=granularity)
        for border in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            quantizer.update_quantization_recipe(_ALL, border, algorithm_key=AlgorithmName.NO_QUANTIZE)
    elif scheme == "dynamic_wi8":
        quantizer.add_dynamic_config(_ALL, every, num_bits=8, granularity=granularity)
    elif scheme == "weight_only_wi8":
        quantizer.add_weight_only_config(_ALL, every, num_bits=8, granularity=granularity)
    else:
        half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True)
        quantizer.update_quantization_recipe(_ALL, every, config, AlgorithmName.FLOAT_CASTING)


def _calibrate(model: Path, recipe: Any, calibration: Dataset | None) -> dict[str, Any]:
    """Returns minimum and maximum of every tensor over all samples."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    if calibration is None:
        raise ValueError("no calibration samples")
    interpreter = Interpreter(str(model))
    data = {}
    for key, names in interpreter.get_signature_list().items():
        details = interpreter.get_signature_runner(key).get_input_details()
        if set(names["inputs"]) == set(calibration.columns):
            data[key] = _Samples(calibration, {name: detail["dtype"] for name, detail in details.items()})
    mode = calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED
    observer = calibrator.Calibrator(str(model), num_threads=1, mode=mode, qsv_update_func=qsv_utils.min_max_update)
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe)
    observer.calibrate(data, manager)
    ranges = observer.get_model_qsvs()
    for name, statistics in ranges.items():
        if not all(np.isfinite(statistics[end]).all() for end in ("min", "max") if end in statistics):
            raise ValueError(f"the calibrated range of {name} is not finite: an activation overflowed")
    return ranges
