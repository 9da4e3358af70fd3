"""TorchScript archives: what is one, what they may name, and what is refused before PyTorch loads it."""

import io
import pickle
import warnings
import zipfile

import numpy as np
import pytest

from toolkit import intake, plugins
from toolkit.errors import InputRejected, StageFailed

torch = pytest.importorskip("torch")
HEAD = """class Net(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  def forward(self: __torch__.Net,
    x: Tensor) -> Tensor:
"""
GOOD = "    _0 = torch.relu(x)\n    return torch.mul(_0, CONSTANTS.c0)\n"


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))

    def forward(self, x):
        return self.layers(x).softmax(-1)


def saved(folder, how=torch.jit.trace, *, train=False, name="model.pt", module=None):
    module = (module or Net()).train(train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, torch.zeros(1, 4)) if how is torch.jit.trace else torch.jit.script(module), folder / name)
    return folder / name


def archive(folder, code=HEAD + GOOD, **members):
    path = folder / "made.torchscript"
    plain = {"m/code/__torch__.py": code, "m/data.pkl": pickle.dumps({}, 2), "m/constants.pkl": pickle.dumps((), 2), "m/version": "3"}
    with zipfile.ZipFile(path, "w") as made:
        for name, content in {**plain, **{key: value for key, value in members.items() if value is not None}}.items():
            made.writestr(name, content)
    return path


@pytest.mark.parametrize("how", [torch.jit.trace, torch.jit.script])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".torchscript"])
def test_archives_are_told_by_their_bytes(tmp_path, how, suffix):
    assert intake.check_model(saved(tmp_path, how, name=f"model{suffix}")) == "torchscript"


def test_pickles_stay_refused(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InputRejected, match="holds weights without a model"):
        intake.check_model(tmp_path / "weights.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk" * 50)
    with pytest.raises(InputRejected, match="may be a pickle"):
        intake.check_model(tmp_path / "junk.pt")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("torch.save(x, '/tmp/x')", "writes files"),
        ("x.save('/tmp/x')", "writes files"),
        ("ops.aten.from_file('/etc/passwd', False, 9)", "opens files"),
        ("ops.aten.save(x, 'a')", "writes files"),
        ("ops.inductor._alloc_from_pool(x)", "operators of inductor"),
        ("ops.c10d.send(x)", "operators of c10d"),
        ("torch.ops.symm_mem.get(x)", "operators of symm_mem"),
        ("__torch__.torch.classes.dist_rpc.WorkerInfo(x)", "class of C\\+\\+"),
        ("getattr(torch, 'sa' + 've')(x, 'a')", "cannot be told"),
        ("getattr(torch, 'save')(x, 'a')", "cannot be told"),
        ("getattr(torch, 's\\x61ve')(x, 'a')", "cannot be told"),
        ("ops", "another name"),
        ("torch", "another name"),
        ("torch.ops", "another name"),
        ("__torch__.torch", "another name"),
        ("getattr", "cannot be told"),
    ],
)
def test_code_that_reaches_outside_is_refused(tmp_path, line, match):
    intake.check_model(archive(tmp_path))
    with pytest.raises(InputRejected, match=match):
        intake.check_model(archive(tmp_path, f"{HEAD}    _0 = {line}\n    return x\n"))


def test_the_operators_that_touch_files_are_all_of_them():
    """A later PyTorch may have more: those that take a file's name are known by their arguments."""
    schemas = torch._C._jit_get_all_schemas()
    found = {
        schema.name
        for schema in schemas
        if schema.name.split("::")[0] in ("aten", "prim", "prims", "quantized", "mkldnn")
        and any("file" in argument.name for argument in schema.arguments)
    }
    assert found == {"aten::save", "aten::from_file"}


