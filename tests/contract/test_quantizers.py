"""Every installed quantizer, ours or a plugin's, in every scheme, held against the float model it starts from.

A quantizer whose format no route here writes brings its own example: ``contract_example(folder)`` returns the float
model's path, its signature, inputs ``[n x ...]`` and the expected outputs ``[n x ...]``.
"""

import hashlib

import numpy as np
import pytest

from toolkit import plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.dataset import Dataset

N = 32
CASES = [(name, scheme) for name, plugin in plugins.discover("quantizers").items() for scheme in plugin.schemes]


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def pictures(rng):
    """Smooth blobs in 0..1: like pictures, most values are small and neighbours are alike, ``[n x 1 x 8 x 8]``."""
    rows, columns = np.mgrid[:8, :8]
    centre, width = rng.uniform(1, 6, size=(N, 2, 1, 1)), rng.uniform(2, 8, size=(N, 1, 1))
    return np.exp(-((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2) / width)[:, None].astype(np.float32)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A convolutional net of about 150,000 parameters with the statistics of a trained one."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(4)

    def block(inside, outside, stride):
        return nn.Conv2d(inside, outside, 3, stride=stride, padding=1), nn.BatchNorm2d(outside), nn.ReLU()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*block(1, 32, 1), *block(32, 64, 2), *block(64, 128, 2), *block(128, 48, 1))
            self.head = nn.Linear(48 * 4, 10)

        def forward(self, picture):
            return self.head(self.body(picture).flatten(1))

    columns = {"picture": pictures(np.random.default_rng(3))}
    model = Net().train()
    for _ in range(30):  # running statistics of these pictures, as training would leave them
        model(torch.from_numpy(columns["picture"]))
    folder = tmp_path_factory.mktemp("program")
    expected = plugins.get("sources", "torch").capture(model.eval(), columns, folder / "model.pt2", outputs=("logits",))
    return folder / "model.pt2", Signature(inputs=specs(columns), outputs=specs(expected)), columns


@pytest.fixture(scope="module")
def float_model(request, tmp_path_factory):
    """Returns a function that makes the float model of a format once."""
    made = {}

    def make(quantizer):
        if quantizer.format not in made:
            made[quantizer.format] = build(quantizer)
        return made[quantizer.format]

    def build(quantizer):
        folder = tmp_path_factory.mktemp(quantizer.format)
        if hasattr(quantizer, "contract_example"):
            path, _, columns, _ = quantizer.contract_example(folder)
            return path, columns
        ready = [
            route
            for route in plugins.discover("routes").values()
            if (route.source, route.format) == ("pt2", quantizer.format) and not plugins.missing_modules(route)
        ]
        if not ready:
            pytest.skip(f"no installed route makes a float {quantizer.format} file, and {quantizer.name} has no contract_example")
        path, signature, columns = request.getfixturevalue("program")
        ready[0].convert(path, folder / f"model.{quantizer.format}", signature)
        return folder / f"model.{quantizer.format}", columns

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
    model, columns = float_model(quantizer)
    before = hashlib.sha256(model.read_bytes()).hexdigest()
    calibration = Dataset(columns) if scheme in quantizer.needs_calibration else None
    options = {"method": "min_max", "per_channel": True}
    files = [tmp_path / "one" / model.name, tmp_path / "two" / model.name]
    for out in files:
        out.parent.mkdir()
        quantizer.quantize(model, out, scheme=scheme, calibration=calibration, options=options)
        assert list(out.parent.iterdir()) == [out], "temporary files are left behind"
    assert hashlib.sha256(model.read_bytes()).hexdigest() == before, "the input was written to"
    assert files[0].read_bytes() == files[1].read_bytes(), "repeating it gives other bytes"

    plain, expected = run_all(model, quantizer.format, columns)
    signature, found = run_all(files[0], quantizer.format, columns)
    assert ends(signature) == ends(plain)
    for key, value in expected.items():
        assert np.any(found[key] != value), f"{key} did not change: nothing was quantized"
        sqnr_db = 10 * np.log10((value**2).sum() / ((found[key] - value) ** 2).sum())
        assert sqnr_db > 15, f"{key}: {sqnr_db:.1f} dB"

    ratio = files[0].stat().st_size / model.stat().st_size
    assert ratio < 1
    if scheme == "static_wi8_ai8" and not hasattr(quantizer, "contract_example"):
        assert ratio <= 0.35, f"int8 takes {ratio:.3f} of float32"
