"""SmoothQuant on files of both formats: the float outputs stay the same, and static int8 gets better where a norm has outliers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_quantizer")

import toolkit  # noqa: E402
from toolkit import plugins  # noqa: E402
from toolkit.dataset import Dataset  # noqa: E402
from toolkit.quantization.network import open_network  # noqa: E402
from toolkit.quantization.observe import observe  # noqa: E402
from toolkit.quantization.smooth import smooth  # noqa: E402
from toolkit.stats.signal import sqnr_db  # noqa: E402
from toolkit.store import Store  # noqa: E402

RNG = np.random.default_rng(0)
OUTLIERS = (3, 11)


class Block(torch.nn.Module):
    """Two dense layers behind one norm, a third behind another; the norms have channels fifty times as large as the rest."""

    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.second = torch.nn.LayerNorm(16), torch.nn.LayerNorm(16)
        self.query, self.key, self.out = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, 8)
        self.residual = residual
        with torch.no_grad():
            for norm in (self.norm, self.second):
                norm.weight[list(OUTLIERS)] *= 50
            for layer in (self.query, self.key, self.out):
                layer.weight[:, list(OUTLIERS)] /= 50

    def forward(self, x):
        y = self.norm(x)
        z = torch.tanh(self.query(y)) * torch.tanh(self.key(y))
        return self.out(self.second(z + y if self.residual else z + x))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smooth")
    x = RNG.normal(size=(64, 5, 16)).astype(np.float32)

    def make(format, residual):
        out = folder / f"{residual}.{format}"
        if not out.exists():
            toolkit.export(Block(residual).eval(), {"x": x[:4]}, format=format, output=out, name="block", store=Store(folder / "store"))
        return out

    return make, Dataset({"x": x})


def run(model, samples):
    session = plugins.runtime_for(plugins.format_of(model)).open(model, threads=1)
    name = session.signature.outputs[0].name
    return np.concatenate([session.run({"x": row["x"]})[name] for row in samples.batches(1)])


def int8(model, samples, folder):
    out = folder / f"int8.{plugins.format_of(model)}"
    plugins.quantizer(plugins.format_of(model), "static_wi8_ai8").quantize(model, out, scheme="static_wi8_ai8", calibration=samples, options={})
    return run(out, samples)


def test_outliers_behind_a_norm_move_into_the_weights(files, tmp_path):
    make, samples = files
    model = make("onnx", False)
    network = open_network(model)
    assert len(network.norms) == 2
    statistics = observe(model, samples, channels=tuple({layer.input for layer in network.layers}))
    assert "32 channels behind 2 norms" in smooth(network, statistics)[0]
    out = tmp_path / model.name
    network.save(out)
    expected = run(model, samples)
    assert sqnr_db(expected, run(out, samples)) > 100
    before = sqnr_db(expected, int8(model, samples, tmp_path))
    assert sqnr_db(expected, int8(out, samples, tmp_path)) > before + 6
    ends = observe(out, samples, channels=tuple({layer.input for layer in open_network(out).layers}))
    sizes = [np.maximum(one.channel_high, -one.channel_low) for one in ends.tensors.values() if one.channel_high is not None]
    assert max(size.max() / np.median(size) for size in sizes) < 10


def test_a_norm_that_a_residual_reads_too_is_left_alone(files):
    make, samples = files
    model = make("onnx", True)
    network = open_network(model)
    statistics = observe(model, samples, channels=tuple({layer.input for layer in network.layers}))
    assert "16 channels behind 1 norms" in smooth(network, statistics)[0]


def test_a_file_whose_norms_were_folded_into_layers_has_nothing_to_smooth(files, tmp_path):
    make, samples = files
    model = make("tflite", False)  # Edgekit's own writer folds a norm's scale into the layers behind it, which moves all of the range
    network = open_network(model)
    statistics = observe(model, samples, channels=tuple({layer.input for layer in network.layers}))
    assert smooth(network, statistics) == []
    assert sqnr_db(run(model, samples), int8(model, samples, tmp_path)) > 30
