"""Declared rewrites: each against PyTorch's own computation, what it leaves alone, and the routes that it opens."""

from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.convert import stage, torch_elementary, torch_masks, torch_rewrites  # noqa: E402
from toolkit.errors import ConfigError, StageFailed, UnsupportedOperators  # noqa: E402
from toolkit.job import Job  # noqa: E402
from toolkit.sources.torch import SOURCE  # noqa: E402

HIDDEN = torch.zeros(6, 6, dtype=torch.bool)
HIDDEN[2] = True
LATER = torch.ones(6, 6).triu(1).bool()
WINDOW = torch.hann_window(12).clone()  # PyTorch gives a part of a larger one, and warns when a program with such is saved


class Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Net(torch.nn.Module):
    """One layer called ``gate``, one input ``x``, one output ``y``."""

    def __init__(self, function):
        super().__init__()
        self.gate = Call(function)

    def forward(self, x):
        return {"y": self.gate(x)}


class Many(torch.nn.Module):
    """Layers ``gates.0`` and so on, each with an input and an output of its own."""

    def __init__(self, functions):
        super().__init__()
        self.gates = torch.nn.ModuleList([Call(function) for function in functions])

    def forward(self, *inputs):
        return tuple(gate(x) for gate, x in zip(self.gates, inputs, strict=True))


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rewritten(name, function, x):
    """Returns the live output, that of the rewritten program, and the places."""
    program = torch.export.export(Net(function).eval(), (), {"x": x})
    changed, places = torch_rewrites.apply(program, [name])
    return Net(function)(x)["y"], changed.module()(x=x)["y"], places[name]


def attend(x, **options):
    return functional.scaled_dot_product_attention(x, x, x, **options)


EXACT = [
    ("hard-swish", "hardswish", functional.hardswish, (2, 40)),
    ("hard-swish", "hardswish", lambda x: functional.hardswish(x + 0, inplace=True), (2, 40)),
    ("hard-swish", "hardsigmoid", functional.hardsigmoid, (2, 40)),
    ("sort-ranks", "topk", lambda x: torch.topk(x, 3)[0], (2, 20)),
    ("sort-ranks", "topk", lambda x: torch.topk(x, 3, dim=1, largest=False)[1], (2, 20, 3)),
    ("sort-ranks", "sort", lambda x: torch.sort(x.round(), dim=1, descending=True, stable=True)[1], (2, 9, 5)),
    ("sort-ranks", "sort", lambda x: torch.sort(x, 1, True)[0], (2, 9, 5)),
    ("sort-ranks", "argsort", lambda x: torch.argsort(x, 1), (2, 9, 5)),
    ("sort-ranks", "argsort", lambda x: torch.argsort(x.round(), dim=1, stable=True), (2, 9, 5)),
    ("sort-ranks", "kthvalue", lambda x: torch.kthvalue(x, 3, 1, True)[0], (2, 9, 5)),
    ("sort-ranks", "median", lambda x: torch.median(x, 1)[0], (2, 8, 5)),
    ("sort-ranks", "topk", lambda x: torch.topk((x * 5).int(), 3)[0], (2, 20)),
    ("resize-matmul", "upsample_bicubic2d", lambda x: functional.interpolate(x, (13, 11), mode="bicubic"), (2, 3, 8, 7)),
    ("resize-matmul", "upsample_bicubic2d", lambda x: functional.interpolate(x, (13, 11), mode="bicubic", align_corners=True), (2, 3, 8, 7)),
    ("resize-matmul", "upsample_bicubic2d", lambda x: functional.interpolate(x, scale_factor=(1.7, 2.3), mode="bicubic"), (2, 3, 8, 7)),
    ("resize-matmul", "_upsample_bilinear2d_aa", lambda x: functional.interpolate(x, (5, 9), mode="bilinear", antialias=True), (2, 3, 8, 7)),
    ("resize-matmul", "_upsample_bicubic2d_aa", lambda x: functional.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True), (2, 3, 8, 7)),
    ("resize-matmul", "upsample_nearest2d", lambda x: functional.interpolate(x, (13, 11)), (2, 3, 8, 7)),
    ("resize-matmul", "upsample_nearest2d", lambda x: functional.interpolate(x, scale_factor=1.7), (2, 3, 8, 7)),
    ("resize-matmul", "_upsample_nearest_exact2d", lambda x: functional.interpolate(x, (13, 11), mode="nearest-exact"), (2, 3, 8, 7)),
    ("max-pool-windows", "adaptive_max_pool2d", lambda x: functional.adaptive_max_pool2d(x, (3, 5)), (2, 3, 8, 7)),
    ("max-pool-windows", "adaptive_max_pool2d", lambda x: functional.adaptive_max_pool2d(x, (3, 5), return_indices=True)[1], (2, 3, 8, 7)),
    ("finite-masks", "masked_fill", lambda x: torch.softmax(x.masked_fill(LATER, float("-inf")), -1), (2, 3, 6, 6)),
    ("finite-masks", "mul", lambda x: torch.softmax(x + (1 - (x > -1).float()) * torch.finfo(torch.float32).min, -1), (2, 3, 6, 6)),
    ("finite-masks", "scaled_dot_product_attention", lambda x: attend(x, attn_mask=~LATER), (2, 3, 6, 4)),
    ("finite-masks", "scaled_dot_product_attention", lambda x: attend(x, is_causal=True), (2, 3, 6, 4)),
    ("finite-masks", "full", lambda x: attend(x, attn_mask=torch.full((6, 6), float("-inf")).triu(1)), (2, 3, 6, 4)),
    ("dft-matmul", "fft_rfft", lambda x: torch.fft.rfft(x).abs(), (2, 16)),
    ("dft-matmul", "fft_rfft", lambda x: torch.fft.rfft(x, dim=1, norm="ortho").imag, (2, 15, 4)),
    ("dft-matmul", "fft_rfft", lambda x: torch.fft.rfft(x, norm="forward")[..., 1:-1].angle(), (2, 16)),
    ("dft-matmul", "stft", lambda x: torch.stft(x, 16, 4, 12, window=WINDOW, return_complex=True, normalized=True).abs(), (2, 64)),
    ("dft-matmul", "stft", lambda x: torch.view_as_real(torch.stft(x, 12, window=WINDOW, center=False, return_complex=True)), (2, 64)),
]


