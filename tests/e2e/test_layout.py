"""A project whose samples have the channels first, and TFLite files that take them last: every step feeds every file right."""

import json

import numpy as np
import pytest

import toolkit
from toolkit import artifact, dataset
from toolkit.config import Project, parse
from toolkit.pipeline.plan import make_plan
from toolkit.store import Store

torch = pytest.importorskip("torch")
for module in ("litert_torch", "ai_edge_litert", "onnxruntime", "onnxscript", "onnxslim"):
    pytest.importorskip(module)

QUANTIZED = "static_wi8_ai8"
MODEL = """
import torch


def build():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(16 * 3 * 2, 4)).eval()
"""
PROJECT = """
schema = 1
name = "squares"
task = "image-classification"
targets = ["desktop-litert", "desktop-ort"]
schemes = ["float32", "static_wi8_ai8"]
[data]
train = "train"
eval = "eval"
[model]
factory = "model:build"
outputs = ["logits"]
[convert]
layout = "channels_last"
[parity]
samples = 8
[calibration]
samples = 32
[timing]
seconds = 0.05
[budgets]
max_drop = 0.5
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Height, width and channels all differ, so that no wrong order of axes goes unnoticed; labels are the model's own answers."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "edgekit.toml").write_text(PROJECT)
    (folder / "model.py").write_text(MODEL)
    found = {}
    exec(MODEL, found)
    model, random = found["build"](), np.random.default_rng(0)
    for split, count in (("train", 32), ("eval", 48)):
        images = random.normal(size=(count, 3, 8, 6)).astype(np.float32)
        with torch.inference_mode():
            labels = model(torch.from_numpy(images)).argmax(1).numpy()
        dataset.Dataset({"input": images}, labels, "").write(folder / split)
    return folder


@pytest.fixture(scope="module")
def outcome(project, tmp_path_factory):
    place = tmp_path_factory.mktemp("made")
    return toolkit.run(project, output=place / "out", store=Store(place / "cache")).report, place / "out"


def test_every_step_that_feeds_such_a_file_knows(project):
    plan = make_plan(parse(Project, PROJECT, "edgekit.toml"), project)
    knows = {step.id: step.options.get("layout") for step in plan.steps}
    told = {id for id, layout in knows.items() if layout == "channels_last"}
    assert told == {id for id in knows if "tflite" in id and not id.startswith("roofline")} and told
    assert {candidate.file: candidate.layout for candidate in plan.candidates} == {
        f"squares.{scheme}.{format}": layout for format, layout in (("tflite", "channels_last"), ("onnx", None)) for scheme in ("float32", QUANTIZED)
    }


@pytest.mark.slow
def test_files_of_both_layouts_are_right_on_the_same_samples(outcome):
    report, out = outcome
    shapes = {}
    for row in report.rows:
        manifest = artifact.Manifest.model_validate_json((out / "models" / f"{row.artifact}.manifest.json").read_text())
        shapes[row.artifact] = manifest.signature.inputs[0].shape
        assert row.metric.value == 1.0 if row.scheme == "float32" else row.metric.value >= 0.9  # labels are the float model's answers
        assert row.latency_ms is not None and row.cold is not None
    assert shapes == {
        f"squares.{scheme}.{format}": shape
        for format, shape in (("tflite", (1, 8, 6, 3)), ("onnx", (1, 3, 8, 6)))
        for scheme in ("float32", QUANTIZED)
    }
    layouts = {name: json.loads((out / "models" / f"{name}.manifest.json").read_text())["evidence"] for name in shapes}
    assert layouts["squares.float32.tflite"]["conversion"]["layout"] == layouts[f"squares.{QUANTIZED}.tflite"]["layout"] == "channels_last"
    assert "layout" not in layouts[f"squares.{QUANTIZED}.onnx"] and "conversion" not in layouts["squares.float32.onnx"]


@pytest.mark.slow
def test_the_bare_runtime_gives_the_reported_accuracy(project, outcome):
    from ai_edge_litert.interpreter import Interpreter

    report, out = outcome
    held_out = dataset.load(project / "eval")
    for scheme in ("float32", QUANTIZED):
        runner = Interpreter(str(out / "models" / f"squares.{scheme}.tflite")).get_signature_runner()
        found = [runner(input=image.transpose(1, 2, 0)[None])["logits"].argmax() for image in held_out.columns["input"]]
        assert np.mean(found == held_out.label) == next(row for row in report.rows if row.artifact == f"squares.{scheme}.tflite").metric.value
