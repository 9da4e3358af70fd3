"""Free sizes with bounds: one notation, from the command line to torch.export, the recorded sizes, the runtimes and the manifest."""

import importlib.util
import json

import numpy as np
import pytest

from toolkit import sizes
from toolkit.cli import export as command
from toolkit.config import Conversion, Project, parse
from toolkit.errors import ConfigError, InputRejected
from toolkit.job import Job
from toolkit.measure import feed, parity
from toolkit.pipeline.export import _conversion
from toolkit.sources import variants

X = np.random.default_rng(0).normal(size=(5, 8, 4)).astype(np.float32)
BOUNDED = {"x": {0: "batch<=6", 1: "2<=steps<=32"}}


@pytest.mark.parametrize(
    ("text", "name", "least", "most", "written"),
    [
        ("batch", "batch", 1, None, "batch"),
        ("batch<=8", "batch", 1, 8, "batch<=8"),
        (" 16 <= time-steps <= 128 ", "time-steps", 16, 128, "16<=time-steps<=128"),
        ("16<=n", "n", 16, None, "16<=n"),
        ("1<=n<=2", "n", 1, 2, "n<=2"),
        ("8<=8<=9", "8", 8, 9, "8<=8<=9"),
    ],
)
def test_a_size_is_a_name_with_or_without_bounds(text, name, least, most, written):
    size = sizes.read(text)
    assert (size.name, size.least, size.most, str(size)) == (name, least, most, written)
    assert size.is_bounded == (least > 1 or most is not None)
    assert least in size and least - 1 not in size and (most is None or (most in size and most + 1 not in size))


@pytest.mark.parametrize(
    ("dynamic", "words"),
    [
        ({"x": {1: "n<8"}}, r"dynamic\.x\.1: a free size is written NAME, NAME<=MAX or MIN<=NAME<=MAX, found 'n<8'"),
        ({"x": {1: "n=8"}}, "a free size is written"),
        ({"x": {1: ""}}, "a free size is written"),
        ({"x": {1: "9<=n<=8"}}, "9<=n<=8 is larger than its bound"),
        ({"x": {1: "8<=n<=8"}}, "leaves one size, which is then not free"),
        ({"x": {1: "n<=1"}}, "leaves one size"),
        ({"x": {1: "0<=n"}}, "the least size is 1"),
        ({"x": {1: "n<=8"}, "y": {2: "n<=9"}}, "equal names have equal bounds, found n<=8 and n<=9"),
        ({"x": {1: "n<=8"}, "y": {2: "n"}}, "equal names have equal bounds, found n<=8 and n"),
        ({"x": {0: "2<=n<=8"}}, "axis 0 is the batch, which must take one sample alone"),
    ],
)
def test_what_is_no_free_size(dynamic, words):
    with pytest.raises(ConfigError, match=words):
        _conversion(dynamic=dynamic)


def test_a_project_writes_them_in_the_same_way():
    text = 'name = "n"\ntask = "text-classification"\ntargets = ["a"]\n[data]\nfactory = "m:f"\n[model]\nfactory = "m:f"\n[convert.dynamic]\n'
    project = parse(Project, text + 'ids = { 0 = "batch <= 8", 1 = "sequence" }\n', "edgekit.toml")
    assert project.convert.dynamic == {"ids": {0: "batch<=8", 1: "sequence"}}
    assert project.convert == Conversion(dynamic={"ids": {0: "batch<=8", 1: "sequence"}})
    with pytest.raises(ConfigError, match=r"convert\.dynamic\.ids\.0: a free size is written"):
        parse(Project, text + 'ids = { 0 = "batch < 8" }\n', "edgekit.toml")


def test_so_does_the_command_line():
    given = ["ids:0=batch<=8,1=16<=sequence<=128", "a:b:2=n"]
    assert command._free_sizes(given) == {"ids": {0: "batch<=8", 1: "16<=sequence<=128"}, "a:b": {2: "n"}}


