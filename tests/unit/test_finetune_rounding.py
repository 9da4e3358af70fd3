"""Quantization-aware training: the rounding against NumPy, and against what ONNX Runtime's int8 file computes."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from toolkit.dataset import Dataset
from toolkit.errors import StageFailed
from toolkit.finetuning.calling import Caller
from toolkit.finetuning.loop import Trainer
from toolkit.finetuning.rounding import Rounding, round_weight
from toolkit.training import Finetune

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


def steps(x, low=None, high=None):
    """Rounds to 256 steps of a range that includes zero, in float64."""
    low, high = min(0.0, x.min() if low is None else low), max(0.0, x.max() if high is None else high)
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale


def symmetric(weight, axis=0):
    """Rounds each channel to -127..127 steps, in float64."""
    scale = np.abs(weight).max(axis=tuple(one for one in range(weight.ndim) if one != axis), keepdims=True) / 127
    return np.round(weight / scale) * scale


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def tensor(x):
    return torch.from_numpy(x.astype(np.float32))


def rounded(model, *inputs, learning=True):
    rounding = Rounding(model.eval())
    with torch.no_grad(), rounding.active(learning=learning):
        return model(*map(tensor, inputs)).numpy()


def close(found, expected, output_range):
    """Equal but for a value that two arithmetics put on two sides of a step's middle."""
    difference = np.abs(found - expected)
    assert difference.max() <= 1.01 * output_range / 255
    assert (difference > 1e-4).mean() < 0.01


def test_a_linear_layer_is_that_of_rounded_numbers():
    model, x = nn.Linear(12, 7), normal(40, 12) * 3 + 1
    weight, bias = model.weight.detach().numpy().astype(np.float64), model.bias.detach().numpy()
    plain = steps(x) @ symmetric(weight).T + bias
    close(rounded(model, x), steps(plain), np.ptp(plain))


def test_a_convolution_is_that_of_rounded_numbers_and_relu_is_part_of_it():
    model, x = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.ReLU()), normal(6, 3, 9, 9)
    weight, bias = symmetric(model[0].weight.detach().numpy().astype(np.float64)), model[0].bias.detach().numpy()
    patches = np.lib.stride_tricks.sliding_window_view(steps(x), (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    plain = np.maximum(np.einsum("nchwij,ocij->nohw", patches, weight) + bias[:, None, None], 0)
    close(rounded(model, x), steps(plain), np.ptp(plain))


def test_weights_have_a_scale_for_each_output_channel_whichever_axis_that_is():
    weight = normal(4, 6, 3) * np.array([1, 10, 100, 0.1])[:, None, None]
    np.testing.assert_allclose(round_weight(tensor(weight), 0), symmetric(tensor(weight).double().numpy()), atol=1e-6 * np.abs(weight).max())
    halves = [symmetric(part, axis=1) for part in np.split(tensor(weight).double().numpy(), 2)]
    np.testing.assert_allclose(round_weight(tensor(weight), 1, groups=2), np.concatenate(halves), atol=1e-6 * np.abs(weight).max())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_batch_norm_needs_no_folding(sign):
    norm, conv = nn.BatchNorm2d(8), nn.Conv2d(3, 8, 3, bias=False)
    with torch.no_grad():
        norm.weight.copy_(sign * tensor(np.linspace(0.01, 30, 8)))
        norm.running_mean.copy_(tensor(normal(8)))
        norm.running_var.copy_(tensor(np.linspace(0.1, 9, 8)))
    model = nn.Sequential(conv, norm).eval()
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(copy.deepcopy(conv), norm)
    x = normal(4, 3, 7, 7)
    one, other = rounded(model, x), rounded(folded, x)
    assert np.abs(one - other).max() <= 1.01 * np.ptp(one) / 255
    assert np.abs(one - other).mean() < 1e-4 * np.ptp(one)


def test_ranges_are_the_mean_of_a_hundred_batches_and_then_a_moving_average():
    model, generator = nn.Identity(), np.random.default_rng(3)
    rounding = Rounding(model)
    low = high = 0.0
    for number in range(1, 131):
        x = generator.normal(0.3, number, 50).astype(np.float32)
        share = max(1 / number, 0.01)
        low, high = low + share * (min(x.min(), 0) - low), high + share * (max(x.max(), 0) - high)
        with rounding.active(learning=True):
            found = model(torch.from_numpy(x)).numpy()
        if number in (1, 100, 130):
            close(found, steps(x.astype(np.float64), low, high), high - low)
    (one,) = rounding.state_dict()["ranges"]
    assert (float(one["low"]), float(one["high"])) == pytest.approx((low, high), rel=1e-4)


def test_ranges_stand_still_where_nothing_is_to_be_learned():
    model = nn.Identity()
    rounding = Rounding(model)
    with rounding.active(learning=True):
        model(torch.tensor([-1.0, 2.0]))
    with rounding.active(learning=False):
        found = model(torch.tensor([-9.0, 0.5, 9.0]))
    np.testing.assert_allclose(found, [-1.0, 0.5, 2.0], atol=1.01 * 1.5 / 255)
    assert float(rounding.state_dict()["ranges"][0]["high"]) == 2.0


def test_gradients_pass_inside_the_range_and_end_outside():
    model = nn.Linear(3, 2)
    rounding = Rounding(model)
    with rounding.active(learning=True):
        model(torch.tensor([[-1.0, 0.0, 1.0], [9.0, -9.0, 9.0], [-9.0, 9.0, -9.0]]))
    rounding.load_state_dict(
        {
            "ranges": [
                {**rounding.state_dict()["ranges"][0], "low": -tensor(np.ones(())), "high": tensor(np.ones(()))},
                rounding.state_dict()["ranges"][1],
            ]
        }
    )
    x = torch.tensor([[-0.5, 5.0, 0.1]], requires_grad=True)
    with rounding.active(learning=False):
        model(x).sum().backward()
    inside, reads = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[-0.5, 1.0, 0.1]])
    torch.testing.assert_close(x.grad, round_weight(model.weight.detach(), 0).sum(dim=0) * inside)
    torch.testing.assert_close(model.weight.grad, reads.expand(2, 3), atol=1.01 / 255, rtol=0)


