"""Every installed route, ours or a plugin's, held against the live model it converts.

A route whose source format is not known here brings its own example: ``contract_example(folder)`` returns the program's
path, its signature, inputs ``[n x ...]`` and the expected outputs ``[n x ...]``.
"""

import numpy as np
import pytest

from tests import models
from toolkit import modelfile, plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import NoRoute

N = 4


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def example_pt2(folder):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 4, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(4)
            self.head = torch.nn.Linear(4 * 16 + 2, 3)

        def forward(self, picture, extra):
            seen = torch.nn.functional.hardswish(self.norm(self.convolution(picture))).flatten(1)
            logits = self.head(torch.cat([seen, extra], dim=1))
            return {"scores": logits.softmax(-1), "logits": logits}

    torch.manual_seed(1)
    model = Net()
    with torch.no_grad():  # statistics as after training, so that normalisation does something
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.running_var.uniform_(0.5, 2)
    rng = np.random.default_rng(2)
    inputs = {"picture": rng.normal(size=(N, 1, 4, 4)).astype(np.float32), "extra": rng.normal(size=(N, 2)).astype(np.float32)}
    expected = plugins.get("sources", "torch").capture(model.eval(), inputs, folder / "model.pt2")
    return folder / "model.pt2", Signature(inputs=specs(inputs), outputs=specs(expected)), inputs, expected


def example_jax(folder):
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(2)
    kernel, weights = rng.normal(size=(3, 3, 1, 4)).astype(np.float32), rng.normal(size=(66, 3)).astype(np.float32)

    @jax.jit
    def net(picture, extra):
        seen = jax.lax.conv_general_dilated(picture, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        seen = jax.nn.gelu(seen, approximate=False)
        logits = jax.numpy.concatenate([seen.reshape(1, -1), extra], axis=1) @ weights
        return {"scores": jax.nn.softmax(logits), "logits": logits}

    inputs = {"picture": rng.normal(size=(N, 4, 4, 1)).astype(np.float32), "extra": rng.normal(size=(N, 2)).astype(np.float32)}
    expected = plugins.get("sources", "jax").capture(net, inputs, folder / "model.jax")
    return folder / "model.jax", Signature(inputs=specs(inputs), outputs=specs(expected)), inputs, expected


def example_tiny(build):
    """The models of tests/models.py, which need no converter, for what reads files of their formats."""

    def example(folder):
        x = models.samples(N)
        signature = Signature(inputs=specs({"x": x}), outputs=specs({"logits": models.reference(x)}))
        return build(folder / f"model.{build.__name__.partition('_')[2]}"), signature, {"x": x}, {"logits": models.reference(x)}

    return example


EXAMPLES = {"jax": example_jax, "onnx": example_tiny(models.tiny_onnx), "pt2": example_pt2, "tflite": example_tiny(models.tiny_tflite)}


def example_for(route, folder):
    if plugins.missing_modules(route):
        pytest.skip(f"{route.name} needs {', '.join(plugins.missing_modules(route))}")
    maker = getattr(route, "contract_example", None) or EXAMPLES.get(route.source)
    if maker is None:
        pytest.skip(f"{route.name} reads {route.source}, which has no example here, and has no contract_example")
    return maker(folder)


@pytest.mark.parametrize("name", plugins.discover("routes"))
def test_route(name, tmp_path):
    route = plugins.get("routes", name)
    program, signature, inputs, expected = example_for(route, tmp_path)
    before = modelfile.sha256(program)
    out = tmp_path / f"model.{route.format}"
    route.convert(program, out, signature)
    assert modelfile.sha256(program) == before

    again = tmp_path / "again"
    again.mkdir()
    route.convert(program, again / out.name, signature)
    assert modelfile.sha256(again / out.name) == modelfile.sha256(out)

    try:
        runtime = plugins.runtime_for(route.format)
    except NoRoute:  # a format that nothing executes here: what it says of itself is all there is to check
        found = plugins.reader(route.format).read(out).signature
        assert [(one.name, one.shape) for one in found.inputs] == [(one.name, one.shape) for one in signature.inputs]
        assert {one.name for one in found.outputs} == {one.name for one in signature.outputs}
        return
    session = runtime.open(out, threads=1)
    assert {spec.name for spec in session.signature.inputs} == {spec.name for spec in signature.inputs}
    assert {spec.name for spec in session.signature.outputs} == {spec.name for spec in signature.outputs}
    dtypes = {spec.name: spec.dtype for spec in session.signature.inputs}
    for row in range(len(next(iter(inputs.values())))):
        found = session.run({key: column[row : row + 1].astype(dtypes[key]) for key, column in inputs.items()})
        for key, column in expected.items():
            np.testing.assert_allclose(found[key], column[row : row + 1], rtol=1e-4, atol=1e-5, err_msg=f"{key} of sample {row}")
