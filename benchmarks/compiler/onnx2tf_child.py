"""Runs in onnx2tf's environment: ``python -m benchmarks.compiler.onnx2tf_child FOLDER`` converts ``FOLDER/model.onnx``.

As its documentation shows it: the file and a folder, nothing else, but that it says less. It gets a copy, as it overwrites its input, and
what it would otherwise download. Where that fails it is tried without its simplifier, and only the attempt that works is counted.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compiler.memory import measured

_PICTURES = "calibration_image_sample_data_20x128x128x3_float32.npy"  # which it looks for where it runs, and downloads otherwise
_MADE = Path("out/model_float32.tflite")


def main(folder: Path) -> None:
    import onnx2tf  # noqa: F401  importing is not counted
    import tensorflow as tf  # noqa: F401

    facts = _attempt(folder, simplified=True)
    if "error" in facts:
        again = _attempt(folder, simplified=False)
        facts = facts if "error" in again else {**again, "note": "only without its simplifier"}
    (folder / "onnx2tf.json").write_text(json.dumps(facts), encoding="utf-8")


def _attempt(folder: Path, *, simplified: bool) -> dict[str, Any]:
    import onnx2tf

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        os.chdir(scratch)
        np.save(_PICTURES, np.random.default_rng(0).random((20, 128, 128, 3), np.float32))
        shutil.copy(folder / "model.onnx", "model.onnx")
        try:
            facts: dict[str, Any] = dict(
                measured(
                    lambda: onnx2tf.convert(
                        input_onnx_file_path="model.onnx", output_folder_path="out", not_use_onnxsim=not simplified, non_verbose=True
                    )
                )
            )
        except (Exception, SystemExit) as error:  # noqa: BLE001  it raises whatever TensorFlow raises, and leaves with an error of its own
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", "exits": isinstance(error, SystemExit)}
        if not _MADE.exists():
            return {"error": "wrote no file"}
        shutil.move(_MADE, folder / "onnx2tf.tflite")
        os.chdir(folder)
        return facts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
