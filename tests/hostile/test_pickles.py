"""Files that are called like pickles: models among them are taken for what they are, all others are refused with what to do instead."""

import importlib.util
import io
import pickle
import subprocess
import warnings

import pytest

from toolkit import intake, plugins
from toolkit.errors import InputRejected
from toolkit.pipeline.single import check_bytes

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.line(x)


def program(path):
    saved = torch.export.export(Net().eval(), (torch.zeros(1, 4),))
    buffer = io.BytesIO()
    torch.export.save(saved, buffer)
    path.write_bytes(buffer.getvalue())


def script(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Net().eval(), torch.zeros(1, 4)), path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PT", ".bin"])
@pytest.mark.parametrize(("write", "format"), [(program, "pt2"), (script, "torchscript")])
def test_a_model_is_taken_for_what_it_is(tmp_path, write, format, suffix):
    file = tmp_path / f"model{suffix}"
    write(file)
    assert intake.check_model(file) == check_bytes(file) == format


@pytest.mark.parametrize("weights", [lambda: Net().state_dict(), lambda: {"model": Net().state_dict(), "epoch": 3}, lambda: torch.zeros(3)])
def test_weights_alone_are_no_model(tmp_path, weights):
    torch.save(weights(), tmp_path / "weights.pt")
    with pytest.raises(InputRejected, match="holds weights without a model") as caught:
        check_bytes(tmp_path / "weights.pt")
    assert "load_state_dict" in caught.value.hint


def test_a_pickled_module_is_refused_by_its_class(tmp_path):
    torch.save(Net(), tmp_path / "model.pth")
    with pytest.raises(InputRejected, match=r"\.pth files are refused: this one is a pickle of [\w.]*test_pickles\.Net, and loading") as caught:
        check_bytes(tmp_path / "model.pth")
    assert "torch.export.save" in caught.value.hint


class Bad:
    def __reduce__(self):
        return subprocess.check_call, (["false"],)


@pytest.mark.parametrize("content", [pickle.dumps(Bad()), pickle.dumps(Bad(), 0), b"", b"PK\x03\x04 and so on", b"anything"], ids=range(5))
def test_what_cannot_be_told_from_a_pickle_is_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputRejected, match=r"may be a pickle|is empty"):
        check_bytes(tmp_path / "model.pt")


def test_code_behind_another_archives_marks_is_still_refused(tmp_path):
    torch.save({"a": Bad()}, tmp_path / "model.ckpt")
    with pytest.raises(InputRejected, match=r"a pickle of \w+\.check_call"):
        check_bytes(tmp_path / "model.ckpt")


@pytest.mark.parametrize(("write", "suffix", "hint"), [(program, ".torchscript", "rename it to .pt2"), (script, ".pt2", "rename it to .torchscript")])
def test_a_wrong_suffix_is_named(tmp_path, write, suffix, hint):
    write(tmp_path / f"model{suffix}")
    with pytest.raises(InputRejected) as caught:
        check_bytes(tmp_path / f"model{suffix}")
    assert hint in caught.value.hint


def test_both_suffixes_of_keras_files_are_one_format(tmp_path):
    assert plugins.format_of(tmp_path / "model.hdf5") == plugins.format_of(tmp_path / "model.H5") == "h5"
    assert importlib.util.find_spec("toolkit.runtimes.keras")