def double(inputs):
    return {"y": inputs["x"] * 2}


def recorded(folder):
    return [json.loads((one / "sizes.json").read_text()) for one in sorted((folder / "variants").iterdir(), key=lambda one: int(one.name))]


def test_recorded_sizes_lie_between_the_bounds_and_at_both_ends(tmp_path):
    signature = variants.record(double, {"x": X}, {"y": X * 2}, BOUNDED, tmp_path)
    assert signature.inputs[0].shape == signature.outputs[0].shape == ("batch", "steps", 4)
    seen = recorded(tmp_path)
    assert {"batch": 1, "steps": 2} in seen and {"batch": 6, "steps": 32} in seen
    assert all(1 <= size["batch"] <= 6 and 2 <= size["steps"] <= 32 for size in seen)
    assert len({size["batch"] for size in seen}) >= 3 and len({size["steps"] for size in seen}) >= 3
    largest = np.load(tmp_path / "variants" / str(seen.index({"batch": 6, "steps": 32})) / "inputs" / "x.npy")
    np.testing.assert_array_equal(largest, X[[0, 1, 2, 3, 4, 0]][:, np.arange(32) % 8])


def test_the_largest_sizes_are_shown_as_far_as_they_are_worth_the_work(tmp_path):
    variants.record(double, {"x": X}, {"y": X * 2}, {"x": {0: "batch<=60", 1: "steps<=100000"}}, tmp_path)
    seen = recorded(tmp_path)
    assert {"batch": 60, "steps": 8} in seen and {"batch": 1, "steps": 8 * variants.MOST_WORK} in seen
    assert max(size["batch"] * size["steps"] for size in seen) <= 8 * variants.MOST_WORK


def test_two_sizes_are_enough_where_bounds_leave_no_third(tmp_path):
    variants.record(double, {"x": X}, {"y": X * 2}, {"x": {0: "batch<=2"}}, tmp_path)
    assert sorted(size["batch"] for size in recorded(tmp_path)) == [1, 2]


def test_a_model_that_does_not_keep_to_its_bounds_is_refused(tmp_path):
    def run(inputs):
        if inputs["x"].shape[1] > 16:
            raise InputRejected("has 16 positions")
        return double(inputs)

    with pytest.raises(InputRejected, match=r"refuses sizes within the bounds: at batch=6, steps=32 it says: has 16 positions"):
        variants.record(run, {"x": X}, {"y": X * 2}, BOUNDED, tmp_path)


def test_samples_outside_of_the_bounds_are_refused():
    for steps in ("9<=steps", "steps<=7"):
        with pytest.raises(ConfigError, match=f"axis 1 of 'x' is 8 in the samples, outside of {steps}"):
            variants.check({"x": {1: steps}}, {"x": X})
    variants.check({"x": {0: "batch<=2", 1: "steps<=8"}}, {"x": X})  # the samples are no batch


def test_bounds_are_facts_and_names_have_none():
    assert variants.facts({"x": {"0": "batch<=8", "1": "16<=n", "2": "m"}}) == {"bounds": {"batch": [1, 8], "n": [16, None]}}
    assert variants.facts({"x": {0: "batch"}}) == {}
    assert variants.axes({"x": {"1": "16<=n<=20", "0": "batch"}}) == {"x": {0: "batch", 1: "n"}}


@pytest.mark.parametrize(("options", "words"), [((), "does not know free sizes"), (("dynamic",), "does not know bounds of free sizes")])
def test_a_source_must_know_what_is_asked(options, words):
    source = type("Source", (), {"name": "old", "options": options})()
    with pytest.raises(ConfigError, match=words):
        variants.check_source(source, {"x": {0: "batch<=8"}})
    variants.check_source(source, {})


