"""OpenVINO IR to int8 with NNCF, which knows best what OpenVINO's plugins fuse and which scales they want to share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import openvino_ir
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.factory import first_line
from toolkit.plugins import Quantizer

_SUBSET = 300
_ATTENTION = {"Softmax", "ScaledDotProductAttention"}
_NO_TELEMETRY = "NNCF_CI"
"""NNCF reports every call to Google Analytics where OpenVINO's telemetry is installed, unless this variable is set."""


class OpenVinoQuantizer:
    """Static int8 with bias correction, and weights of 8 bits."""

    name = "openvino"
    version = 1
    format = "openvino"
    schemes: tuple[str, ...] = ("static_wi8_ai8", "weight_only_wi8")
    needs_calibration: tuple[str, ...] = ("static_wi8_ai8",)
    methods: tuple[str, ...] = ("min_max",)
    keeps_float = True
    modules: tuple[str, ...] = ("openvino", "nncf")
    distributions: tuple[str, ...] = ("openvino", "nncf")
    extra = "edgekit[openvino]"

    def quantize(self, model: Path, out: Path, *, scheme: str, calibration: Dataset | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the quantized model.

        Args:
            model: The folder with the float model.
            out: The folder to write.
            scheme: One of ``schemes``.
            calibration: Finite samples that fit the model's inputs, at most 300 of which are used; needed by ``static_wi8_ai8``.
            options: ``keep_float``: names of layers that stay float. NNCF's own ranges are used.

        Returns:
            ``kept_float``, names of layers that stay float, and ``why``.

        Raises:
            ConfigError: There is no layer of a name to keep in float.
            InputRejected: The model is damaged.
            StageFailed: NNCF cannot quantize it.
        """
        read = _read(model)
        kept = sorted(options.get("keep_float", ()))
        unknown = sorted(set(kept) - {node.get_friendly_name() for node in read.get_ops()})
        if unknown:
            raise ConfigError(f"there is no layer {unknown[0]!r} to keep in float", where="keep_float", hint="edgekit inspect lists the layers")
        try:
            made = _static(read, calibration, kept) if scheme in self.needs_calibration else _weights(read, kept)
        except openvino_ir.errors() as error:
            raise StageFailed(f"cannot quantize the model to {scheme}: {first_line(error)}", where="nncf", hint="try another scheme") from error
        openvino_ir.write(made, out)
        return {"kept_float": kept, "why": ""}


QUANTIZER: Quantizer = OpenVinoQuantizer()


def _read(model: Path) -> Any:
    openvino = openvino_ir.library()
    try:
        return openvino.Core().read_model(str(model / openvino_ir.XML), str(model / openvino_ir.BIN))
    except openvino_ir.errors() as error:
        raise InputRejected(f"is not a readable OpenVINO model: {first_line(error)}", where=model.name, hint="convert the model again") from error


def _static(model: Any, calibration: Dataset | None, kept: list[str]) -> Any:
    nncf = _library()
    if calibration is None:
        raise ValueError("no calibration samples")
    types = {name: openvino_ir.DTYPES[port.get_element_type().get_type_name()] for port in model.inputs for name in port.get_names()}

    def typed(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(batch[name], dtype=types[name]) for name in batch if name in types}

    samples = [typed(batch) for batch in calibration.take(slice(0, _SUBSET)).batches(1)]
    is_transformer = any(node.get_type_name() in _ATTENTION for node in model.get_ops())
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        fast_bias_correction=True,
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
    )


def _weights(model: Any, kept: list[str]) -> Any:
    nncf = _library()
    ignored = nncf.IgnoredScope(names=kept) if kept else None
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=ignored)


def _library() -> Any:
    """Imports NNCF; it is to send nothing and to draw no bars."""
    import logging

    os.environ.setdefault(_NO_TELEMETRY, "1")
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf
