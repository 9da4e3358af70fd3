"""PyTorch to ExecuTorch: names, free sizes, kernels; and what the reader says of the file."""

import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("executorch")

from toolkit import intake  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.audit import stage, xnnpack  # noqa: E402
from toolkit.audit.executorch import READER  # noqa: E402
from toolkit.convert.torch_executorch import ROUTE  # noqa: E402
from toolkit.errors import InputRejected, StageFailed  # noqa: E402
from toolkit.runtimes.executorch import RUNTIME  # noqa: E402
from toolkit.sources.torch import SOURCE  # noqa: E402


class Net(torch.nn.Module):
    """A layer for XNNPACK, and one for ExecuTorch's own kernels; names that are not in alphabetic order."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.head, self.table = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 4), torch.nn.Embedding(5, 4)

    def forward(self, zed, ids):
        return {"y": self.head(torch.relu(self.convolution(zed)).mean((2, 3))) + self.table(ids).sum(1), "b": zed * 2}


class Text(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 3)

    def forward(self, *, ids):
        return {"y": self.head(torch.tanh(self.table(ids)))}


class Step(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class One(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.step = layer

    def forward(self, x):
        return {"y": self.step(x)}


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def capture(folder, model, **inputs):
    expected = SOURCE.capture(model.eval(), inputs, folder / "model.pt2")
    return folder / "model.pt2", Signature(inputs=specs(inputs), outputs=specs(expected)), expected


RANDOM = np.random.default_rng(3)
INPUTS = {"zed": RANDOM.normal(size=(3, 3, 6, 6)).astype(np.float32), "ids": RANDOM.integers(0, 5, (3, 7))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("executorch")
    program, signature, expected = capture(folder, Net(), **INPUTS)
    ROUTE.convert(program, folder / "model.pte", signature)
    return folder / "model.pte", signature, expected


def test_names_dtypes_and_values_survive(made):
    path, signature, expected = made
    session = RUNTIME.open(path, threads=1)
    assert session.signature == signature
    for row in range(3):
        found = session.run({name: column[row : row + 1] for name, column in INPUTS.items()})
        for name, column in expected.items():
            np.testing.assert_allclose(found[name], column[row : row + 1], atol=1e-5)


def test_the_names_do_not_count_as_inferences_of_a_profile(made):
    session = RUNTIME.open_profiled(made[0], threads=1)
    session.run({name: column[:1] for name, column in INPUTS.items()})
    (events,) = session.events()
    assert events


def test_the_reader_finds_every_weight_and_says_who_executes_what(made):
    path, signature, _ = made
    contents = READER.read(path)
    assert contents.signature == signature
    # The embedding's table, the layer's weights, biases, and the one number 2 of "b", which the program keeps as an integer.
    assert contents.weight_bytes == {"float32": sum(value.numel() * 4 for value in Net().state_dict().values()), "int64": 8}
    assert [(one.operator, one.weight_dtype, one.weight_bytes) for one in contents.layers] == [
        ("Conv2d", "float32", Net().convolution.weight.numel() * 4),
        ("FullyConnected", "float32", Net().head.weight.numel() * 4),
    ]
    assert contents.operators["aten::embedding.out"] == 1 and contents.operators["XNNPACK Conv2d"] == 1
    assert re.fullmatch(r"\d+ of \d+ operators \(\d+%\)", contents.details["delegated"])
    assert stage.classify(contents) == "float32"


def test_the_readers_numbers_are_those_of_the_schema_that_executorch_ships():
    import executorch

    folder = Path(next(iter(executorch.__path__))) / "backends" / "xnnpack" / "serialization"
    text = re.sub(r"//.*", "", (folder / "schema.fbs").read_text())
    nodes = re.search(r"union XNodeUnion \{(.*?)\}", text, re.DOTALL)[1]
    assert tuple(entry.split(":")[0].strip().removeprefix("XNN") for entry in nodes.split(",") if entry.strip()) == xnnpack._NODES
    tables = {
        name: [line.split(":")[0].strip() for line in body.split(";") if ":" in line]
        for name, body in re.findall(r"table (\w+) \{(.*?)\}", text, re.DOTALL)
    }
    assert [tables["_XNNNodeConv"].index(name) for name in ("input1_id", "filter_id")] == [15, 16]
    assert [tables["XNNGraph"].index(name) for name in ("xnodes", "xvalues", "constant_data")] == [1, 2, 8]
    assert [tables["XNNTensorValue"].index(name) for name in ("datatype", "dims", "constant_buffer_idx", "id_out")] == [0, 2, 3, 6]


def test_flipped_bytes_never_escape_the_reader(made, tmp_path):
    data = made[0].read_bytes()
    for _ in range(300):
        damaged = bytearray(data)
        damaged[int(RANDOM.integers(8, len(data)))] ^= int(RANDOM.integers(1, 256))
        (tmp_path / "flipped.pte").write_bytes(bytes(damaged))
        try:
            READER.read(tmp_path / "flipped.pte")
        except InputRejected as error:
            assert error.hint


def test_intake_knows_the_mark_and_the_length(made, tmp_path):
    data = made[0].read_bytes()
    assert intake.check_model(made[0]) == "pte"
    for number, content in enumerate((data[:-400], data[:4] + b"ORTM" + data[8:], data[:20])):
        (tmp_path / f"{number}.pte").write_bytes(content)
        with pytest.raises(InputRejected):
            intake.check_model(tmp_path / f"{number}.pte")


def export_free(path, **bounds):
    """Captures with two free sizes, in PyTorch's own words."""
    model = Text().eval()
    free = {"ids": {0: torch.export.Dim("batch", min=1, **bounds), 1: torch.export.Dim("sequence", min=2, **bounds)}}
    torch.export.save(torch.export.export(model, (), kwargs={"ids": torch.zeros(2, 7, dtype=torch.long)}, dynamic_shapes=free), path)
    shape = ("batch", "sequence")
    return model, Signature(
        inputs=(TensorSpec(name="ids", dtype="int64", shape=shape),), outputs=(TensorSpec(name="y", dtype="float32", shape=(*shape, 3)),)
    )


