"""Free sizes: captured under the user's names, shown at several sizes, kept by ONNX, and refused with a reason where the model fixes them."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toolkit import plugins, pt2  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.errors import ConfigError, InputRejected, ParityFailed  # noqa: E402
from toolkit.job import Job  # noqa: E402
from toolkit.measure import parity  # noqa: E402
from toolkit.runtimes.torch import RUNTIME  # noqa: E402
from toolkit.sources import variants  # noqa: E402
from toolkit.sources.torch import SOURCE  # noqa: E402

X = np.random.default_rng(0).normal(size=(5, 8, 4)).astype(np.float32)
FREE = {"x": {0: "batch", 1: "steps"}}


class Calls(torch.nn.Module):
    """Gives back whatever the function makes of its input."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, torch.nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


class Fixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.mix(x.transpose(1, 2))


class Attention(torch.nn.Module):
    """A decoder's attention: every token looks at those before it that are no padding."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads, self.embed = heads, torch.nn.Embedding(20, width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, 20)

    def forward(self, input_ids, attention_mask):
        batch, length = input_ids.shape
        q, k, v = self.qkv(self.embed(input_ids)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = torch.ones(length, length, dtype=torch.bool).tril() & attention_mask.bool()[:, None, None, :]
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return {"logits": self.out(mixed.transpose(1, 2).reshape(batch, length, -1))}


def capture(tmp_path, model, columns=None, free=FREE):
    columns = columns or {"x": X}
    program = tmp_path / "model.pt2"
    expected = SOURCE.capture(model.eval(), columns, program, dynamic=free)
    return program, columns, expected


def record(tmp_path, model, columns=None, free=FREE):
    program, columns, expected = capture(tmp_path, model, columns, free)
    for side, arrays in (("inputs", columns), ("outputs", expected)):
        (tmp_path / "expected" / side).mkdir(parents=True)
        for name, column in arrays.items():
            np.save(tmp_path / "expected" / side / f"{name}.npy", column)
    run = SOURCE.runner(model, program, columns)
    return program, variants.record(run, columns, expected, free, tmp_path / "expected")


def recorded(folder):
    """Sizes, inputs and outputs of every variant."""
    for one in sorted((folder / "expected" / "variants").iterdir()):
        sides = [{file.stem: np.load(file) for file in (one / side).iterdir()} for side in ("inputs", "outputs")]
        yield json.loads((one / "sizes.json").read_text()), *sides


def shapes(signature):
    return {spec.name: spec.shape for spec in (*signature.inputs, *signature.outputs)}


def test_every_free_size_is_recorded_at_three_sizes_or_more(tmp_path):
    _, signature = record(tmp_path, Calls(lambda x: {"same": x * 2, "mean": x.mean(1), "twice": torch.cat([x, x], 1)}))
    assert shapes(signature) == {"x": ("batch", "steps", 4), "same": ("batch", "steps", 4), "mean": ("batch", 4), "twice": ("batch", "twice_1", 4)}
    seen = list(recorded(tmp_path))
    assert {size["batch"] for size, _, _ in seen} >= {1, 2, 3}
    assert {size["steps"] for size, _, _ in seen} >= {1, 2, 4, 8}
    for size, inputs, outputs in seen:
        assert inputs["x"].shape == (size["batch"], size["steps"], 4)
        np.testing.assert_array_equal(inputs["x"], X[: size["batch"], : size["steps"]])  # real samples, cut
        np.testing.assert_array_equal(outputs["same"], inputs["x"] * 2)
        np.testing.assert_allclose(outputs["mean"], inputs["x"].mean(1), rtol=1e-5, atol=1e-6)


def test_the_program_runs_at_any_size_and_its_signature_has_the_users_names(tmp_path):
    program, _, _ = capture(tmp_path, Calls(lambda x: torch.cat([x, x], 1)), free={"x": {0: "batch", 1: "time-steps"}})
    session = RUNTIME.open(program, threads=1)
    assert shapes(session.signature) == {"x": ("batch", "time-steps", 4), "output_0": ("batch", "2*time-steps", 4)}
    for size in ((1, 1), (7, 3), (2, 20)):
        given = np.random.default_rng(1).normal(size=(*size, 4)).astype(np.float32)
        np.testing.assert_array_equal(session.run({"x": given})["output_0"], np.concatenate([given, given], 1))


def test_the_same_capture_gives_the_same_bytes(tmp_path):
    first = capture(tmp_path, Calls(lambda x: x * 2))[0].read_bytes()
    assert capture(tmp_path, Calls(lambda x: x * 2))[0].read_bytes() == first


def test_one_short_sample_is_enough(tmp_path):
    _, signature = record(tmp_path, Calls(lambda x: x * 2), {"x": X[:1, :2]})
    assert shapes(signature)["output_0"] == ("batch", "steps", 4)
    assert {size["steps"] for size, _, _ in recorded(tmp_path)} == {1, 2, 3}


def test_a_limit_of_the_model_becomes_the_programs(tmp_path):
    table = torch.arange(16.0)[:, None]
    program, _ = record(tmp_path, Calls(lambda x: x + table[: x.shape[1]]))
    session = RUNTIME.open(program, threads=1)
    assert session.run({"x": np.zeros((1, 16, 4), np.float32)})["output_0"].shape == (1, 16, 4)
    with pytest.raises(Exception, match=r"17|16"):
        session.run({"x": np.zeros((1, 17, 4), np.float32)})


MULTIPLES = Calls(lambda x: x.reshape(x.shape[0], -1, 4, 4).sum(1))
LINE = r"at size 8 only, because of test_dynamic\.py, line \d+: return self\.mix"
STEPS = "input 'x', axis 1 ('steps')"


@pytest.mark.parametrize(
    ("model", "free", "where", "words"),
    [
        (Calls(lambda x, fixed: fixed(x), Fixed()), FREE, STEPS, LINE),
        (MULTIPLES, FREE, STEPS, r"takes only sizes 4\*n"),
        (Calls(lambda x: x @ x), {"x": {1: "a", 2: "b"}}, "input 'x', axis 2 ('b')", "always equal to the free size 'a'"),
    ],
    ids=["constant", "multiples", "tied"],
)
def test_a_size_that_the_model_fixes_is_named_with_the_reason(tmp_path, model, free, where, words):
    with pytest.raises(InputRejected, match=words) as caught:
        capture(tmp_path, model, {"x": X[:, :4]} if free != FREE else None, free)
    assert caught.value.where == where and caught.value.hint
    assert not (tmp_path / "model.pt2").exists()


def test_a_program_that_forgot_a_branch_is_found_by_the_live_model(tmp_path):
    with pytest.raises(ParityFailed, match="captured another computation"):
        record(tmp_path, Calls(lambda x: x * 2 if x.shape[1] > 1 else x * 3))


@pytest.mark.parametrize(
    ("free", "words"),
    [
        ({"y": {0: "batch"}}, "no input 'y'; found x"),
        ({"x": {3: "more"}}, "'x' has 3 axes, found axis 3"),
        ({"x": {1: "same", 2: "same"}}, "both called 'same', but have the sizes 4 and 8"),
    ],
)
def test_free_sizes_that_do_not_fit_the_samples(tmp_path, free, words):
    with pytest.raises(ConfigError, match=words):
        capture(tmp_path, Calls(lambda x: x), free=free)


def test_a_size_that_cannot_be_shown_three_times_is_refused(tmp_path):
    def run(inputs):
        if inputs["x"].shape[1] != 8:
            raise InputRejected("wants 8 steps")
        return {"y": inputs["x"]}

    with pytest.raises(InputRejected, match=r"takes the free size 'steps' only at 8; .* it says: wants 8 steps"):
        variants.record(run, {"x": X}, {"y": X}, FREE, tmp_path)


def test_axes_may_come_through_json():
    assert variants.axes({"x": {"1": "steps", "0": "batch"}}) == {"x": {0: "batch", 1: "steps"}}


def test_blank_inputs_take_the_programs_own_sizes(tmp_path):
    program, _, _ = capture(tmp_path, Calls(lambda x: x * 2))
    signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", "steps", 4)),), outputs=())
    assert pt2.blank_inputs(signature, pt2.load(program))["x"].shape == (2, 8, 4)
    assert pt2.blank_inputs(signature)["x"].shape == (2, 3, 4)


class Session:
    """A converted model that computes with NumPy."""

    def __init__(self, compute, signature):
        self.compute, self.signature = compute, signature

    def run(self, inputs):
        return self.compute(**inputs)


def judge(tmp_path, monkeypatch, compute, signature):
    runtime = type("Numpy", (), {"name": "numpy", "modules": (), "open": lambda self, model, threads: Session(compute, signature)})()
    monkeypatch.setattr("toolkit.plugins.get", lambda group, name: runtime)
    return parity.run(Job({"model": tmp_path / "m", "expected": tmp_path / "expected"}, {"runtime": "numpy", "min_sqnr_db": 60}, tmp_path))


def test_parity_lists_the_sizes_that_it_compared(tmp_path, monkeypatch):
    _, signature = record(tmp_path, Calls(lambda x: x * 2))
    facts = judge(tmp_path, monkeypatch, lambda x: {"output_0": x * 2}, signature)
    assert facts["sizes"] == {"batch": [1, 2, 3], "steps": [1, 2, 4, 8]} and facts["worst_sqnr_db"] == 200


def test_parity_finds_a_file_that_is_right_at_the_samples_own_size_alone(tmp_path, monkeypatch):
    _, signature = record(tmp_path, Calls(lambda x: x * 2))
    with pytest.raises(ParityFailed, match=r"differs: SQNR") as caught:
        judge(tmp_path, monkeypatch, lambda x: {"output_0": x * 2 if x.shape[1] == 8 else x}, signature)
    assert "batch=1, steps=2" in caught.value.where


def test_parity_finds_a_file_whose_sizes_are_fixed(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    program, _, _ = capture(tmp_path, Calls(lambda x: x * 2), free={})
    (tmp_path / "free").mkdir()
    record(tmp_path / "free", Calls(lambda x: x * 2))
    fixed = Signature(inputs=(spec("x", (1, 8, 4)),), outputs=(spec("output_0", (1, 8, 4)),))
    plugins.get("routes", "torch_onnx").convert(program, tmp_path / "m.onnx", fixed)
    with pytest.raises(ParityFailed, match="fails where the source does not"):
        parity.run(
            Job({"model": tmp_path / "m.onnx", "expected": tmp_path / "free" / "expected"}, {"runtime": "onnxruntime", "min_sqnr_db": 60}, tmp_path)
        )


def spec(name, shape):
    return TensorSpec(name=name, dtype="float32", shape=shape)


def test_a_decoder_with_free_batch_and_length_is_right_at_every_size_in_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    mask = np.ones((4, 12), np.int64)
    mask[1, 7:], mask[2, 3:] = 0, 0
    columns = {"input_ids": random.integers(0, 20, (4, 12)), "attention_mask": mask}
    program, signature = record(tmp_path, Attention(), columns, {name: {0: "batch", 1: "sequence"} for name in columns})
    plugins.get("routes", "torch_onnx").convert(program, tmp_path / "m.onnx", signature)
    job = Job({"model": tmp_path / "m.onnx", "expected": tmp_path / "expected"}, {"runtime": "onnxruntime", "min_sqnr_db": 100}, tmp_path)
    facts = parity.run(job)
    assert facts["sizes"] == {"batch": [1, 2, 3], "sequence": [1, 2, 6, 12]}
    session = plugins.get("runtimes", "onnxruntime").open(tmp_path / "m.onnx", threads=1)
    assert shapes(session.signature) == dict.fromkeys(columns, ("batch", "sequence")) | {"logits": ("batch", "sequence", 20)}
