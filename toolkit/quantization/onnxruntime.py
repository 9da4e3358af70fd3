"""ONNX to every scheme that ONNX Runtime runs: QDQ for static, integer matrix products for dynamic, packed weights for the others.

Static uses unsigned activations and signed symmetric weights (U8S8), the pair with the fastest kernels on x86 with VNNI
and on ARM. Dynamic touches matrix products only: a dynamically quantized convolution runs as ``ConvInteger``, measured at
many times the float latency. Inputs and outputs stay float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import onnx_files
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, StageFailed, ToolkitError
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Quantizer
from toolkit.quantization import onnx_integer, onnx_prepared, onnx_static, onnx_weights
from toolkit.quantization.calibrated import METHODS, find_ranges
from toolkit.quantization.scheme import Scheme, decode

_MOSTLY = 0.5
_CHANNELS_OPSET = 13
"""The first operator set whose ``QuantizeLinear`` takes a scale for each channel."""


class OnnxRuntimeQuantizer:
    """Static, dynamic and weight-only, and float16 weights."""

    name = "onnxruntime"
    version = 2
    format = "onnx"
    schemes: tuple[str, ...] = ("static_wi8_ai8", "static_wi8_ai16", "dynamic_wi8", "weight_only_wi8", "weight_only_wi4", "float16")
    needs_calibration: tuple[str, ...] = ("static_wi8_ai8", "static_wi8_ai16")
    methods: tuple[str, ...] = METHODS
    keeps_float = True
    takes_statistics = True
    modules: tuple[str, ...] = ("onnx", "onnxruntime")
    distributions: tuple[str, ...] = ("onnx", "onnxruntime")
    extra = "edgekit[onnx]"

    def quantize(self, model: Path, out: Path, *, scheme: str, calibration: Dataset | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the quantized model.

        Args:
            model: The float ``.onnx`` file.
            out: The file to write.
            scheme: One of ``schemes``.
            calibration: Finite samples that fit the model's inputs; needed by static schemes.
            options: ``per_channel``: a scale for every output channel of a weight (default) or one for the whole tensor.
                ``method`` and ``statistics``, see :func:`toolkit.quantization.calibrated.find_ranges`. ``keep_float``: names of layers
                that stay float. ``reduce_range``: static and dynamic weights of 7 bits, for x86 without VNNI. ``fast``: keep in float
                what is faster so (default).

        Returns:
            ``kept_float``, names of layers that stay float, and ``why``, a sentence for those that were not asked for.

        Raises:
            ConfigError: Dynamic int8 for a convolutional network.
            InputRejected: The model or the statistics are damaged.
            StageFailed: The library cannot quantize the model, nothing in it can be quantized, or a calibrated range is not finite.
        """
        decoded = decode(scheme)
        plain = onnx_prepared.load(model)
        _check(plain, model, decoded)
        kept, why = _kept(plain, decoded, options)
        with onnx_prepared.private_folder(out.parent) as folder:
            try:
                made = _make(plain, folder, decoded, calibration, options, kept)
            except ToolkitError:
                raise
            except AssertionError as error:  # the library asserts that every scale is a number, and says no more
                raise _overflow(f"the library stopped with {str(error)!r}") from error
            except CODE_ERRORS as error:
                raise StageFailed(
                    f"cannot quantize the model to {scheme}: {first_line(error)}", where="onnxruntime", hint="try another scheme"
                ) from error
            _finish(made, out)
        return {"kept_float": sorted(kept), "why": why}


QUANTIZER: Quantizer = OnnxRuntimeQuantizer()


def _make(plain: Any, folder: Path, scheme: Scheme, calibration: Dataset | None, options: Mapping[str, Any], kept: Collection[str]) -> Any:
    """Returns the quantized graph."""
    per_channel = bool(options.get("per_channel", True))
    if scheme.kind == "static":
        return _static(plain, folder, scheme, calibration, options, kept)
    if scheme.kind == "dynamic":
        return _dynamic(plain, folder, per_channel, bool(options.get("reduce_range")), kept)
    if scheme.weight_bits == 16:
        beyond = onnx_weights.to_half(plain, kept)
        if beyond:
            what = f"weights of {beyond[0]} are beyond 65,504, the largest float16"
            raise StageFailed(what, where="onnxruntime", hint=f"keep it in float: keep_float = [{beyond[0]!r}]")
    elif scheme.weight_bits == 8:
        onnx_weights.to_bytes(plain, kept, per_channel=per_channel)
    else:
        return onnx_weights.to_nibbles(plain, kept)
    return plain


