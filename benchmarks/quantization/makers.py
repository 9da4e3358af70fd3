"""Ways to make an int8 file of a float one: ours and the peers', each run in a process of its own.

    python -m benchmarks.quantization.makers NAME MODEL SAMPLES OUT

``SAMPLES`` is a folder with ``calibration.npz`` and ``search.npz``.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quantization.cases import CASES

Maker = Callable[[Path, Path, Path], None]


def ours(model: Path, samples: Path, out: Path, **options: Any) -> None:
    """Edgekit, with the scheme that it chooses."""
    import toolkit
    from toolkit.store import Store

    kept, recipe = Store(out.parent / f"store-{out.name}"), CASES[samples.name].recipe
    options = {"scheme": "auto", "samples": 200, "recipe": recipe, **options}
    toolkit.quantize(model, calibration=samples / "calibration.npz", output=out, store=kept, **options)


def ours_static(model: Path, samples: Path, out: Path) -> None:
    """Edgekit's static int8, without a search."""
    ours(model, samples, out, scheme="static_wi8_ai8")


def ours_auto(model: Path, samples: Path, out: Path) -> None:
    """Edgekit, with the scheme that it chooses by measurement."""
    ours(model, samples, out, search=samples / "search.npz")


def ours_ladder(model: Path, samples: Path, out: Path) -> None:
    """Edgekit, repaired until half a point is all that is lost."""
    ours(model, samples, out, search=samples / "search.npz", max_drop=0.005)


def onnxruntime_default(model: Path, samples: Path, out: Path, *, per_channel: bool = False) -> None:
    """ONNX Runtime's ``quantize_static`` behind its own pre-processing, everything else left as it is."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(out), _Reader(_calibration(samples)), per_channel=per_channel)


def onnxruntime_per_channel(model: Path, samples: Path, out: Path) -> None:
    """The same with a scale for each channel."""
    onnxruntime_default(model, samples, out, per_channel=True)


def nncf(model: Path, samples: Path, out: Path) -> None:
    """NNCF on ONNX, its defaults."""
    import nncf as library
    import onnx

    data = library.Dataset(list(_calibration(samples)))
    onnx.save(library.quantize(onnx.load(str(model)), data, subset_size=200), str(out))


def ai_edge_quantizer(model: Path, samples: Path, out: Path) -> None:
    """ai-edge-quantizer's static int8 recipe and its own calibration, float at both ends as ours."""
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    made = quantizer.Quantizer(str(model))
    made.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for border in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        made.update_quantization_recipe(".*", border, algorithm_key=AlgorithmName.NO_QUANTIZE)
    types = {name: one["dtype"] for name, one in _runner(model).get_input_details().items()}
    given = [{name: rows.astype(types[name]) for name, rows in sample.items()} for sample in _calibration(samples)]
    statistics = made.calibrate({"serving_default": given})
    out.write_bytes(bytes(made.quantize(statistics).quantized_model))


MAKERS: dict[str, dict[str, Maker]] = {
    "onnx": {
        "ours, static": ours_static,
        "ours, auto": ours_auto,
        "ours, ladder": ours_ladder,
        "ONNX Runtime": onnxruntime_default,
        "ONNX Runtime, per channel": onnxruntime_per_channel,
        "NNCF": nncf,
    },
    "tflite": {"ours, static": ours_static, "ours, auto": ours_auto, "ours, ladder": ours_ladder, "ai-edge-quantizer": ai_edge_quantizer},
}


def _runner(model: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(model)).get_signature_runner()


class _Reader:
    """What ONNX Runtime asks samples of."""

    def __init__(self, samples: Iterator[dict[str, np.ndarray]]) -> None:
        self._samples = samples

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._samples, None)


def _calibration(samples: Path) -> Iterator[dict[str, np.ndarray]]:
    with np.load(samples / "calibration.npz") as archive:
        columns = {name: archive[name][:200] for name in archive.files if name != "label"}
    for row in range(len(next(iter(columns.values())))):
        yield {name: column[row : row + 1] for name, column in columns.items()}


def main() -> None:
    """Makes one file."""
    parser = argparse.ArgumentParser(description="Make an int8 file.")
    parser.add_argument("name")
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    with contextlib.chdir(given.out.parent):
        MAKERS[given.model.suffix[1:]][given.name](given.model, given.samples, given.out)


if __name__ == "__main__":
    main()
