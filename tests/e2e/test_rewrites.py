"""A model that no route takes: refused with the name of the rewrite that helps, and converted once that is declared."""

from importlib.util import find_spec

import numpy as np
import pytest

from tests.e2e.conftest import Shell

torch = pytest.importorskip("torch")

from toolkit.sources.torch import SOURCE  # noqa: E402


class Spectrum(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(32).clone())

    def forward(self, sound):
        return torch.log(torch.stft(sound, 32, 16, window=self.window, return_complex=True).abs() + 1e-3)


class Words(torch.nn.Module):
    """A small classifier of sounds that computes their spectrum itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.front, self.layer, self.head = Spectrum(), torch.nn.Conv1d(17, 8, 3, stride=2), torch.nn.Linear(8, 3)

    def forward(self, sound):
        return {"logits": self.head(torch.relu(self.layer(self.front(sound))).mean(-1))}


def test_the_refusal_names_the_rewrite_and_the_declared_one_is_shown(tmp_path):
    for module in ("litert_torch", "ai_edge_litert"):
        if not find_spec(module):
            pytest.skip(f"{module} is not installed")
    sound = np.random.default_rng(0).normal(size=(8, 320)).astype(np.float32)
    SOURCE.capture(Words().eval(), {"sound": sound}, tmp_path / "words.pt2")
    np.savez(tmp_path / "sounds.npz", sound=sound)
    shell = Shell(tmp_path / "cache")
    words = ("export", "words.pt2", "--format", "tflite", "--samples", "sounds.npz")
    done = shell(*words, cwd=tmp_path)
    assert done.code == 5 and "aten._fft_r2c" in done.stderr and "in layer 'front'" in done.stderr
    assert "declare the rewrite dft-matmul: --rewrite dft-matmul" in done.stderr
    assert not list(tmp_path.glob("*.tflite"))
    shown = shell(*words, "--rewrite", "dft-matmul", "--rewrite", "gelu-tanh", cwd=tmp_path)
    assert shown.code == 0 and "1 of front/stft" in shown.stdout and "found nothing to change" in shown.stdout
    evidence = shell(*words, "--rewrite", "dft-matmul", "--rewrite", "gelu-tanh", "-f", "json", cwd=tmp_path).json()["manifest"]["evidence"]
    assert evidence["conversion"] == {"rewrites": ["dft-matmul", "gelu-tanh"]}
    assert evidence["rewritten"] == {"dft-matmul": ["front/stft"], "gelu-tanh": []}
    assert evidence["checks"]["parity"]["outputs"]["logits"]["sqnr_db"] > 100
