"""The collapse case: a network whose channels are badly scaled between layers falls as int8, and the ladder brings it back in both formats."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_quantizer")

import toolkit
from benchmarks.rescale import rescale
from tests.networks import IMAGE, digits, mobile, run, sqnr_db
from toolkit.errors import ConfigError
from toolkit.store import Store


@pytest.fixture(scope="module")
def samples():
    """Digits for calibration, for the search and for the verdict, none in two of them."""
    found = digits()
    images, label = (np.concatenate([found[name], found[other]]) for name, other in (("fit", "held_out"), ("fit_label", "held_out_label")))
    parts = {"calibration": slice(0, 200), "search": slice(200, 700), "eval": slice(1400, None)}
    return {name: {IMAGE: images[rows], "label": label[rows]} for name, rows in parts.items()}


def share_right(model, data):
    return float((run(model, data[IMAGE]).argmax(-1).reshape(-1) == data["label"]).mean())


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_network_that_collapses_as_int8_is_repaired_and_the_rung_is_named(tmp_path, samples, format):
    good, bad = mobile(tmp_path, format), tmp_path / f"bad.{format}"
    assert rescale(good, bad, spread=5) > 0
    held = samples["eval"]
    assert sqnr_db(run(good, held[IMAGE]), run(bad, held[IMAGE])) > 90
    store, given = Store(tmp_path / "store"), {key: samples[key] for key in ("calibration", "search")}
    plain = toolkit.quantize(bad, **given, output=tmp_path / f"plain.{format}", store=store)
    repaired = toolkit.quantize(bad, **given, max_drop="1pp", output=tmp_path / f"repaired.{format}", store=store)
    ladder = repaired.manifest.evidence["ladder"]
    right = {name: share_right(path, held) for name, path in (("float", good), ("plain", plain.path), ("repaired", repaired.path))}
    assert right["plain"] < right["float"] - 0.1
    assert right["repaired"] > right["float"] - 0.01
    assert ladder["held"]
    assert "equalization" in ladder["taken"]
    assert [one["rung"] for one in ladder["rungs"] if one["adopted"]][-1] == ladder["taken"][-1]
    assert ladder["n"] == len(samples["search"]["label"])


def test_a_file_that_nothing_repairs_says_so_and_is_the_best_of_all(tmp_path, samples):
    bad = tmp_path / "bad.onnx"
    rescale(mobile(tmp_path, "onnx"), bad, spread=5)
    given = {"calibration": samples["calibration"], "search": samples["search"], "store": Store(tmp_path / "store")}
    found = toolkit.quantize(bad, **given, max_drop="1pp", rungs=["range_method"], output=tmp_path / "x.onnx").manifest.evidence["ladder"]
    assert not found["held"]
    assert found["drop"][0] == min(one["drop"][0] for one in found["rungs"])
    assert {one["rung"] for one in found["rungs"]} == {"default", "range_method"}


def test_layers_that_are_kept_in_float_are_labelled_and_audited(tmp_path, samples):
    bad = tmp_path / "bad.onnx"
    rescale(mobile(tmp_path, "onnx"), bad, spread=5)
    given = {"calibration": samples["calibration"], "search": samples["search"], "store": Store(tmp_path / "store")}
    found = toolkit.quantize(bad, **given, max_drop="1pp", rungs=["keep_float"], output=tmp_path / "x.onnx")
    label = found.manifest.evidence["label"]
    assert label["scheme"] == "static_wi8_ai8"
    floats = {layer.name for layer in toolkit.inspect(found).layers if layer.weight_dtype == "float32"}
    assert floats == set(label["kept_float"])
    assert floats


def test_a_budget_without_samples_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_drop needs samples"):
        toolkit.quantize(mobile(tmp_path, "onnx"), scheme="float16", max_drop=0.01, output=tmp_path / "x.onnx")


def test_the_evidence_can_be_read_back_from_the_manifest(tmp_path, samples):
    model = mobile(tmp_path, "onnx")
    given = {"calibration": samples["calibration"], "search": samples["search"], "store": Store(tmp_path / "store")}
    made = toolkit.quantize(model, **given, scheme="auto", output=tmp_path / "x.onnx")
    document = json.loads((tmp_path / "x.onnx.manifest.json").read_text())
    assert made.scheme == document["scheme"] == document["evidence"]["auto"]["scheme"] == "static_wi8_ai8"
    assert np.isfinite(document["evidence"]["ranges"]["median"])


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_auto_repairs_what_collapses_without_a_budget(tmp_path, samples, format):
    good, bad, held = mobile(tmp_path, format), tmp_path / f"bad.{format}", samples["eval"]
    rescale(good, bad, spread=5)
    given = {"scheme": "auto", "calibration": samples["calibration"], "search": samples["search"], "store": Store(tmp_path / "store")}
    plain = toolkit.quantize(bad, **given, rungs=[], output=tmp_path / f"plain.{format}")
    made = toolkit.quantize(bad, **given, output=tmp_path / f"made.{format}")
    ladder = made.manifest.evidence["ladder"]
    assert "ladder" not in plain.manifest.evidence
    assert share_right(plain.path, held) < share_right(good, held) - 0.1
    assert share_right(made.path, held) > share_right(good, held) - 0.015
    assert (ladder["asked"], ladder["held"]) == (False, True)
    assert "equalization" in ladder["taken"]
