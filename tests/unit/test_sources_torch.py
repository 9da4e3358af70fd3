import subprocess
import sys
import zipfile
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toolkit import dataset, factory  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.errors import ConfigError, InputRejected, StageFailed  # noqa: E402
from toolkit.job import Job  # noqa: E402
from toolkit.sources import stage  # noqa: E402
from toolkit.sources.torch import SOURCE  # noqa: E402

IMAGES = np.random.default_rng(0).normal(size=(5, 1, 4, 4)).astype(np.float32)


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(16, 3)

    def forward(self, image):
        return self.head(image.flatten(1))


class Difference(torch.nn.Module):
    def forward(self, left, right):
        return {"difference": left - right, "total": left + right}


class Returns(torch.nn.Module):
    """Gives back whatever the function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def run_program(path, **inputs):
    result = torch.export.load(path).module()(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    return {name: value.detach().numpy() for name, value in result.items()}


def test_program_and_recorded_outputs_are_the_live_model(tmp_path):
    model = Classifier().eval()
    found = SOURCE.capture(model, {"image": IMAGES}, tmp_path / "m.pt2", outputs=("logits",))
    weight, bias = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    by_hand = IMAGES.reshape(5, 16).astype(np.float64) @ weight.T + bias
    np.testing.assert_allclose(found["logits"], by_hand, rtol=1e-5, atol=1e-6)
    assert found["logits"].shape == (5, 3)
    np.testing.assert_allclose(run_program(tmp_path / "m.pt2", image=IMAGES[3:4])["logits"][0], by_hand[3], rtol=1e-5, atol=1e-6)


def test_keyword_inputs_do_not_depend_on_their_order(tmp_path):
    right, left = np.ones((2, 3), np.float32), np.full((2, 3), 5, np.float32)
    found = SOURCE.capture(Difference().eval(), {"right": right, "left": left}, tmp_path / "m.pt2")
    assert list(found) == ["difference", "total"]
    np.testing.assert_array_equal(found["difference"], np.full((2, 3), 4, np.float32))
    np.testing.assert_array_equal(run_program(tmp_path / "m.pt2", left=left[:1], right=right[:1])["difference"], [[4, 4, 4]])


def test_other_names_are_passed_by_position(tmp_path):
    five, one = np.full((1, 2), 5, np.float32), np.ones((1, 2), np.float32)
    found = SOURCE.capture(Difference().eval(), {"a": five, "b": one}, tmp_path / "m.pt2", outputs=("d", "t"))
    np.testing.assert_array_equal(found["d"], [[4, 4]])
    np.testing.assert_array_equal(run_program(tmp_path / "m.pt2", a=five, b=one)["d"], [[4, 4]])


@pytest.mark.parametrize("names", [("b", "left"), ("right", "b"), ("a", "b", "c")])
def test_inputs_that_would_be_swapped_or_have_no_place_are_refused(tmp_path, names):
    with pytest.raises(InputRejected, match="forward takes"):
        SOURCE.capture(Difference().eval(), {name: np.ones((1, 2), np.float32) for name in names}, tmp_path / "m.pt2")


@pytest.mark.parametrize(
    ("function", "outputs", "names"),
    [
        (lambda x: x + 1, (), ["output_0"]),
        (lambda x: (x + 1, x + 2), (), ["output_0", "output_1"]),
        (lambda x: [x + 1, x + 2], ("a", "b"), ["a", "b"]),
        (lambda x: OrderedDict(z=x + 1, a=x + 2), (), ["z", "a"]),
        (lambda x: {"z": x + 1, "cache": None}, (), ["z"]),
        (lambda x: {"z": x + 2, "a": x + 1, "extra": [x]}, ("a",), ["a"]),
    ],
)
def test_output_names(tmp_path, function, outputs, names):
    found = SOURCE.capture(Returns(function).eval(), {"x": np.zeros((1, 2), np.float32)}, tmp_path / "m.pt2", outputs=outputs)
    assert list(found) == names
    assert list(run_program(tmp_path / "m.pt2", x=np.zeros((1, 2), np.float32))) == names
    np.testing.assert_array_equal(found[names[0]], [[1, 1]])


@pytest.mark.parametrize(
    ("function", "outputs", "message"),
    [
        (lambda x: (x, x + 1), ("only",), "returns 2 outputs"),
        (lambda x: {"a": x, "cache": [x]}, (), "is a list, not a tensor"),
        (lambda x: x.sum(), (), "has shape"),
        (lambda x: {"a/b": x + 1}, (), "not a Python identifier"),
        (lambda x: (x, x), ("a", "a"), "repeat"),
        (lambda x: {"other": x + 1, "logits": x + 2}, ("logits", "aux"), "'logits' of the names .* another output"),
        (lambda x: x + torch.rand_like(x), (), "differs when the same sample runs twice"),
    ],
)
def test_unusable_outputs_are_refused(tmp_path, function, outputs, message):
    with pytest.raises(InputRejected, match=message):
        SOURCE.capture(Returns(function).eval(), {"x": np.zeros((2, 2), np.float32)}, tmp_path / "m.pt2", outputs=outputs)


def test_training_mode_is_refused_also_deep_inside(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(InputRejected, match="training mode") as caught:
        SOURCE.capture(model, {"x": np.zeros((1, 2), np.float32)}, tmp_path / "m.pt2")
    assert "model.eval()" in caught.value.hint
    assert model[1].training  # nothing was changed


@pytest.mark.parametrize("name", ["input.1", "class-a", "1x", ""])
def test_input_names_must_be_identifiers(tmp_path, name):
    with pytest.raises(InputRejected, match="not a Python identifier"):
        SOURCE.capture(Classifier().eval(), {name: IMAGES}, tmp_path / "m.pt2")


def test_data_dependent_control_flow_is_a_stage_failure_of_one_line(tmp_path):
    model = Returns(lambda x: x + 1 if x.sum() > 0 else x - 1).eval()
    with pytest.raises(StageFailed, match=r"torch\.export cannot capture") as caught:
        SOURCE.capture(model, {"x": np.zeros((1, 2), np.float32)}, tmp_path / "m.pt2")
    assert "\n" not in caught.value.message and len(caught.value.message) < 400
    assert not (tmp_path / "m.pt2").exists()


def test_an_error_in_forward_names_the_shapes(tmp_path):
    with pytest.raises(StageFailed, match="the model raised RuntimeError") as caught:
        SOURCE.capture(Classifier().eval(), {"image": np.zeros((1, 7), np.float32)}, tmp_path / "m.pt2")
    assert "image [1, 7] torch.float32" in caught.value.where


def test_the_samples_are_not_written_to(tmp_path):
    sample = np.zeros((2, 2), np.float32)
    SOURCE.capture(Returns(lambda x: x.add_(1)).eval(), {"x": sample}, tmp_path / "m.pt2")
    assert not sample.any()


def write_project(
    folder, body="import torch\ntorch.manual_seed(3)\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))\n"
):
    folder.mkdir(parents=True)
    (folder / "edge_net.py").write_text(body)
    data = dataset.Dataset({"image": IMAGES}, np.zeros(5, np.int64))
    data.write(folder / "data")
    return folder


def forget():
    sys.modules.pop("edge_net", None)


def make_job(project, out, weights=None, **options):
    forget()
    out.mkdir(parents=True)
    inputs = {"project": project, "data": project / "data"} | ({"weights": weights} if weights else {})
    return Job(inputs, {"factory": "edge_net:build", "outputs": ["logits"], **options}, out)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield write_project(tmp_path / "project")
    forget()


def test_stage_captures_with_weights(project, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    weight, bias = torch.arange(48.0).reshape(3, 16), torch.tensor([1.0, 2.0, 3.0])
    save_file({"1.weight": weight, "1.bias": bias}, tmp_path / "w.safetensors")
    facts = stage.run(make_job(project, tmp_path / "out", tmp_path / "w.safetensors", samples=4))
    found = np.load(tmp_path / "out" / "expected" / "outputs" / "logits.npy")
    np.testing.assert_allclose(found, IMAGES[:4].reshape(4, 16) @ weight.numpy().T + bias.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "expected" / "inputs" / "image.npy"), IMAGES[:4])
    assert not (tmp_path / "out" / "expected" / "inputs" / "label.npy").exists()
    signature = Signature.model_validate(facts["signature"])
    assert [str(spec) for spec in (*signature.inputs, *signature.outputs)] == ["image [1 x 1 x 4 x 4] float32", "logits [1 x 3] float32"]
    assert (facts["format"], facts["made_by"], facts["versions"]) == ("pt2", "torch", {"torch": torch.__version__.partition("+")[0]})


def test_stage_lists_every_mismatched_tensor(project, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"1.weight": torch.zeros(3, 15), "extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputRejected) as caught:
        stage.run(make_job(project, tmp_path / "out", tmp_path / "w.safetensors"))
    assert caught.value.message == (
        "3 tensors do not fit the model: 1.bias: not in the file, model [3] float32; extra: file [1] float32, not in the model; "
        "1.weight: file [3 x 15] float32, model [3 x 16] float32"
    )


def test_stage_refuses_weights_that_are_not_numbers(project, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"1.weight": torch.zeros(3, 16), "1.bias": torch.tensor([0, torch.nan, 0])}, tmp_path / "w.safetensors")
    with pytest.raises(InputRejected, match=r"1\.bias has NaN"):
        stage.run(make_job(project, tmp_path / "out", tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("result", "outputs", "first"),
    [
        ("{'scores': y, 'aux': -y}", [], "scores"),
        ("{'scores': y, 'aux': -y}", ["aux"], "aux"),
        ("{'scores': y, 'aux': -y}", ["aux", "scores"], "aux"),
        ("(y, -y)", ["z", "a"], "z"),
        ("(y, -y)", [], "output_0"),
    ],
)
def test_stage_says_which_output_is_the_first_in_the_sources_own_order(tmp_path, monkeypatch, result, outputs, first):
    monkeypatch.setattr(sys, "path", list(sys.path))
    forward = f"    def forward(self, image):\n        y = image.sum((1, 2))\n        return {result}\n"
    body = f"import torch\nclass Net(torch.nn.Module):\n{forward}build = Net\n"
    facts = stage.run(make_job(write_project(tmp_path / "project", body), tmp_path / "out", outputs=outputs))
    forget()
    assert facts["output"] == first


def test_stage_refuses_a_damaged_weights_file(project, tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(InputRejected, match="not a readable safetensors"):
        stage.run(make_job(project, tmp_path / "out", tmp_path / "w.safetensors"))


def test_weights_of_tied_layers_may_be_stored_once(tmp_path):
    save_model = pytest.importorskip("safetensors.torch").save_model

    def build():
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    saved = build()
    save_model(saved, str(tmp_path / "w.safetensors"))
    loaded = SOURCE.prepare(build(), tmp_path / "w.safetensors")
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert not loaded.training


def test_an_object_no_source_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    project = write_project(tmp_path / "project", "def build():\n    return {}\n")
    with pytest.raises(ConfigError, match=r"returned a builtins\.dict"):
        stage.run(make_job(project, tmp_path / "out"))


def test_the_same_project_in_another_folder_and_process_gives_the_same_bytes(project, tmp_path):
    other = write_project(tmp_path / "elsewhere" / "deep" / "project")
    job = make_job(project, tmp_path / "here")
    stage.run(job)
    script = (
        "import sys; from pathlib import Path; from toolkit.job import Job; from toolkit.sources import stage\n"
        "project, out = map(Path, sys.argv[1:]); out.mkdir()\n"
        "stage.run(Job({'project': project, 'data': project / 'data'}, {'factory': 'edge_net:build', 'outputs': ['logits']}, out))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(other), str(tmp_path / "there")], check=True, capture_output=True, env=None)
    one, two = (tmp_path / "here" / "model.pt2").read_bytes(), (tmp_path / "there" / "model.pt2").read_bytes()
    assert one == two
    with zipfile.ZipFile(tmp_path / "here" / "model.pt2") as archive:
        assert not [name for name in archive.namelist() if str(tmp_path).encode() in archive.read(name)]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("edge_net", ConfigError, "not of the form module:function"),
        ("edge net:build", ConfigError, "not of the form module:function"),
        ("missing_module:build", ConfigError, "no module 'missing_module'"),
        ("edge_net:missing", ConfigError, "no function 'missing'"),
    ],
)
def test_factory_names_what_is_missing(project, spec, error, message):
    with pytest.raises(error, match=message):
        factory.load_factory(project, spec)


@pytest.mark.parametrize(
    ("body", "line", "message"),
    [
        ("import no_such_dependency\ndef build(): pass\n", 1, "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("def build(:\n", 1, "SyntaxError"),
        ("def build():\n    helper()\ndef helper():\n    raise ValueError('first\\nsecond')\n", 4, "ValueError: first"),
        ("import json\ndef build():\n    return json.loads('x')\n", 3, "JSONDecodeError"),
    ],
)
def test_factory_errors_show_the_users_line(tmp_path, monkeypatch, body, line, message):
    monkeypatch.setattr(sys, "path", list(sys.path))
    project = write_project(tmp_path / "project", body)
    forget()
    with pytest.raises(StageFailed, match=message) as caught:
        factory.load_factory(project, "edge_net:build")()
    forget()
    assert caught.value.where == f"{(project / 'edge_net.py').resolve()}:{line}"
    assert "\n" not in caught.value.message


def file_job(folder, model, columns, **options):
    dataset.Dataset(columns, np.zeros(6, np.int64)).write(folder / "data")
    (folder / "out").mkdir()
    return Job({"model": model, "data": folder / "data"}, {"file": True, "format": None, "runtime": "onnxruntime", **options}, folder / "out")


def test_what_is_wrong_with_a_file_is_said_of_the_user_s_file(tmp_path):
    from toolkit import torchscripts

    with torchscripts.quiet():
        torch.jit.save(torch.jit.script(torch.nn.Linear(4, 2).train()), str(tmp_path / "mine.torchscript"))
    job = file_job(tmp_path, tmp_path / "mine.torchscript", {"input": np.zeros((6, 4), np.float32)}, runtime="torchscript")
    with pytest.raises(InputRejected, match="training mode") as caught:
        stage.run(job)
    assert caught.value.where == "mine.torchscript"


@pytest.mark.parametrize(
    ("dynamic", "words"), [({"x": {"5": "n"}}, "'x' has 2 axes, found axis 5"), ({"x": {"1": "n"}}, "axis 1 of 'x' is not free")]
)
def test_sizes_that_a_file_cannot_free(tmp_path, dynamic, words):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name)
    from tests import models

    with pytest.raises(ConfigError, match=words):
        stage.run(file_job(tmp_path, models.tiny_onnx(tmp_path / "user.onnx"), {"x": models.samples(6)}, dynamic=dynamic))


def test_stage_takes_a_file_as_it_is_and_records_what_it_computes(tmp_path):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name)
    from tests import models

    x = models.samples(6)
    path = models.tiny_onnx(tmp_path / "user.onnx", batch="n")
    facts = stage.run(file_job(tmp_path, path, {"x": x}, samples=5))
    assert (tmp_path / "out" / "model.onnx").read_bytes() == path.read_bytes()
    np.testing.assert_allclose(np.load(tmp_path / "out" / "expected" / "outputs" / "logits.npy"), models.reference(x[:5]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "expected" / "inputs" / "x.npy"), x[:5])
    signature = Signature.model_validate(facts["signature"])
    assert [str(spec) for spec in (*signature.inputs, *signature.outputs)] == ["x [1 x 4] float32", "logits [1 x 3] float32"]
    assert (facts["format"], facts["output"], facts["made_by"], list(facts["versions"])) == ("onnx", "logits", "file", ["onnxruntime"])


@pytest.mark.parametrize(
    ("columns", "message"), [({"y": np.zeros((6, 4), np.float32)}, "columns are"), ({"x": np.zeros((6, 5), np.float32)}, "samples of shape")]
)
def test_stage_refuses_samples_that_do_not_fit_the_file(tmp_path, columns, message):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name)
    from tests import models

    with pytest.raises(InputRejected, match=message):
        stage.run(file_job(tmp_path, models.tiny_onnx(tmp_path / "user.onnx"), columns))


@pytest.mark.parametrize("name", ["../escape", "a/b", "a\\b", ""])
def test_output_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(InputRejected, match="cannot be a file name"):
        stage._record(dataset.Dataset({"x": IMAGES}), {name: np.zeros((1, 1))}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.inf, -np.inf, 0])
def test_infinite_outputs_are_recorded_as_masks_have_them(tmp_path, value):
    stage._record(dataset.Dataset({"x": IMAGES}), {"mask": np.full((len(IMAGES), 2), value)}, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "expected" / "outputs" / "mask.npy"), np.full((len(IMAGES), 2), value))


def test_a_model_that_gives_nan_itself_is_refused_before_anything_is_converted(tmp_path):
    outputs = {"fine": np.zeros((3, 2), np.int64), "scores": np.array([[1.0, 2], [np.nan, 1], [3, 4]])}
    with pytest.raises(InputRejected, match="the model itself gives NaN: output 'scores', 1 of 3 samples, first sample 1"):
        stage._record(dataset.Dataset({"x": np.zeros((3, 1))}), outputs, tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_nan_are_named(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).eval()
    model[1].bias.data[0] = float("nan")
    with pytest.raises(InputRejected, match=r"weights hold NaN \(first: 1\.bias\)"):
        SOURCE.capture(model, {"x": np.zeros((1, 2), np.float32)}, tmp_path / "m.pt2")


def test_a_named_tuple_s_fields_are_the_outputs_names(tmp_path):
    pair = namedtuple("Pair", ["scores", "hidden"])
    x = np.zeros((1, 2), np.float32)
    assert list(SOURCE.capture(Returns(lambda x: pair(x + 1, x + 2)).eval(), {"x": x}, tmp_path / "m.pt2")) == ["scores", "hidden"]
    assert list(run_program(tmp_path / "m.pt2", x=x)) == ["scores", "hidden"]


def test_a_model_without_outputs_is_refused(tmp_path):
    with pytest.raises(InputRejected, match="no outputs"):
        stage._record(dataset.Dataset({"x": IMAGES}), {}, tmp_path)


def test_a_captured_program_carries_neither_the_users_sample_nor_paths(tmp_path):
    sample = np.full((1, 2), 1234.5, np.float32)
    SOURCE.capture(Returns(lambda x: x + 1).eval(), {"x": sample}, tmp_path / "m.pt2")
    content = (tmp_path / "m.pt2").read_bytes()
    assert sample.tobytes() not in content and b"test_sources_torch.py" not in content


class State(torch.nn.Module):
    """Counts its calls, in a buffer."""

    def __init__(self, *, used=False, replaced=False):
        super().__init__()
        self.used, self.replaced = used, replaced
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.replaced:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        return x + self.calls if self.used else x * 2


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_model_that_counts_its_calls_is_refused_by_the_buffers_name(tmp_path, used, replaced):
    with pytest.raises(InputRejected, match="changes its buffer 'calls'"):
        SOURCE.capture(State(used=used, replaced=replaced).eval(), {"x": np.ones((2, 3), np.float32)}, tmp_path / "m.pt2")


def test_a_cache_that_is_filled_once_is_no_state(tmp_path):
    class Cached(torch.nn.Module):
        def forward(self, x):
            if not hasattr(self, "table"):
                self.register_buffer("table", torch.arange(3.0), persistent=False)
            return x + self.table

    found = SOURCE.capture(Cached().eval(), {"x": np.ones((2, 3), np.float32)}, tmp_path / "m.pt2")
    np.testing.assert_array_equal(found["output_0"], [[1, 2, 3], [1, 2, 3]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_than_float32_are_refused_by_name(tmp_path, dtype):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).to(dtype)).eval()
    words = rf"weights are {str(dtype).removeprefix('torch.')}, not float32 \(first: 1\.weight; 2 in all\)"
    with pytest.raises(InputRejected, match=words) as caught:
        SOURCE.capture(model, {"x": np.zeros((1, 2), np.float32)}, tmp_path / "m.pt2")
    assert "model.float()" in caught.value.hint
    assert model[1].weight.dtype == dtype  # nothing was changed


def test_tied_weights_are_noted():
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(5, 4), "head": torch.nn.Linear(4, 5, bias=False)})
    assert SOURCE.notes(model) == ()
    model["head"].weight = model["embedding"].weight
    assert SOURCE.notes(model) == ("the weights embedding.weight and head.weight are one tensor",)


def test_layers_in_two_places_are_noted_once():
    block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    model = torch.nn.ModuleDict({"a": block, "b": block, "c": torch.nn.Linear(4, 4)})
    assert SOURCE.notes(model) == ("the layers a and b are one and the same",)
    model["c"].weight = block[0].weight
    assert SOURCE.notes(model)[1:] == ("the weights a.0.weight and c.weight are one tensor",)
    relu = torch.nn.ReLU()  # without weights nothing is held twice
    assert SOURCE.notes(torch.nn.Sequential(relu, relu)) == ()


def test_inputs_are_called_like_forwards_parameters():
    class Two(torch.nn.Module):
        def forward(self, left, right, *, scale=1.0):
            return left + right * scale

    assert SOURCE.input_names(Two()) == ("left", "right")


def onnx_outputs(folder, model, x, expected):
    """Runs the captured model as ONNX, in ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    from toolkit import plugins

    specs = {name: TensorSpec(name=name, dtype="float32", shape=(1, *column.shape[1:])) for name, column in ({"x": x} | expected).items()}
    signature = Signature(inputs=(specs["x"],), outputs=tuple(specs[name] for name in expected))
    plugins.get("routes", "torch_onnx").convert(folder / "m.pt2", folder / "m.onnx", signature)
    return plugins.get("runtimes", "onnxruntime").open(folder / "m.onnx", threads=1).run({"x": x[:1].copy()})


@pytest.mark.parametrize(
    "function",
    [
        lambda x: {"same": x, "more": x + 1},
        lambda x: (lambda y: {"first": y, "again": y})(x * 2),
        lambda x: {"view": x.view(1, 4, 1), "more": x + 1},
        lambda x: {"written": x.add_(1) * 2, "again": x * 3},
    ],
    ids=["output is input", "output twice", "view of the input", "input written to"],
)
def test_outputs_and_inputs_that_share_memory_keep_their_names_and_values(tmp_path, function):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    before = x.copy()
    expected = SOURCE.capture(Returns(function).eval(), {"x": x}, tmp_path / "m.pt2")
    for row in range(3):
        live = function(torch.from_numpy(before[row : row + 1].copy()))
        for name, value in live.items():
            np.testing.assert_array_equal(expected[name][row], value.numpy()[0])
    np.testing.assert_array_equal(x, before)
    for name, value in onnx_outputs(tmp_path, Returns(function), x, expected).items():
        np.testing.assert_allclose(value, expected[name][:1], rtol=1e-6)
