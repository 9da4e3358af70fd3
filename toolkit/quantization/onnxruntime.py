"""ONNX to int8 with ONNX Runtime's quantizer: QDQ for static int8, integer matrix products for dynamic int8.

Static uses unsigned activations and signed symmetric weights (U8S8), the pair with the fastest kernels on x86 with VNNI
and on ARM. Dynamic touches matrix products only: a dynamically quantized convolution runs as ``ConvInteger``, measured at
many times the float latency. Inputs and outputs stay float.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.dataset import Dataset
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Quantizer

_SKIPPED = "edgekit.preprocessing_skipped"


class OnnxRuntimeQuantizer:
    """Min-max calibration, one sample at a time."""

    name = "onnxruntime"
    version = 1
    format = "onnx"
    schemes: tuple[str, ...] = ("static_wi8_ai8", "dynamic_wi8")
    needs_calibration: tuple[str, ...] = ("static_wi8_ai8",)
    methods: tuple[str, ...] = ("min_max",)
    modules: tuple[str, ...] = ("onnx", "onnxruntime")
    distributions: tuple[str, ...] = ("onnx", "onnxruntime")
    extra = "edgekit[onnx]"

    def quantize(self, model: Path, out: Path, *, scheme: str, calibration: Dataset | None, options: Mapping[str, Any]) -> None:
        """Writes the quantized model.

        Args:
            model: The float ``.onnx`` file.
            out: The file to write.
            scheme: ``static_wi8_ai8`` or ``dynamic_wi8``.
            calibration: Finite samples that fit the model's inputs; needed by ``static_wi8_ai8``.
            options: ``per_channel``: a scale for every output channel of a weight (default) or one for the whole tensor.

        Raises:
            InputRejected: The model is damaged.
            StageFailed: The library cannot quantize the model, or a calibrated range is not finite.
        """
        per_channel = bool(options.get("per_channel", True))
        with _private_folder(out.parent) as folder:
            try:
                prepared, reason = _prepare(model, folder)
                if scheme == "static_wi8_ai8":
                    quantized = _static(prepared, folder, calibration, per_channel)
                else:
                    quantized = _dynamic(prepared, folder, per_channel)
            except AssertionError as error:  # the library asserts that every scale is a number, and says no more
                raise _overflow(f"the library stopped with {str(error)!r}") from error
            except CODE_ERRORS as error:
                raise StageFailed(
                    f"cannot quantize the model to {scheme}: {first_line(error)}", where="onnxruntime", hint="try another scheme"
                ) from error
            _finish(quantized, reason, out)


QUANTIZER: Quantizer = OnnxRuntimeQuantizer()


class _Reader:
    """Hands samples to the library one by one; ``get_next`` is all that it asks for."""

    def __init__(self, samples: Iterator[dict[str, np.ndarray]]) -> None:
        self._samples = samples

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._samples, None)


@contextmanager
def _private_folder(parent: Path) -> Iterator[Path]:
    """Keeps the library's temporary copies of the model inside the stage's own folder, which a crash leaves to be swept."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=parent) as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def _prepare(model: Path, folder: Path) -> tuple[Path, str]:
    """Fuses and infers shapes; returns the prepared file, and the reason when the file had to be taken as it is."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        plain = onnx.load(str(model))
    except (DecodeError, *CODE_ERRORS) as error:
        raise InputRejected(f"is not a readable ONNX model: {first_line(error)}", where=model.name, hint="convert the model again") from error
    # Stale shapes from an exporter contradict what the optimizer makes of the graph; it infers them again.
    plain.graph.ClearField("value_info")
    cleared, prepared = folder / "cleared.onnx", folder / "prepared.onnx"
    onnx.save_model(plain, str(cleared))
    try:
        quant_pre_process(str(cleared), str(prepared), skip_symbolic_shape=True)
    except CODE_ERRORS as error:
        return cleared, first_line(error)
    return prepared, ""


def _static(model: Path, folder: Path, calibration: Dataset | None, per_channel: bool) -> Path:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if calibration is None:
        raise ValueError("no calibration samples")
    out = folder / "quantized.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's about NaN and overflow: the scales are checked afterwards
        quantize_static(
            str(model),
            str(out),
            _Reader(_samples(model, calibration)),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
    return out


def _dynamic(model: Path, folder: Path, per_channel: bool) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = folder / "quantized.onnx"
    quantize_dynamic(str(model), str(out), op_types_to_quantize=["MatMul", "Gemm"], per_channel=per_channel, weight_type=QuantType.QInt8)
    return out


def _samples(model: Path, calibration: Dataset) -> Iterator[dict[str, np.ndarray]]:
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    stored = {value.name for value in graph.initializer}
    dtypes = {value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in graph.input if value.name not in stored}
    for batch in calibration.batches(1):
        yield {name: np.ascontiguousarray(batch[name], dtype=dtype) for name, dtype in dtypes.items()}


def _finish(quantized: Path, reason: str, out: Path) -> None:
    import onnx

    model = onnx.load(str(quantized))
    for scale in _scales(model):
        values = onnx.numpy_helper.to_array(scale)
        if not np.isfinite(values).all():
            raise _overflow(f"{scale.name} is {values.reshape(-1)[0]}")
    if reason:
        model.metadata_props.add(key=_SKIPPED, value=reason)
    onnx.save_model(model, str(out))


def _overflow(detail: str) -> StageFailed:
    return StageFailed(f"an activation is NaN or Inf on the calibration samples: {detail}", where="onnxruntime", hint="check the samples' range")


def _scales(model: Any) -> Iterator[Any]:
    wanted = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    return (tensor for tensor in model.graph.initializer if tensor.name in wanted)