def _static(plain: Any, folder: Path, scheme: Scheme, calibration: Dataset | None, options: Mapping[str, Any], kept: Collection[str]) -> Any:
    import onnx

    prepared, reason = onnx_prepared.prepare(onnx_prepared.at_least(plain, _CHANNELS_OPSET), folder, kept)
    model = onnx.load(str(prepared))
    still = onnx_integer.with_activations(model, kept)
    same = onnx_prepared.same_values(model)
    same |= {name: (other, *same.get(other, ())) for name, other in onnx_integer.pool_means(model).items()}
    gates = onnx_integer.open_gates(model, still)
    still |= set(onnx_static.left_in_float(model, still))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {name: (0.0, gate.top) for gate in gates for name in (gate.output, f"{gate.output}_sum")}
    wanted = [name for name in onnx_static.carried(copy, scheme, still) if name not in known]
    ranges = known | find_ranges(prepared, wanted, calibration, options, bits=scheme.activation_bits, same=same)
    reduce_range, per_channel = bool(options.get("reduce_range")), bool(options.get("per_channel", True))
    made = onnx_static.quantize(model, ranges, scheme, still, per_channel=per_channel, reduce_range=reduce_range)
    onnx_integer.close_gates(made, gates)
    onnx_weights.shrink_embeddings(made, kept)
    for scale in _scales(made):
        values = onnx.numpy_helper.to_array(scale)
        if not np.isfinite(values).all():
            raise _overflow(f"{scale.name} is {values.reshape(-1)[0]}")
    return _noted(made, reason)


def _dynamic(plain: Any, folder: Path, per_channel: bool, reduce_range: bool, kept: Collection[str]) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, reason = onnx_prepared.prepare(plain, folder, kept)
    out = folder / "quantized.onnx"
    quantize_dynamic(
        str(prepared),
        str(out),
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=per_channel,
        reduce_range=reduce_range,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[*kept, *(f"{name}_MatMul" for name in kept)],  # the library writes Gemm as MatMul
    )
    made = onnx.load(str(out))
    for node in made.graph.node:
        if node.op_type == "MatMul" and node.name.removesuffix("_MatMul") in kept:
            node.name = node.name.removesuffix("_MatMul")
    onnx_weights.shrink_embeddings(made, kept)
    return _noted(made, reason)


def _check(model: Any, path: Path, scheme: Scheme) -> None:
    """Refuses what would give a file that is not what it is called, or slower than the float model by far."""
    convolutions = [node.name for node, _ in onnx_prepared.layers(model) if node.op_type in ("Conv", "ConvTranspose")]
    products = [node.name for node, _ in onnx_prepared.layers(model) if node.op_type in ("MatMul", "Gemm")]
    if scheme.kind == "dynamic" and convolutions and (not products or _share(path) > _MOSTLY):
        raise ConfigError(
            f"dynamic_wi8 for onnx is for matrix products, and this is a convolutional network ({len(convolutions)} convolutions): "
            "ConvInteger, which they would become, was measured 7 to 10 times slower than float",
            where="scheme",
            hint="use static_wi8_ai8 with calibration samples, or weight_only_wi8 for a smaller file",
        )


def _share(path: Path) -> float:
    """Share of the multiply-accumulates that are convolutions."""
    from toolkit import plugins

    nodes = plugins.reader("onnx").read(path).nodes
    total = sum(node.macs for node in nodes)
    return sum(node.macs for node in nodes if "Conv" in node.operator) / total if total else 1.0


def _kept(model: Any, scheme: Scheme, options: Mapping[str, Any]) -> tuple[set[str], str]:
    """Names of layers that stay float; and why, for those that were not asked for.

    Raises:
        ConfigError: There is no layer of a name, or no layer is left.
    """
    names = {node.name for node, _ in onnx_prepared.layers(model)}
    asked = set(options.get("keep_float", ()))
    unknown = sorted(asked - {node.name for node in model.graph.node})
    if unknown:
        raise ConfigError(f"there is no layer {unknown[0]!r} to keep in float", where="keep_float", hint="edgekit inspect lists the layers")
    reasons = []
    if scheme.kind == "static":
        without = set(onnx_static.without_kernel(model)) - asked
        reasons += [f"{len(without)} without an integer kernel"] if without else []
        slow = set(onnx_integer.slow_stem(model)) - asked if options.get("fast", True) and scheme.activation_bits == 8 else set()
        reasons += ["the first convolution, which is faster in float"] if slow else []
        asked |= without | slow
    elif scheme.kind == "dynamic":
        without = {node.name for node, _ in onnx_prepared.layers(model) if node.op_type not in ("MatMul", "Gemm")} - asked
        reasons += [f"{len(without)} that are no matrix products"] if without else []
        asked |= without
    if names and names <= asked:
        raise StageFailed(f"no layer is left to quantize to {scheme.name}", where="onnxruntime", hint="use another scheme, or keep fewer in float")
    return asked & names, ", ".join(reasons)


def _noted(model: Any, reason: str) -> Any:
    if reason:
        onnx_files.note(model, onnx_prepared.SKIPPED, reason)
    return model


def _finish(model: Any, out: Path) -> None:
    import onnx

    onnx.save_model(model, str(out))


def _overflow(detail: str) -> StageFailed:
    return StageFailed(f"an activation is NaN or Inf on the calibration samples: {detail}", where="onnxruntime", hint="check the samples' range")


def _scales(model: Any) -> Iterator[Any]:
    wanted = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    return (tensor for tensor in model.graph.initializer if tensor.name in wanted)