@pytest.mark.parametrize("name", dict.fromkeys(case[0] for case in EXACT))
def test_a_rewrite_computes_what_pytorch_computes_without_the_operator_and_says_where(name):
    """All cases of a rewrite in one program, as its capture takes most of the time."""
    cases = [case[1:] for case in EXACT if case[0] == name]
    inputs = tuple(sample(*shape) for _, _, shape in cases)
    model = Many([function for _, function, _ in cases]).eval()
    program = torch.export.export(model, inputs)
    before = str(program.graph)
    changed, places = torch_rewrites.apply(program, [name])
    assert str(program.graph) == before, "the given program was changed"
    assert sorted(places[name]) == [f"gates.{index}/{operator}" for index, (operator, _, _) in enumerate(cases)]
    if name != "finite-masks":
        assert not {operator for operator, _, _ in cases} & {
            str(node.target).split(".")[1] for node in changed.graph.nodes if "aten." in str(node.target)
        }
    for found, expected in zip(changed.module()(*inputs), model(*inputs), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_tanh_gelu_is_pytorchs_and_as_far_from_the_exact_one_as_documented():
    x = torch.linspace(-8, 8, 100_001)
    exact, found, places = rewritten("gelu-tanh", functional.gelu, x)
    assert places == ["gate/gelu"]
    torch.testing.assert_close(found, functional.gelu(x, approximate="tanh"))
    assert 4.7e-4 < (found - exact).abs().max() < 4.8e-4


@pytest.mark.parametrize(
    ("name", "function", "shape"),
    [
        ("gelu-tanh", lambda x: functional.gelu(x, approximate="tanh"), (2, 4)),
        ("hard-swish", functional.silu, (2, 4)),
        ("sort-ranks", lambda x: torch.topk(x, 3)[0], (1, torch_elementary.LONGEST + 1)),
        ("sort-ranks", lambda x: x.median() + x, (2, 4)),
        ("resize-matmul", lambda x: functional.interpolate(x, scale_factor=2), (1, 3, 4, 4)),
        ("finite-masks", lambda x: x.masked_fill(x > 0, float("-inf")), (2, 4)),
        ("finite-masks", lambda x: torch.softmax(x - 30000, -1), (2, 4)),
        ("dft-matmul", lambda x: torch.fft.fft(x).real, (2, 16)),
    ],
)
def test_what_is_no_case_for_a_rewrite_stays_and_no_place_is_named(name, function, shape):
    expected, found, places = rewritten(name, function, sample(*shape))
    assert places == []
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_masks_are_numbers_that_float16_holds_and_a_row_without_a_score_is_no_nan():
    x = sample(1, 6, 6)
    expected, found, _ = rewritten("finite-masks", lambda x: torch.softmax(x.masked_fill(HIDDEN, float("-inf")), -1), x)
    assert expected[:, 2].isnan().all() and not found.isnan().any()
    torch.testing.assert_close(found[:, 2], torch.full((1, 6), 1 / 6))
    assert torch.tensor(torch_masks.LOWEST, dtype=torch.float16).item() == torch_masks.LOWEST
    assert np.isfinite((torch.tensor(torch_masks.LOWEST) + x.min() - 30_000).half().item())


def test_a_stored_mask_is_replaced_in_the_new_program_alone():
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))

        def forward(self, x):
            return torch.softmax(x + self.mask, -1)

    program = torch.export.export(Masked().eval(), (), {"x": sample(2, 6, 6)})
    changed, places = torch_rewrites.apply(program, ["finite-masks"])
    assert places == {"finite-masks": ["b_mask"]}
    assert changed.state_dict["mask"].min() == torch_masks.LOWEST and program.state_dict["mask"].min() == float("-inf")
    torch.testing.assert_close(changed.module()(x=sample(2, 6, 6)), program.module()(x=sample(2, 6, 6)))