def test_no_session_is_given_more_samples_than_it_takes():
    session = type("Session", (), {"largest_batch": 6})()
    assert feed.room(session) == 6 and feed.room(session, 4) == 4
    session.largest_batch = None
    assert feed.room(session) == feed.room(object()) == feed.FREE_BATCH


def captured(folder, dynamic, model=None):
    torch = pytest.importorskip("torch")
    from toolkit.sources.torch import SOURCE

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.table = torch.nn.Linear(4, 3), torch.nn.Parameter(torch.arange(48.0)[:, None])

        def forward(self, x):
            return {"y": self.mix(x) + self.table[: x.shape[1]]}

    model = (model or Table()).eval()
    program = folder / "model.pt2"
    outputs = SOURCE.capture(model, {"x": X}, program, dynamic=dynamic)
    for side, name, column in (("inputs", "x", X), ("outputs", "y", outputs["y"])):
        (folder / "expected" / side).mkdir(parents=True)
        np.save(folder / "expected" / side / f"{name}.npy", column)
    return program, variants.record(SOURCE.runner(model, program, {"x": X}), {"x": X}, outputs, dynamic, folder / "expected")


def test_bounds_become_the_programs(tmp_path):
    program, _ = captured(tmp_path, BOUNDED)
    from toolkit import plugins, pt2

    limits = sorted((int(limit.lower), int(limit.upper)) for limit in pt2.load(program).range_constraints.values())
    assert [upper for _, upper in limits] == [6, 32] and limits[1][0] == 2
    session = plugins.get("runtimes", "torch").open(program, threads=1)
    assert session.largest_batch == 6 and session.signature.inputs[0].shape == ("batch", "steps", 4)


def test_bounds_that_the_model_cannot_keep_are_refused_with_its_own(tmp_path):
    with pytest.raises(InputRejected, match="takes at most 48, found the bound 64") as caught:
        captured(tmp_path, {"x": {1: "steps<=64"}})
    assert caught.value.where == "input 'x', axis 1 ('steps')" and caught.value.hint == "write steps<=48"


def test_executorch_takes_bounded_sizes_at_every_one_of_them(tmp_path):
    if importlib.util.find_spec("executorch") is None:
        pytest.skip("needs executorch")
    from toolkit import plugins

    program, signature = captured(tmp_path, BOUNDED)
    plugins.get("routes", "torch_executorch").convert(program, tmp_path / "model.pte", signature)
    job = Job({"model": tmp_path / "model.pte", "expected": tmp_path / "expected"}, {"runtime": "executorch", "min_sqnr_db": 100}, tmp_path)
    facts = parity.run(job)
    assert facts["sizes"]["batch"][-1] == 6 and {2, 8, 32} <= set(facts["sizes"]["steps"])
    assert plugins.get("runtimes", "executorch").open(tmp_path / "model.pte", threads=1).largest_batch == 6


@pytest.mark.slow
def test_a_transformer_with_free_batch_and_length_becomes_an_executorch_program(tmp_path):
    for module in ("executorch", "transformers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    transformers = pytest.importorskip("transformers")
    import toolkit

    shape = {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64, "num_labels": 3}
    model = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**shape)).eval()
    mask = np.ones((8, 16), np.int64)
    mask[1, 7:] = 0
    samples = {"input_ids": np.random.default_rng(0).integers(0, 100, (8, 16)), "attention_mask": mask}
    bounded = {name: {0: "batch<=4", 1: "sequence<=64"} for name in samples}
    made = toolkit.export(model, samples, format="pte", output=tmp_path / "model.pte", dynamic=bounded, min_sqnr_db=100)
    assert made.manifest.evidence["bounds"] == {"batch": [1, 4], "sequence": [1, 64]}
    assert made.manifest.evidence["checks"]["parity"]["sizes"] == {"batch": [1, 2, 3, 4], "sequence": [1, 2, 8, 16, 64]}
    assert [spec.shape for spec in made.signature.inputs] == [("batch", "sequence")] * 2
