"""TorchScript archives by the way they return outputs: dictionaries, named tuples, lists; every route keeps names and numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from toolkit import plugins, torchscripts

torch = pytest.importorskip("torch")

X = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
ROUTES = ("torchscript_onnx", "torchscript_openvino")


class Both(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)


class Dictionary(Net):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.layer(x)
        return {"zeta": hidden, "alpha": hidden.softmax(-1), "same": hidden, "given": x}


class Named(Net):
    def forward(self, x: torch.Tensor) -> Both:
        hidden = self.layer(x)
        return Both(hidden.softmax(-1), hidden)


class Listed(Net):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        hidden = self.layer(x)
        return [hidden, hidden.softmax(-1)]


class Branching(Net):
    def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.layer(x)
        if more is not None:
            hidden = hidden + more
        return hidden, hidden.softmax(-1)


@pytest.fixture(
    params=[(Dictionary, "script"), (Dictionary, "trace"), (Named, "script"), (Listed, "script"), (Listed, "trace"), (Branching, "script")]
)
def archive(request, tmp_path):
    kind, how = request.param
    model, path = kind().eval(), tmp_path / "model.torchscript"
    with torchscripts.quiet():
        torch.jit.save(torch.jit.script(model) if how == "script" else torch.jit.trace(model, torch.from_numpy(X), strict=False), str(path))
    with torch.no_grad():
        return path, torchscripts.named_outputs(model(torch.from_numpy(X)))


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.filterwarnings("ignore")
def test_outputs_keep_names_and_numbers(archive, name, tmp_path):
    path, expected = archive
    route = plugins.get("routes", name)
    if plugins.missing_modules(route):
        pytest.skip(f"needs {plugins.missing_modules(route)}")
    signature = plugins.get("runtimes", "torchscript").open_with(path, threads=1, examples={"x": X}).signature
    assert [spec.name for spec in signature.outputs] == list(expected)
    out = tmp_path / f"model.{route.format}"
    route.convert(path, out, signature)
    session = plugins.runtime_for(route.format).open(out, threads=1)
    assert session.signature.outputs == signature.outputs
    found = session.run({"x": X})
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value.numpy(), atol=1e-6)
