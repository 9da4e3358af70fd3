"""PyTorch to a Core ML package: written anywhere, checked as a specification. Nothing here can execute one."""

from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# Not importorskip: coremltools imports every framework it finds, and TensorFlow beside PyTorch ends the process.
pytestmark = [
    pytest.mark.skipif(find_spec("coremltools") is None, reason="needs coremltools"),
    pytest.mark.filterwarnings("ignore"),  # it warns of versions that it was not tested with
]

from toolkit import coreml_models, modelfile, plugins  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.audit import stage  # noqa: E402
from toolkit.audit.coreml import READER  # noqa: E402
from toolkit.convert.torch_coreml import ROUTE  # noqa: E402
from toolkit.errors import InputRejected, NoRoute, StageFailed  # noqa: E402
from toolkit.sources.torch import SOURCE  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self, last=None):
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.table = torch.nn.Conv2d(3, 16, 3), torch.nn.Embedding(5, 16)
        self.last = last or torch.nn.Linear(16, 4)

    def forward(self, zed, ids):
        seen = torch.relu(self.convolution(zed)).mean((2, 3)) + self.table(ids).sum(1)
        return {"scores": self.last(seen), "b": zed * 2}


class Bessel(torch.nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


INPUTS = {"zed": np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32), "ids": np.array([[0, 4, 2], [1, 1, 3]])}


def capture(folder, model):
    expected = SOURCE.capture(model.eval(), INPUTS, folder / "model.pt2")
    sides = [
        tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())
        for columns in (INPUTS, expected)
    ]
    return folder / "model.pt2", Signature(inputs=sides[0], outputs=sides[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coreml")
    program, signature = capture(folder, Net())
    ROUTE.convert(program, folder / "model.mlpackage", signature)
    return folder / "model.mlpackage", program, signature


def test_names_and_shapes_survive_and_token_ids_are_32_bit_wide(made):
    signature = READER.read(made[0]).signature
    assert [str(one) for one in (*signature.inputs, *signature.outputs)] == [
        "zed [1 x 3 x 6 x 6] float32",
        "ids [1 x 3] int32",
        "scores [1 x 4] float32",
        "b [1 x 3 x 6 x 6] float32",
    ]


def test_the_weights_in_the_package_are_those_of_the_model(made):
    """Read from the file of weights itself: 64 bytes of description before each tensor's data (MILBlob storage format)."""
    stored = (made[0] / coreml_models.WEIGHTS).read_bytes()
    for name, tensor in Net().state_dict().items():
        if tensor.ndim > 1:
            assert tensor.numpy().tobytes() in stored, name


def test_the_reader_counts_operators_and_weights(made):
    contents = READER.read(made[0])
    large = {name: value.numel() * 4 for name, value in Net().state_dict().items() if value.ndim > 1}
    assert [(one.operator, one.weight_dtype, one.weight_bytes) for one in contents.layers] == [
        ("conv", "float32", large["convolution.weight"]),
        ("linear", "float32", large["last.weight"]),
    ]
    assert sum(large.values()) <= contents.weight_bytes["float32"] <= sum(value.numel() * 4 for value in Net().state_dict().values())
    assert contents.size_bytes == modelfile.size_bytes(made[0])
    assert "not executed here" in contents.details["not_done"]
    assert stage.classify(contents) == "float32"


def test_the_same_program_gives_the_same_bytes(made, tmp_path):
    ROUTE.convert(made[1], tmp_path / "other.mlpackage", made[2])
    assert modelfile.sha256(tmp_path / "other.mlpackage") == modelfile.sha256(made[0])
    text = b"".join(file.read_bytes() for file in modelfile.files(made[0]))
    assert b"+cu" not in text and str(tmp_path.parent).encode() not in text and b"conversion_date" not in text


def test_no_runtime_claims_to_execute_it():
    with pytest.raises(NoRoute):
        plugins.runtime_for("mlpackage")


def test_an_operator_without_counterpart_is_named_with_its_layer(tmp_path):
    program, signature = capture(tmp_path, Net(last=torch.nn.Sequential(torch.nn.ReLU(), Bessel())))
    (found,) = ROUTE.preflight(program, signature)
    assert (found.operator, found.layer) == ("aten.special_bessel_j0.default", "last.1") and found.hint
    with pytest.raises(StageFailed, match=r"special_bessel_j0.default \(layer last.1\)") as caught:
        ROUTE.convert(program, tmp_path / "model.mlpackage", signature)
    assert "\n" not in caught.value.message


def test_a_damaged_package_is_refused(made, tmp_path):
    for number, content in enumerate((b"", b"junk" * 100, b"\0" * 500)):
        copy = tmp_path / f"{number}.mlpackage"
        modelfile.copy(made[0], copy)
        (copy / coreml_models.SPEC).write_bytes(content)
        with pytest.raises(InputRejected):
            READER.read(copy)
    modelfile.copy(made[0], tmp_path / "bare.mlpackage")
    (tmp_path / "bare.mlpackage" / coreml_models.WEIGHTS).write_bytes(b"short")
    with pytest.raises(InputRejected, match="the file of weights has 5"):
        READER.read(tmp_path / "bare.mlpackage")
