"""PyTorch to TFLite: layouts, batch sizes, transposed convolutions, and refusals that name the user's layer."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("litert_torch")

from toolkit import pt2  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.convert import torch_programs, torch_transposed  # noqa: E402
from toolkit.convert.torch_litert import ROUTE  # noqa: E402
from toolkit.errors import ConfigError, StageFailed  # noqa: E402
from toolkit.sources.torch import SOURCE  # noqa: E402


class Net(torch.nn.Module):
    """A small classifier of pictures; with ``fixed`` it writes its batch size into the program."""

    def __init__(self, fixed=False):
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.head = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(4 * 36, 5)
        self.fixed = fixed

    def forward(self, picture, bias):
        seen = torch.relu(self.convolution(picture))
        return {"logits": self.head(seen.reshape(1, -1) if self.fixed else seen.flatten(1)) + bias}


class One(torch.nn.Module):
    """One layer, one input ``x``, one output ``y``."""

    def __init__(self, layer):
        super().__init__()
        self.step = layer

    def forward(self, x):
        return {"y": self.step(x)}


class Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def capture(folder, model, **inputs):
    expected = SOURCE.capture(model.eval(), inputs, folder / "model.pt2")
    return folder / "model.pt2", Signature(inputs=specs(inputs), outputs=specs(expected)), expected


def interpreter(path):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path))


PICTURES = np.random.default_rng(1).normal(size=(4, 3, 6, 6)).astype(np.float32)
BIAS = np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32)


def test_channels_last_is_the_files_own_signature_and_leaves_no_transpose_before_the_first_layer(tmp_path):
    program, signature, expected = capture(tmp_path, Net(), picture=PICTURES, bias=BIAS)
    ROUTE.convert(program, tmp_path / "model.tflite", signature, layout="channels_last")
    session = interpreter(tmp_path / "model.tflite")
    runner = session.get_signature_runner("serving_default")
    assert {name: list(one["shape"]) for name, one in runner.get_input_details().items()} == {"picture": [1, 6, 6, 3], "bias": [1, 5]}
    assert next(one["op_name"] for one in session._get_ops_details()) != "TRANSPOSE"
    for row in range(4):
        found = runner(picture=PICTURES[row : row + 1].transpose(0, 2, 3, 1), bias=BIAS[row : row + 1])
        np.testing.assert_allclose(found["logits"], expected["logits"][row : row + 1], atol=1e-5)


def test_a_layout_that_the_first_layer_undoes_is_refused(tmp_path):
    program, signature, _ = capture(tmp_path, One(Call(lambda x: x.flatten(1).cumsum(1))), x=PICTURES)
    with pytest.raises(StageFailed, match="input 'x' would be transposed back first"):
        ROUTE.convert(program, tmp_path / "model.tflite", signature, layout="channels_last")


def test_a_layout_without_a_picture_is_refused(tmp_path):
    program, signature, _ = capture(tmp_path, One(Call(lambda x: x * 2)), x=BIAS)
    with pytest.raises(ConfigError, match="no input has four axes"):
        ROUTE.convert(program, tmp_path / "model.tflite", signature, layout="channels_last")


def test_several_batch_sizes_are_signatures_of_one_file_that_share_the_weights(tmp_path):
    program, signature, expected = capture(tmp_path, Net(), picture=PICTURES, bias=BIAS)
    ROUTE.convert(program, tmp_path / "one.tflite", signature)
    ROUTE.convert(program, tmp_path / "two.tflite", signature, batch_sizes=(1, 4))
    session = interpreter(tmp_path / "two.tflite")
    assert sorted(session.get_signature_list()) == ["batch_4", "serving_default"]
    np.testing.assert_allclose(session.get_signature_runner("batch_4")(picture=PICTURES, bias=BIAS)["logits"], expected["logits"], atol=1e-5)
    first = session.get_signature_runner("serving_default")(picture=PICTURES[:1], bias=BIAS[:1])
    np.testing.assert_allclose(first["logits"], expected["logits"][:1], atol=1e-5)
    weights = sum(value.nbytes for value in Net().state_dict().values() for value in [value.numpy()])
    assert (tmp_path / "two.tflite").stat().st_size < (tmp_path / "one.tflite").stat().st_size + weights


def test_a_batch_size_that_is_written_into_the_program_is_said(tmp_path):
    program, signature, _ = capture(tmp_path, Net(fixed=True), picture=PICTURES, bias=BIAS)
    with pytest.raises(StageFailed, match="does not work for a batch of 4"):
        ROUTE.convert(program, tmp_path / "model.tflite", signature, batch_sizes=(1, 4))


TRANSPOSED = [
    ({"kernel_size": 3, "stride": 2, "padding": 1}, 2),
    ({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, 2),
    ({"kernel_size": 4, "stride": 2, "padding": 1}, 2),
    ({"kernel_size": (3, 5), "stride": (2, 3), "padding": (0, 1), "output_padding": (1, 2), "groups": 2, "dilation": (1, 2), "bias": False}, 2),
    ({"kernel_size": 2, "stride": 3, "padding": 0, "output_padding": 2, "groups": 4}, 2),
    ({"kernel_size": 5, "stride": 3, "padding": 1, "output_padding": 2, "groups": 2}, 1),
    ({"kernel_size": 3, "padding": 3, "dilation": 3}, 1),
]


@pytest.mark.parametrize(("arguments", "axes"), TRANSPOSED)
def test_transposed_convolutions_are_taken_apart_exactly(arguments, axes):
    torch.manual_seed(0)
    layer = (torch.nn.ConvTranspose1d if axes == 1 else torch.nn.ConvTranspose2d)(4, 8, **arguments).double()
    x = torch.randn(2, 4, *(7, 9)[:axes], dtype=torch.double)
    with torch.no_grad():
        found = torch_transposed.convolve(
            x, layer.weight, layer.bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
        torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("arguments", "axes"), [TRANSPOSED[0], TRANSPOSED[3], TRANSPOSED[5]])
def test_transposed_convolutions_run_as_pytorch_computes_them(tmp_path, arguments, axes):
    torch.manual_seed(0)
    layer = (torch.nn.ConvTranspose1d if axes == 1 else torch.nn.ConvTranspose2d)(4, 8, **arguments)
    x = np.random.default_rng(0).normal(size=(2, 4, *(7, 9)[:axes])).astype(np.float32)
    program, signature, expected = capture(tmp_path, One(layer), x=x)
    ROUTE.convert(program, tmp_path / "model.tflite", signature)
    found = interpreter(tmp_path / "model.tflite").get_signature_runner()(x=x[:1])["y"]
    np.testing.assert_allclose(found, expected["y"][:1], atol=1e-5)


def test_preflight_names_operator_and_layer_and_passes_what_converts(tmp_path):
    layers = torch.nn.Sequential(torch.nn.GELU(), Call(torch.special.bessel_j0), Call(lambda x: x.view(1, -1)))
    program, signature, _ = capture(tmp_path, One(layers), x=PICTURES)
    graph = str(pt2.load(program, keep=True).graph)
    (found,) = ROUTE.preflight(program, signature)
    assert str(pt2.load(program, keep=True).graph) == graph  # the conversion that follows gets this very program
    assert (found.operator, found.layer, found.reason) == ("aten.special_bessel_j0.default", "step.1", "has no TFLite kernel")
    assert found.hint
    program, signature, _ = capture(tmp_path, Net(), picture=PICTURES, bias=BIAS)
    assert ROUTE.preflight(program, signature) == []


@pytest.mark.parametrize("layer", [Call(lambda x: torch.sort(x.flatten(1)).values), torch.nn.ConvTranspose3d(3, 2, 2, stride=2)])
def test_what_the_converter_leaves_in_the_file_is_refused_with_the_layer(tmp_path, layer):
    x = PICTURES if isinstance(layer, Call) else PICTURES[:, :, None]
    program, signature, _ = capture(tmp_path, One(layer), x=x)
    assert [one.layer for one in ROUTE.preflight(program, signature)] == ["step"]
    with pytest.raises(StageFailed, match=r"\(layer step\) has no TFLite kernel") as caught:
        ROUTE.convert(program, tmp_path / "model.tflite", signature)
    assert "\n" not in caught.value.message and caught.value.hint


class Fits(torch.nn.Module):
    """What only a training mode does; captured by hand, as the source refuses it."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5)
        self.instance = torch.nn.InstanceNorm2d(3)  # keeps no statistics: it works like this in inference, too

    def forward(self, *, x):
        return {"y": self.drop(self.norm(self.instance(x)))}


def test_a_program_in_training_mode_is_refused_by_layer(tmp_path):
    x = torch.from_numpy(PICTURES[:1])
    signature = Signature(inputs=specs({"x": PICTURES}), outputs=specs({"y": PICTURES}))
    training = torch.export.export(Fits().train(), (), kwargs={"x": x})
    torch.export.save(training, tmp_path / "model.pt2")
    assert [one.layer for one in torch_programs.training_obstacles(training)] == ["norm", "drop"]
    with pytest.raises(StageFailed, match=r"captured in training mode: .* of layer norm works as in training"):
        ROUTE.convert(tmp_path / "model.pt2", tmp_path / "model.tflite", signature)
    assert torch_programs.training_obstacles(torch.export.export(Fits().eval(), (), kwargs={"x": x})) == []
