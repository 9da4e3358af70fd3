"""Every installed quantizer, ours or a plugin's, in every scheme, held against the float model it starts from.

A quantizer whose format no route here writes brings its own example: ``contract_example(folder)`` returns the float
model's path, its signature, inputs ``[n x ...]`` and the expected outputs ``[n x ...]``. A scheme may be refused for the
convolutional network with a ``ConfigError``; it must then be made of the dense one.
"""

import numpy as np
import pytest

from toolkit import modelfile, plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.audit import stage as audit
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError

N = 32
LEAST_DB = {"weight_only_wi4": 11, "static_wi4_ai8": 11}
CASES = [(name, scheme) for name, plugin in plugins.discover("quantizers").items() for scheme in plugin.schemes]


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def pictures(rng):
    """Smooth blobs in 0..1: like pictures, most values are small and neighbours are alike, ``[n x 1 x 8 x 8]``."""
    rows, columns = np.mgrid[:8, :8]
    centre, width = rng.uniform(1, 6, size=(N, 2, 1, 1)), rng.uniform(2, 8, size=(N, 1, 1))
    return np.exp(-((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2) / width)[:, None].astype(np.float32)


def convolutional(nn):
    """About 150,000 parameters."""

    def block(inside, outside, stride):
        return nn.Conv2d(inside, outside, 3, stride=stride, padding=1), nn.BatchNorm2d(outside), nn.ReLU()

    body = nn.Sequential(*block(1, 32, 1), *block(32, 64, 2), *block(64, 128, 2), *block(128, 48, 1))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(48 * 4, 10))


def dense(nn):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Returns a function that captures a network with the statistics of a trained one."""
    torch = pytest.importorskip("torch")
    made = {}

    def capture(network):
        if network not in made:
            torch.manual_seed(4)

            class Net(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.net = network(torch.nn)

                def forward(self, picture):
                    return self.net(picture)

            columns = {"picture": pictures(np.random.default_rng(3))}
            model = Net().train()
            for _ in range(30):  # running statistics of these pictures, as training would leave them
                model(torch.from_numpy(columns["picture"]))
            path = tmp_path_factory.mktemp("program") / "model.pt2"
            expected = plugins.get("sources", "torch").capture(model.eval(), columns, path, outputs=("logits",))
            made[network] = path, Signature(inputs=specs(columns), outputs=specs(expected)), columns
        return made[network]

    return capture


@pytest.fixture(scope="module")
def float_model(request, tmp_path_factory):
    """Returns a function that makes the float model of a format once, and the options that go with it."""
    made = {}

    def make(quantizer, network):
        if (quantizer.format, network) not in made:
            made[quantizer.format, network] = build(quantizer, network)
        return made[quantizer.format, network]

    def build(quantizer, network):
        folder = tmp_path_factory.mktemp(quantizer.format)
        if hasattr(quantizer, "contract_example"):
            path, _, columns, _ = quantizer.contract_example(folder)
            return path, columns, {}
        ready = [
            route
            for route in plugins.discover("routes").values()
            if (route.source, route.format) == ("pt2", quantizer.format) and not plugins.missing_modules(route)
        ]
        if not ready:
            pytest.skip(f"no installed route makes a float {quantizer.format} file, and {quantizer.name} has no contract_example")
        path, signature, columns = request.getfixturevalue("program")(network)
        ready[0].convert(path, folder / f"model.{quantizer.format}", signature)
        return folder / f"model.{quantizer.format}", columns, {"program": path}

    return make


def run_all(path, format, columns):
    """Returns the session's signature and all outputs, computed one sample at a time."""
    session = plugins.runtime_for(format).open(path, threads=1)
    rows = [session.run({name: column[row : row + 1] for name, column in columns.items()}) for row in range(N)]
    return session.signature, {name: np.concatenate([row[name] for row in rows]).astype(np.float64) for name in rows[0]}


def ends(signature):
    return {(spec.name, spec.dtype, spec.shape) for spec in signature.inputs}, {(spec.name, spec.dtype, spec.shape) for spec in signature.outputs}


@pytest.mark.parametrize(("name", "scheme"), CASES, ids=[f"{name}-{scheme}" for name, scheme in CASES])
def test_quantizer(name, scheme, float_model, tmp_path):
    quantizer = plugins.get("quantizers", name)
    if plugins.missing_modules(quantizer):
        pytest.skip(f"{name} needs {', '.join(plugins.missing_modules(quantizer))}")
    try:
        check(quantizer, scheme, *float_model(quantizer, convolutional), tmp_path / "convolutional")
    except ConfigError:
        check(quantizer, scheme, *float_model(quantizer, dense), tmp_path / "dense")


def check(quantizer, scheme, model, columns, given, folder):
    before = modelfile.sha256(model)
    calibration = Dataset(columns) if scheme in quantizer.needs_calibration else None
    options = {"method": "min_max", "per_channel": True} | given
    files = [folder / "one" / model.name, folder / "two" / model.name]
    for out in files:
        out.parent.mkdir(parents=True)
        told = quantizer.quantize(model, out, scheme=scheme, calibration=calibration, options=options)
        assert list(out.parent.iterdir()) == [out], "temporary files are left behind"
    assert modelfile.sha256(model) == before, "the input was written to"
    assert modelfile.sha256(files[0]) == modelfile.sha256(files[1]), "repeating it gives other bytes"

    plain, expected = run_all(model, quantizer.format, columns)
    signature, found = run_all(files[0], quantizer.format, columns)
    assert ends(signature) == ends(plain)
    for key, value in expected.items():
        assert np.any(found[key] != value), f"{key} did not change: nothing was quantized"
        sqnr_db = 10 * np.log10((value**2).sum() / ((found[key] - value) ** 2).sum())
        assert sqnr_db > LEAST_DB.get(scheme, 15), f"{key}: {sqnr_db:.1f} dB"

    ratio = modelfile.size_bytes(files[0]) / modelfile.size_bytes(model)
    assert ratio < 1
    if plugins.find_reader(quantizer.format):
        contents = plugins.reader(quantizer.format).read(files[0])
        audit.compare(contents, scheme, kept_float=(told or {}).get("kept_float", ()))
    if scheme == "static_wi8_ai8" and not hasattr(quantizer, "contract_example"):
        assert ratio <= 0.35, f"int8 takes {ratio:.3f} of float32"
