"""Models that are folders: a tiny one as OpenVINO IR, and damaged copies of any model, file or folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests import models

_PORT = '<port id="{id}" precision="FP32"{names}>{dims}</port>'


def tiny_openvino(path: Path, batch: int = 1, weights: np.ndarray = models.WEIGHTS) -> Path:
    """Writes the model of :mod:`tests.models` as OpenVINO IR, without OpenVINO; ``batch`` -1 makes the first axis free."""
    path.mkdir()
    constants = [np.ascontiguousarray(weights), models.BIAS]
    (path / "model.bin").write_bytes(b"".join(array.tobytes() for array in constants))

    def port(number, shape, names=""):
        listed = f' names="{names}"' if names else ""
        return _PORT.format(id=number, names=listed, dims="".join(f"<dim>{size}</dim>" for size in shape))

    def layer(number, name, kind, data="", reads=(), makes=None, names="", more=""):
        inputs = "".join(port(place, shape) for place, shape in enumerate(reads))
        outputs = "" if makes is None else f"<output>{port(len(reads), makes, names)}</output>"
        return (
            f'<layer id="{number}" name="{name}" type="{kind}" version="opset1"{more}>{f"<data {data}/>" if data else ""}'
            f"{f'<input>{inputs}</input>' if inputs else ''}{outputs}</layer>"
        )

    def constant(number, name, array, offset):
        shape = ", ".join(map(str, array.shape))
        return layer(number, name, "Const", f'element_type="f32" shape="{shape}" offset="{offset}" size="{array.nbytes}"', makes=array.shape)

    wide, narrow = (batch, 4), (batch, 3)
    layers = [
        layer(0, "x", "Parameter", f'shape="{"?" if batch < 0 else batch},4" element_type="f32"', makes=wide, names="x"),
        constant(1, "weights", constants[0], 0),
        layer(2, "product", "MatMul", 'transpose_a="false" transpose_b="false"', (wide, (4, 3)), narrow),
        constant(3, "bias", constants[1], constants[0].nbytes),
        layer(4, "sums", "Add", 'auto_broadcast="numpy"', (narrow, (3,)), narrow),
        layer(5, "tanh", "Tanh", "", (narrow,), narrow, "logits"),
        layer(6, "logits/sink_port_0", "Result", "", (narrow,), more=' output_names="logits"'),
    ]
    pairs = [("0:0", "2:0"), ("1:0", "2:1"), ("2:2", "4:0"), ("3:0", "4:1"), ("4:2", "5:0"), ("5:1", "6:0")]
    edges = [[*source.split(":"), *target.split(":")] for source, target in pairs]
    joined = "".join(f'<edge from-layer="{a}" from-port="{b}" to-layer="{c}" to-port="{d}"/>' for a, b, c, d in edges)
    text = f'<?xml version="1.0"?><net name="tiny" version="11"><layers>{"".join(layers)}</layers><edges>{joined}</edges></net>'
    (path / "model.xml").write_text(text)
    return path


def damaged_copies(model: Path, folder: Path) -> list[Path]:
    """Returns copies of a model, each with damage that every runtime and reader must notice; the last one does not exist.

    In a folder every file is damaged by itself, and left out.
    """
    found = []
    for part in sorted(file for file in model.rglob("*") if file.is_file()) if model.is_dir() else [model]:
        data = part.read_bytes()
        contents = [b"", data[:7], data[: len(data) // 3], data[: len(data) // 2], data[:-9], b"\0" * len(data), b"junk" * 500]
        for number, content in enumerate(contents if part.name != "model.bin" else contents[:5]):  # any numbers are weights
            copy = folder / f"damaged-{part.name}-{number}{model.suffix}"
            if model.is_dir():
                shutil.copytree(model, copy)
            (copy / part.relative_to(model) if model.is_dir() else copy).write_bytes(content)
            found.append(copy)
        if model.is_dir():
            copy = folder / f"without-{part.name}{model.suffix}"
            shutil.copytree(model, copy, ignore=shutil.ignore_patterns(part.name))
            found.append(copy)
    return [*found, folder / f"missing{model.suffix}"]
