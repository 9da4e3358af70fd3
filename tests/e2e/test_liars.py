"""Plugins that crash or lie: the evidence catches them, and the other targets go on."""

from __future__ import annotations

from dataclasses import replace

import pytest

PLUGIN = """
import ctypes, shutil
from pathlib import Path


class Liar:
    name = "liar"
    version = 1
    modules = ()
    distributions = ()
    extra = "nothing"
    source, format = "pt2", "onnx"
    schemes = needs_calibration = ("static_wi8_ai8",)
    behaviour = {behaviour!r}

    def convert(self, program, out, signature):
        if self.behaviour == "crash":
            ctypes.string_at(0)
        if self.behaviour == "hang":
            __import__("time").sleep(600)
        from toolkit.convert.torch_onnx import ROUTE
        import onnx
        from onnx import numpy_helper
        ROUTE.convert(program, out, signature)
        model = onnx.load(out)
        if self.behaviour == "rename":
            model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
        if self.behaviour == "scale":
            weight = model.graph.initializer[0]
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
        onnx.save(model, out)

    def quantize(self, model, out, *, scheme, calibration, options):
        shutil.copyfile(model, out)  # a float file, called int8


PLUGIN = Liar()
"""


# Our own plugins are asked first; here the liar is.
FORCE = """
from toolkit import plugins
honest = plugins._by_trust
plugins._by_trust = lambda group: sorted(honest(group), key=lambda plugin: plugin.name != "liar")
"""


@pytest.fixture
def lying(digits, tmp_path):
    """Installs a plugin the way a wheel would: a module, and metadata with an entry point."""

    def install(group: str, behaviour: str):
        site = tmp_path / "site"
        metadata = site / "liar-1.0.dist-info"
        metadata.mkdir(parents=True)
        (site / "liar.py").write_text(PLUGIN.format(behaviour=behaviour))
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: liar\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[edgekit.{group}]\nliar = liar:PLUGIN\n")
        return replace(digits.shell, path=(site,), prelude=FORCE)

    return install


def by_format(report):
    return {
        format: [row for row in report["rows"] if row["format"] == format and (format == "tflite" or row["artifact"])]
        for format in ("onnx", "tflite")
    }


ALONE = ("[calibration]", '[convert]\nroute = "liar"\n[calibration]')


@pytest.mark.parametrize(
    ("behaviour", "code", "says"),
    [
        ("crash", "stage-crashed", ["SIGSEGV"]),
        ("scale", "parity", ["'logits'", "SQNR", "dB"]),
        ("rename", "parity", ["logits"]),
    ],
)
def test_a_route_that_crashes_or_lies_fails_its_rows_alone(lying, variant, behaviour, code, says, tmp_path):
    done = lying("routes", behaviour)("run", variant(ALONE), "--output", tmp_path / "out", "--format", "json")
    assert done.code == 5
    rows = by_format(done.json())
    assert {row["verdict"] for row in rows["onnx"]} == {"fail"}
    assert "fail" not in {row["verdict"] for row in rows["tflite"]}  # on a noisy machine a latency budget may be undecided
    error = next(record["error"] for record in done.json()["stages"] if record["status"] == "failed")
    assert error["code"] == code
    assert all(word in error["message"] for word in says), error["message"]
    assert all(error["message"] in row["reason"] for row in rows["onnx"])
    assert {path.suffix for path in (tmp_path / "out" / "models").iterdir()} == {".tflite", ".json"}


def test_where_nobody_names_a_route_an_honest_one_takes_the_place_of_a_liar(lying, digits, tmp_path):
    done = lying("routes", "scale")("run", digits.project, "--output", tmp_path / "out", "--format", "json")
    assert done.code == 0
    (record,) = [record for record in done.json()["stages"] if record["step"] == "convert:onnx"]
    tried = [(one["route"], one["outcome"], one["code"]) for one in record["attempts"]]
    assert tried[:2] == [("liar", "failed", "parity"), ("torch_onnx", "taken", "")]


def test_an_int8_file_that_is_not_int8_fails(lying, digits, tmp_path):
    done = lying("quantizers", "copy")("run", digits.project, "--output", tmp_path / "out", "--format", "json")
    assert done.code == 5
    failed = {row["artifact"]: row["verdict"] == "fail" for row in done.json()["rows"]}
    assert failed == {
        "digits.float32.onnx": False,
        "digits.static_wi8_ai8.onnx": True,
        "digits.float32.tflite": False,
        "digits.static_wi8_ai8.tflite": False,
    }
    error = next(record["error"] for record in done.json()["stages"] if record["status"] == "failed")
    assert error["code"] == "audit"
    assert "float32" in error["message"]


def test_a_route_that_hangs_is_ended(lying, variant):
    project = variant(
        ("[calibration]", '[timing]\nstage_timeout_seconds = 20\n[convert]\nroute = "liar"\n[calibration]'),
        ('"desktop-ort", "desktop-litert", "android-midrange-litert", "android-midrange-ort"', '"desktop-ort", "desktop-litert"'),
    )
    done = lying("routes", "hang")("check", project, "--format", "json")
    assert done.code == 5
    failed = [record for record in done.json()["stages"] if record["status"] == "failed"]
    assert [(record["step"], record["error"]["code"]) for record in failed] == [("convert:onnx", "stage-timeout")]