def test_a_free_batch_stays_free():
    free = {"dynamic_shapes": {"x": {0: torch.export.Dim("batch", min=2, max=8)}}}
    program = torch.export.export(Net(lambda x: torch.topk(functional.gelu(x), 3)[0]).eval(), (), {"x": sample(2, 20)}, **free)
    changed, places = torch_rewrites.apply(program, ["sort-ranks", "gelu-tanh"])
    assert places == {"sort-ranks": ["gate/topk"], "gelu-tanh": ["gate/gelu"]}
    x = sample(5, 20, seed=1)
    torch.testing.assert_close(changed.module()(x=x)["y"], torch.topk(functional.gelu(x, approximate="tanh"), 3)[0])


def test_complex_numbers_that_are_multiplied_with_each_other_are_named():
    with pytest.raises(StageFailed, match=r"dft-matmul cannot be applied.*mul of complex numbers, in gate/mul"):
        rewritten("dft-matmul", lambda x: (torch.fft.rfft(x) * torch.fft.rfft(x)).real, sample(2, 16))


def test_an_unknown_rewrite_is_named_beside_the_known():
    program = torch.export.export(Net(torch.relu).eval(), (), {"x": sample(2, 3)})
    with pytest.raises(ConfigError, match="unknown rewrite 'gelu'; known: gelu-tanh, hard-swish"):
        torch_rewrites.apply(program, ["gelu"])


def converted(folder, route, function, x, **options):
    expected = SOURCE.capture(Net(function).eval(), {"x": x.numpy()}, folder / "model.pt2")
    specs = [TensorSpec(name=name, dtype=str(one.dtype), shape=(1, *one.shape[1:])) for name, one in (("x", x.numpy()), ("y", expected["y"]))]
    signature = Signature(inputs=tuple(specs[:1]), outputs=tuple(specs[1:])).model_dump(mode="json")
    facts = stage.run(Job({"program": folder / "model.pt2"}, {"route": route, "signature": signature, **options}, folder))
    return facts, expected["y"]


CLOSED = [
    ("torch_litert", "sort-ranks", lambda x: torch.topk(x, 3)[0], (2, 20)),
    ("torch_litert", "resize-matmul", lambda x: functional.interpolate(x, (5, 4), mode="bicubic", antialias=True), (2, 3, 8, 7)),
    ("torch_litert", "dft-matmul", lambda x: torch.stft(x, 16, 4, 12, window=WINDOW, return_complex=True).abs(), (2, 64)),
    ("torch_executorch", "max-pool-windows", lambda x: functional.adaptive_max_pool2d(x, (3, 5)), (2, 3, 8, 7)),
]
FRAMEWORK = {"torch_litert": ("litert_torch", "tflite"), "torch_executorch": ("executorch", "pte")}


@pytest.mark.parametrize(("route", "name", "function", "shape"), CLOSED)
def test_a_declared_rewrite_opens_a_way_that_is_closed_without_it(tmp_path, route, name, function, shape):
    from toolkit import plugins

    framework, format = FRAMEWORK[route]
    if not find_spec(framework):
        pytest.skip(f"{framework} is not installed")
    with pytest.raises(UnsupportedOperators, match="in layer 'gate'") as caught:
        converted(tmp_path, route, function, sample(*shape))
    assert f"declare the rewrite {name}: --rewrite {name}" in caught.value.hint
    facts, expected = converted(tmp_path, route, function, sample(*shape), rewrites=[name])
    assert facts["conversion"] == {"rewrites": [name]} and list(facts["rewritten"]) == [name]
    assert all(place.startswith("gate/") for place in facts["rewritten"][name]) and facts["rewritten"][name]
    session = plugins.runtime_for(format).open(tmp_path / f"model.{format}", threads=1)
    found = np.concatenate([session.run({"x": sample(*shape).numpy()[row : row + 1]})["y"] for row in range(2)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_declared_rewrite_that_finds_nothing_is_no_error_and_is_told(tmp_path):
    if not find_spec("onnxscript"):
        pytest.skip("onnxscript is not installed")
    facts, _ = converted(tmp_path, "torch_onnx", torch.relu, sample(2, 8), rewrites=["gelu-tanh"])
    assert facts["rewritten"] == {"gelu-tanh": []}
