"""Statistics as files: shards add up to one pass, quantization takes them, and other models' are refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_quantizer")

import toolkit
from tests.networks import IMAGE, digits, mobile
from toolkit.errors import ConfigError, InputRejected
from toolkit.store import Store

EXACT = ("min_max", "percentile", "entropy", "mse")


@pytest.fixture(scope="module")
def samples():
    return {IMAGE: digits()["fit"][:200]}


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_shards_add_up_and_give_the_same_int8_file(tmp_path, samples, format):
    model, store = mobile(tmp_path, format), Store(tmp_path / "store")
    given = {"calibration": samples, "samples": 96, "store": store}
    whole = toolkit.calibrate(model, **given, output=tmp_path / "whole.npz", picture=tmp_path / "whole.png")
    parts = [toolkit.calibrate(model, **given, shard=(number, 3), output=tmp_path / f"{number}.npz") for number in (1, 2, 3)]
    merged = toolkit.calibrate(model, merge=[part.path for part in parts], output=tmp_path / "merged.npz", store=store)
    assert [part.samples for part in parts] == [32, 32, 32]
    assert (merged.samples, merged.model_sha256) == (whole.samples, whole.model_sha256) == (96, whole.model_sha256)
    assert {name: [found[method] for method in EXACT] for name, found in merged.ranges.items()} == {
        name: [found[method] for method in EXACT] for name, found in whole.ranges.items()
    }
    assert len(whole.ranges) > 3
    made = [
        toolkit.quantize(model, **how, store=store, output=tmp_path / f"{number}.{format}")
        for number, how in enumerate(({"statistics": merged.path}, {"calibration": samples, "samples": 96}))
    ]
    assert made[0].path.read_bytes() == made[1].path.read_bytes()
    assert made[0].manifest.evidence["calibration"] == {"n": 96, "method": "min_max"}


def test_a_picture_has_a_row_for_each_tensor(tmp_path, samples):
    from PIL import Image

    model, store = mobile(tmp_path, "onnx"), Store(tmp_path / "store")
    found = toolkit.calibrate(model, calibration=samples, output=tmp_path / "x.npz", picture=tmp_path / "pictures" / "x.png", store=store)
    with Image.open(tmp_path / "pictures" / "x.png") as drawn:
        grey = np.asarray(drawn.convert("L"))
    assert grey.shape[0] > 28 * len(found.ranges)
    assert 0.3 < (grey > 250).mean() < 0.98


def test_statistics_of_another_model_are_refused(tmp_path, samples):
    (tmp_path / "other").mkdir()
    model, other, store = mobile(tmp_path, "onnx"), mobile(tmp_path / "other", "tflite"), Store(tmp_path / "store")
    found = toolkit.calibrate(other, calibration=samples, output=tmp_path / "x.npz", store=store)
    with pytest.raises(InputRejected, match="another model"):
        toolkit.quantize(model, statistics=found.path, output=tmp_path / "x.onnx", store=store)
    with pytest.raises(InputRejected, match="another model"):
        toolkit.calibrate(model, merge=[found.path], output=tmp_path / "y.npz", store=store)
    assert not (tmp_path / "x.onnx").exists() and not (tmp_path / "y.npz").exists()


def test_what_cannot_be_is_refused(tmp_path, samples):
    model = mobile(tmp_path, "onnx")
    with pytest.raises(ConfigError, match="no shard 5 of 4"):
        toolkit.calibrate(model, calibration=samples, shard=(5, 4))
    with pytest.raises(ConfigError, match="there are no samples"):
        toolkit.calibrate(model)
    store = Store(tmp_path / "store")
    made = toolkit.quantize(model, scheme="static_wi8_ai8", calibration=samples, output=tmp_path / "int8.onnx", store=store)
    with pytest.raises(InputRejected, match="is static_wi8_ai8 already"):
        toolkit.calibrate(made, calibration=samples, output=tmp_path / "x.npz", store=store)
    assert not (tmp_path / "x.npz").exists()


def test_the_verb_prints_ranges_and_says_what_is_no_share(tmp_path, samples):
    model = mobile(tmp_path, "onnx")
    np.savez(tmp_path / "data.npz", **samples)

    def verb(*arguments):
        command = [sys.executable, "-m", "toolkit", "calibrate", str(model), "-c", "data.npz", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    told = verb("-o", "x.npz", "--shard", "1/2", "--format", "json")
    document = json.loads(told.stdout)
    assert (told.returncode, document["path"], document["samples"]) == (0, "x.npz", 100)
    wrong = verb("--shard", "half")
    assert wrong.returncode == 2
    assert "'half' is no share" in wrong.stderr and "Traceback" not in wrong.stderr