def test_from_file_would_work_without_the_check(tmp_path):
    """What the check is for: loading runs a class's ``__setstate__``, and that may create a file."""

    class Writer(torch.nn.Module):
        def forward(self, x, path: str):
            return x + torch.from_file(path, True, 4)

    made = saved(tmp_path, torch.jit.script, module=Writer())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(made)(torch.zeros(4), str(tmp_path / "created"))
    assert (tmp_path / "created").stat().st_size == 16
    with pytest.raises(InputRejected, match="opens files"):
        plugins.get("runtimes", "torchscript").open(made, threads=1)


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"m/data.pkl": pickle.dumps(print, 2)}, "imports"),
        ({"m/data.pkl": b"c__torch__.torch.classes.x Y\nY\n."}, "imports"),
        ({"m/../x": b"x"}, "outside its folder"),
        ({"other/x": b"x"}, "one top folder"),
        ({"m/code/big.py": b"#" * (65 << 20)}, "unpacks to"),
        ({"m/code/bad.py": b"class :"}, "cannot be read"),
        ({"m/code/bad.py": "é".encode()}, "cannot be read"),
    ],
)
def test_archives_that_lie(tmp_path, members, match):
    with pytest.raises(InputRejected, match=match):
        intake.check_model(archive(tmp_path, **members))


def test_truncated_archives_and_wrong_checksums(tmp_path):
    data = saved(tmp_path).read_bytes()
    for cut in np.linspace(1, len(data) - 1, 12).astype(int):
        (tmp_path / "cut.torchscript").write_bytes(data[:cut])
        with pytest.raises(InputRejected):
            intake.check_model(tmp_path / "cut.torchscript")
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        weights = next(whole.read(name) for name in whole.namelist() if name.endswith("data/0"))
    (tmp_path / "cut.torchscript").write_bytes(data.replace(weights, bytes(len(weights)), 1))
    with pytest.raises(InputRejected, match="checksum"):
        intake.check_model(tmp_path / "cut.torchscript")


def test_training_mode_is_named(tmp_path):
    with pytest.raises(InputRejected, match="training mode"):
        plugins.get("runtimes", "torchscript").open(saved(tmp_path, train=True), threads=1)


def test_a_scripted_model_learns_its_sizes_from_samples(tmp_path):
    runtime, model = plugins.get("runtimes", "torchscript"), Net().eval()
    path = saved(tmp_path, torch.jit.script, module=model)
    with pytest.raises(InputRejected, match="was not traced"):
        runtime.open(path, threads=1)
    with pytest.raises(InputRejected, match="takes the inputs x"):
        runtime.open_with(path, threads=1, examples={"image": np.zeros((1, 4), np.float32)})
    sample = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    session = runtime.open_with(path, threads=1, examples={"x": sample})
    with torch.inference_mode():
        np.testing.assert_allclose(session.run({"x": sample})["output_0"], model(torch.from_numpy(sample)), rtol=1e-6)


def test_outputs_in_a_dictionary_keep_their_names(tmp_path):
    class Named(torch.nn.Module):
        def forward(self, x):
            return {"scores": x.softmax(-1)}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Named().eval(), torch.zeros(1, 4), strict=False), tmp_path / "m.torchscript")
    session = plugins.get("runtimes", "torchscript").open(tmp_path / "m.torchscript", threads=1)
    assert [spec.name for spec in session.signature.outputs] == ["scores"]


def test_what_openvino_cannot_convert_is_said_in_a_sentence(tmp_path):
    route = plugins.get("routes", "torchscript_openvino")
    if plugins.missing_modules(route):
        pytest.skip("openvino is not installed")

    class Named(torch.nn.Module):
        def forward(self, x):
            found = {}
            found["scores"] = torch.linalg.eigvalsh(x @ x.T)
            return found["scores"]

    path = saved(tmp_path, torch.jit.script, module=Named())
    session = plugins.get("runtimes", "torchscript").open_with(path, threads=1, examples={"x": np.ones((1, 4), np.float32)})
    with pytest.raises(StageFailed, match="OpenVINO cannot convert the archive") as caught:
        route.convert(path, tmp_path / "m.openvino", session.signature)
    assert ".pt2" in caught.value.hint and "\n" not in caught.value.message