def test_free_sizes_stay_free_up_to_their_bound(tmp_path):
    model, signature = export_free(tmp_path / "model.pt2", max=16)
    ROUTE.convert(tmp_path / "model.pt2", tmp_path / "model.pte", signature)
    session = RUNTIME.open(tmp_path / "model.pte", threads=1)
    assert session.signature.inputs == signature.inputs == READER.read(tmp_path / "model.pte").signature.inputs
    for shape in ((1, 2), (3, 16), (2, 7)):
        ids = RANDOM.integers(0, 9, shape)
        np.testing.assert_allclose(session.run({"ids": ids})["y"], model(ids=torch.from_numpy(ids))["y"].detach().numpy(), atol=1e-5)
    with pytest.raises(InputRejected, match=r"input 'ids' is \[1, 17\], the program was planned for at most \[16, 16\]"):
        session.run({"ids": np.zeros((1, 17), np.int64)})


def test_a_free_size_without_bound_is_refused(tmp_path):
    _, signature = export_free(tmp_path / "model.pt2")
    with pytest.raises(StageFailed, match="has no upper bound"):
        ROUTE.convert(tmp_path / "model.pt2", tmp_path / "model.pte", signature)


@pytest.mark.parametrize(
    ("layer", "operator"),
    [
        (Step(torch.special.bessel_j0), "aten.special_bessel_j0.default"),
        (Step(lambda x: torch.sort(x.flatten(1)).values), "aten.sort.default"),
        (torch.nn.ConvTranspose3d(3, 2, 2, stride=2), "aten.convolution.default"),
    ],
)
def test_what_has_no_kernel_is_named_with_its_layer_before_and_while_converting(tmp_path, layer, operator):
    x = INPUTS["zed"] if isinstance(layer, Step) else INPUTS["zed"][:, :, None]
    program, signature, _ = capture(tmp_path, One(torch.nn.Sequential(torch.nn.ReLU(), layer)), x=x)
    (found,) = ROUTE.preflight(program, signature)
    assert (found.operator, found.layer) == (operator, "step.1") and found.hint
    with pytest.raises(StageFailed, match=r"\(layer step.1\) has no ExecuTorch kernel") as caught:
        ROUTE.convert(program, tmp_path / "model.pte", signature)
    assert "\n" not in caught.value.message and caught.value.hint


def test_preflight_passes_what_converts(tmp_path):
    program, signature, _ = capture(tmp_path, Net(), **INPUTS)
    assert ROUTE.preflight(program, signature) == []


def test_one_value_may_have_two_names_and_an_input_may_be_an_output(tmp_path):
    class Twice(torch.nn.Module):
        def forward(self, x):
            y = x * 2
            return {"first": y, "second": y, "same": x}

    program, signature, expected = capture(tmp_path, Twice(), x=INPUTS["zed"])
    ROUTE.convert(program, tmp_path / "model.pte", signature)
    found = RUNTIME.open(tmp_path / "model.pte", threads=1).run({"x": INPUTS["zed"][:1]})
    assert list(found) == ["first", "second", "same"]
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column[:1])
