"""The main story: one command, from training to a checked bundle, and what it promises."""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import numpy as np

ROOT = Path(__file__).parents[2]
QUANTIZED = "static_wi8_ai8"


def test_every_artifact_is_judged_on_every_target(digits):
    rows = {(row["artifact"], row["target"]) for row in digits.report["rows"]}
    expected = {
        (f"digits.{scheme}.{format}", f"{place}-{engine}")
        for format, engine in (("onnx", "ort"), ("tflite", "litert"))
        for scheme in ("float32", QUANTIZED)
        for place in ("desktop", "android-midrange")
    }
    assert rows == expected
    # A noisy machine leaves latency undecided; everything else passes, and nothing fails.
    assert digits.report["verdict"] != "fail"
    assert all(one["verdict"] == "pass" for row in digits.report["rows"] for one in row["findings"] if "latency" not in one["budget"])


def test_accuracy_holds_on_enough_samples(digits):
    source = digits.report["source"]["metric"]
    assert source["value"] >= 0.95
    for row in digits.report["rows"]:
        metric = row["metric"]
        assert metric["n"] == source["n"] >= 500
        assert abs(metric["value"] - source["value"]) <= 0.01
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert row["change"]["low"] <= row["change"]["value"] <= row["change"]["high"]


def test_int8_files_are_small(digits):
    for format in ("onnx", "tflite"):
        ratio = digits.model(format, QUANTIZED).stat().st_size / digits.model(format).stat().st_size
        assert ratio <= 0.35


def test_reported_accuracy_is_what_the_bare_runtime_gives(digits):
    """Recomputed with ONNX Runtime and LiteRT alone, from the delivered files and the example's own data."""
    import importlib.util

    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    spec = importlib.util.spec_from_file_location("digits_example", digits.project / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    held_out = module.load()["eval"]
    reported = {row["artifact"]: row["metric"]["value"] for row in digits.report["rows"] if row["target"].startswith("desktop")}
    for scheme in ("float32", QUANTIZED):
        session = onnxruntime.InferenceSession(digits.model("onnx", scheme), providers=["CPUExecutionProvider"])
        found = [session.run(["logits"], {"image": image[None]})[0].argmax() for image in held_out["image"]]
        assert np.mean(found == held_out["label"]) == reported[f"digits.{scheme}.onnx"]
        runner = Interpreter(str(digits.model("tflite", scheme))).get_signature_runner()
        found = [runner(image=image[None])["logits"].argmax() for image in held_out["image"]]
        assert np.mean(found == held_out["label"]) == reported[f"digits.{scheme}.tflite"]


def test_the_report_fits_its_published_schema(digits):
    schema = json.loads((ROOT / "docs" / "schemas" / "report-2.schema.json").read_text())
    jsonschema.validate(digits.report, schema)


def test_junit_agrees_with_the_report(digits):
    suites = ET.parse(digits.out / "junit.xml").getroot()
    cases = suites.findall(".//testcase")
    assert not suites.findall(".//failure")
    assert {row["target"] for row in digits.report["rows"]} <= {case.get("classname") for case in cases}


def test_the_table_shows_every_row_with_interval_and_verdict(digits):
    for row in digits.report["rows"]:
        assert row["artifact"] in digits.outcome.stdout
        assert row["target"] in digits.outcome.stdout
    assert sum(map(digits.outcome.stdout.count, ("pass", "inconclusive"))) >= len(digits.report["rows"])
    assert "host cpu" in digits.outcome.stdout


def test_manifests_describe_the_files_beside_them(digits):
    models = [path for path in (digits.out / "models").iterdir() if path.suffix in (".onnx", ".tflite")]
    assert len(models) == 4
    for model in models:
        manifest = json.loads(model.with_name(model.name + ".manifest.json").read_text())
        assert manifest["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
        assert [spec["name"] for spec in manifest["signature"]["inputs"]] == ["image"]
        assert [spec["name"] for spec in manifest["signature"]["outputs"]] == ["logits"]
        if manifest["scheme"] == "float32":
            assert manifest["evidence"]["checks"]["parity"]["outputs"]["logits"]["sqnr_db"] > 60
        assert manifest["evidence"]["checks"]["audit"]["scheme_found"] == manifest["scheme"]


def test_a_second_run_computes_only_latency_and_delivers_the_same_bytes(digits, tmp_path):
    before = _bytes(digits.out / "models")
    again = digits.shell("run", digits.project, "--output", tmp_path / "out", "--format", "json")
    assert again.code == 0
    statuses = {record["step"]: record["status"] for record in again.json()["stages"]}
    assert {step for step, status in statuses.items() if status == "unneeded"} == {step for step in statuses if step.endswith(":qat")}
    assert {step: status for step, status in statuses.items() if status not in ("cached", "unneeded")} == {
        step: "done" for step in statuses if step.startswith(("benchmark:", "coldstart:", "roofline:"))
    }
    assert all(row["cached"] for row in again.json()["rows"])
    assert not any(row["cached"] for row in digits.report["rows"])
    assert _bytes(tmp_path / "out" / "models") == before


def test_an_empty_cache_gives_the_same_models(digits, tmp_path):
    """Nothing about time, place or process leaks into a model file."""
    from dataclasses import replace

    fresh = replace(digits.shell, cache=tmp_path / "elsewhere")
    assert fresh("run", digits.project, "--output", tmp_path / "out").code == 0
    assert _bytes(tmp_path / "out" / "models") == _bytes(digits.out / "models")


def test_models_of_an_earlier_run_do_not_linger(digits, variant, tmp_path):
    out = tmp_path / "out"
    assert digits.shell("run", digits.project, "--output", out).code == 0
    for name in ("mine.tflite", "mine.tflite.manifest.json"):
        (out / "models" / name).write_text("not yours")
    only_onnx = variant(('"desktop-ort", "desktop-litert", "android-midrange-litert", "android-midrange-ort"', '"desktop-ort"'))
    assert digits.shell("run", only_onnx, "--output", out).code == 0
    names = {path.name for path in (out / "models").iterdir()}
    assert {name for name in names if "tflite" in name} == {"mine.tflite", "mine.tflite.manifest.json"}
    assert "digits.float32.onnx" in names


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