def test_what_was_all_zero_so_far_can_still_learn():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with Rounding(model).active(learning=True):
        answers = model(torch.ones(1, 2))
    answers.sum().backward()
    torch.testing.assert_close(model.bias.grad, torch.ones(2))


class Residual(nn.Module):
    """Additions in place and not, pooling, hard-swish and a fork."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True))
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 8, 1))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 4)

    def forward(self, image):
        hidden = self.first(image)
        deep = self.deep(hidden)
        deep += hidden
        return self.head(self.pool(torch.relu(deep)).mean(dim=(2, 3)))


def activation_scales(path):
    """The scales of an int8 file's activations in their order, without that of hard-swish's inner gate, which only ONNX rounds."""
    import onnx

    graph = onnx.load(path).graph
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    names = dict.fromkeys(node.input[1] for node in graph.node if node.op_type == "QuantizeLinear" and "HardSwish_HS" not in node.input[1])
    return [float(stored[name]) for name in names]


def test_onnx_runtime_computes_the_same_from_its_int8_file(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from toolkit.quantization.onnxruntime import QUANTIZER

    torch.manual_seed(1)
    model, x = Residual().eval(), normal(32, 3, 8, 8).astype(np.float32)
    torch.onnx.export(model, (torch.from_numpy(x[:1]),), tmp_path / "m.onnx", input_names=["image"], dynamo=False)
    QUANTIZER.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", scheme="static_wi8_ai8", calibration=Dataset({"image": x}), options={})
    session = runtime.InferenceSession(str(tmp_path / "q.onnx"))
    theirs = np.concatenate([session.run(None, {"image": x[row : row + 1]})[0] for row in range(len(x))])
    rounding = Rounding(model)
    with torch.no_grad(), rounding.active(learning=True):
        ours = model(torch.from_numpy(x)).numpy()
    ranges = rounding.state_dict()["ranges"]
    scales = [float(one["high"] - one["low"]) / 255 for one in ranges]
    assert [one["call"].partition(" ")[2] for one in ranges] == [
        "conv2d, input",
        "hardswish, input",
        *["conv2d, input"] * 2,
        "add_, input",
        "mean, input",
        "linear, input",
        "output",
    ]
    np.testing.assert_allclose(scales, activation_scales(tmp_path / "q.onnx"), rtol=0.02)
    assert np.abs(ours - theirs).max() <= 2.01 * scales[-1]
    assert np.sqrt(np.mean((ours - theirs) ** 2)) <= scales[-1]


def test_the_model_is_as_it_was_and_in_place_additions_reach_their_tensor():
    model, x = Residual().eval(), tensor(normal(2, 3, 8, 8))
    before, plain = copy.deepcopy(model.state_dict()), model(x)
    rounding = Rounding(model)
    with torch.no_grad(), rounding.active(learning=True):
        model(x)
        total = torch.zeros(3)
        total.add_(torch.ones(3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model(x), plain)
    assert total.tolist() == [1.0, 1.0, 1.0]


def test_a_mask_is_not_rounded_whenever_it_appears():
    class Masked(nn.Module):
        def forward(self, x, mask):
            return (x + mask).softmax(dim=-1)

    model, x = Masked(), normal(50, 2)
    rounding = Rounding(model)
    for mask, share in ((np.zeros(2), None), (np.array([0.0, -np.inf]), [1.0, 0.0]), (np.array([-1e4, 0.0]), [0.0, 1.0])):
        with torch.no_grad(), rounding.active(learning=True):
            found = model(tensor(x), tensor(mask)).numpy()
        if share is not None:
            np.testing.assert_allclose(found, np.tile(share, (50, 1)), atol=0.05)  # as far as the range has not yet moved to 1


@pytest.mark.parametrize("extra", [1, -1])
def test_another_order_of_calls_is_refused(extra):
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.calls = nn.Linear(2, 2), 2

        def forward(self, x):
            for _ in range(self.calls):
                x = self.layers(x)
            return x

    model = Moody()
    rounding = Rounding(model)
    with rounding.active(learning=True):
        model(torch.ones(1, 2))
    model.calls += extra
    with pytest.raises(StageFailed, match="another order") as caught, rounding.active(learning=True):
        model(torch.ones(1, 2))
    assert "another strategy" in caught.value.hint


def test_another_function_in_the_same_place_is_refused():
    class Moody(nn.Module):
        gate = staticmethod(torch.sigmoid)

        def forward(self, x):
            return self.gate(x)

    model = Moody()
    rounding = Rounding(model)
    with rounding.active(learning=True):
        model(torch.ones(2))
    model.gate = torch.tanh
    with pytest.raises(StageFailed, match="expected '0: sigmoid, input', found '0: tanh, input'"), rounding.active(learning=True):
        model(torch.ones(2))


def test_a_pass_that_ends_early_is_refused():
    model = nn.Identity()
    rounding = Rounding(model)
    with rounding.active(learning=True):
        model(torch.ones(2))
    with pytest.raises(StageFailed, match="expected '0: output', found 'the end'"), rounding.active(learning=True):
        model(torch.ones(2, dtype=torch.int64))


def test_ranges_survive_a_checkpoint(tmp_path):
    model, x = Residual(), tensor(normal(4, 3, 8, 8))
    one, other = Rounding(model.eval()), Rounding(model)
    twice, thrice = 2 * x, 3 * x
    for batch in (x, thrice):
        with torch.no_grad(), one.active(learning=True):
            model(batch)
    torch.save(one.state_dict(), tmp_path / "r.pt")
    other.load_state_dict(torch.load(tmp_path / "r.pt", weights_only=True))
    for rounding in (one, other):
        with torch.no_grad(), rounding.active(learning=True):
            model(twice)
    with torch.no_grad(), one.active(learning=False):
        expected = model(x)
    with torch.no_grad(), other.active(learning=False):
        assert torch.equal(model(x), expected)


def test_training_learns_what_rounding_took():
    """The weights that matter round to nothing beside one that is three hundred times as large, whose input rounds to nothing."""
    generator = np.random.default_rng(0)
    label = np.arange(200) % 2
    x = np.stack([generator.normal(2.0 * label - 1, 0.3), generator.normal(0, 1e-3, 200)], axis=1).astype(np.float32)
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.1, 30.0], [0.1, -30.0]]))
        model.bias.zero_()
    data, rows = Dataset({"input": x}, label), np.arange(200)
    settings = Finetune(strategy="qat", epochs=20, batch_size=20, learning_rate=0.05, weight_decay=0)
    assert np.abs(rounded(model, x)).max() == 0
    trainer = Trainer(Caller(model, ["input"], "cpu"), settings, rounding=Rounding(model))
    history = trainer.run(data, rows, rows, seed=0)
    assert history[-1].validation_accuracy >= 0.98
    assert trainer.evaluate(data, rows)[1] >= 0.98
