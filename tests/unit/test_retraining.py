"""The last rung in a plan: what is trained, converted and quantized again, from what, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_quantizer")

from toolkit.config import PROJECT_FILE, load_project
from toolkit.pipeline.plan import make_plan
from toolkit.pipeline.retraining import chosen
from toolkit.pipeline.steps import Fact, Need

DIGITS = Path(__file__).parents[2] / "examples/digits"


@pytest.fixture
def planned(tmp_path):
    def plan(*changes):
        text = (DIGITS / PROJECT_FILE).read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / PROJECT_FILE).write_text(text)
        project, _ = load_project(tmp_path)
        return {step.id: step for step in make_plan(project, DIGITS).steps}

    return plan


def test_training_goes_on_from_the_trained_weights_and_only_where_nothing_held(planned):
    steps = planned()
    again, first = steps["finetune:qat"], steps["finetune"]
    assert again.needs["weights"] == Need("finetune", "weights.safetensors")
    assert again.needs["data"] == first.needs["data"]
    assert set(again.only_if) == {Fact("quantize:onnx:static_wi8_ai8", "unheld"), Fact("quantize:tflite:static_wi8_ai8", "unheld")}
    assert (again.options["strategy"], again.options["teacher"]) == ("qat", "start")
    assert again.options["learning_rate"] == pytest.approx(first.options["learning_rate"] / 10)
    assert again.options["epochs"] == first.options["epochs"] // 4
    assert {name for name in first.options if first.options[name] != again.options[name]} <= {
        "strategy",
        "teacher",
        "learning_rate",
        "epochs",
        "patience",
    }


def test_what_follows_is_made_again_from_it_but_judged_against_the_first_float_file(planned):
    steps = planned()
    assert steps["source:qat"].needs["weights"] == Need("finetune:qat", "weights.safetensors")
    assert steps["convert:onnx:qat"].needs["program"].step == "source:qat"
    assert all(need.step != "source" for check in steps["convert:onnx:qat"].checks for need in check.needs.values())
    quantized = steps["quantize:onnx:static_wi8_ai8:qat"]
    assert quantized.needs["model"].step == "convert:onnx:qat"
    assert quantized.needs["twin"].step == "convert:onnx"
    assert quantized.needs["search"] == Need("search", "search")


def test_rows_judge_the_file_that_was_chosen(planned):
    steps = planned()
    choice = steps["choose:tflite:static_wi8_ai8"]
    assert (choice.needs["ladder"].step, choice.needs["qat"].step) == ("quantize:tflite:static_wi8_ai8", "quantize:tflite:static_wi8_ai8:qat")
    assert choice.partial
    evaluated = [step for id, step in steps.items() if id.startswith("evaluate:tflite:static")]
    assert evaluated
    assert all(step.needs["model"].step == choice.id for step in evaluated)


@pytest.mark.parametrize(
    "changes",
    [
        [('max_drop = "1pp"', "")],
        [("[finetune] # without", '[quantize]\nrungs = ["equalization"]\n\n[finetune] # without')],
        [("[finetune] # without", "[quantize]\nrepair = false\n\n[finetune] # without")],
        [("epochs = 20", 'epochs = 20\nstrategy = "qat"')],
    ],
)
def test_nothing_is_trained_again_where_that_is_not_asked_for(planned, changes):
    assert not [id for id in planned(*changes) if id.endswith(":qat")]


def test_a_step_that_repairs_nothing_stands_for_itself(planned):
    last = list(planned().values())
    assert chosen("convert:onnx", last) == "convert:onnx"
    assert chosen("quantize:onnx:static_wi8_ai8", last) == "choose:onnx:static_wi8_ai8"
