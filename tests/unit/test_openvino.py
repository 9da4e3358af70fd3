"""OpenVINO IR: routes against the live model, files that do not differ from process to process, the runtime, and the reader."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests import folders, models
from toolkit import modelfile, openvino_ir, plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.audit import openvino_graph
from toolkit.audit.openvino import READER
from toolkit.audit.stage import classify
from toolkit.convert.onnx_openvino import ROUTE as FROM_ONNX
from toolkit.convert.tflite_openvino import ROUTE as FROM_TFLITE
from toolkit.convert.torch_openvino import ROUTE as FROM_TORCH
from toolkit.errors import InputRejected, StageFailed
from toolkit.runtimes.openvino import RUNTIME

if plugins.missing_modules(RUNTIME):  # not importorskip: to import OpenVINO by itself would start its telemetry
    pytest.skip("OpenVINO is not installed", allow_module_level=True)
ROOT = Path(__file__).resolve().parents[2]
N = 3


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def sqnr_db(reference, found):
    reference, noise = reference.astype(np.float64), reference.astype(np.float64) - found
    return 10 * np.log10((reference**2).sum() / max((noise**2).sum(), 1e-300))


def capture(folder, model, **inputs):
    """Captures a module; returns the program, its signature, and what the live module gives."""
    from toolkit.sources.torch import SOURCE

    expected = SOURCE.capture(model.eval(), inputs, folder / "model.pt2")
    return folder / "model.pt2", Signature(inputs=specs(inputs), outputs=specs(expected)), expected


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def picture_net(torch, tmp_path_factory):
    """Convolution with a normalisation that is folded into it, a grouped one, and a fully connected layer."""
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Hardswish())
            self.head = nn.Linear(8 * 16, 10)

        def forward(self, pixel_values):
            return {"logits": self.head(self.body(pixel_values).flatten(1))}

    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():  # statistics as after training
        net.body[1].running_mean.uniform_(-1, 1)
        net.body[1].running_var.uniform_(0.5, 2)
    inputs = {"pixel_values": np.random.default_rng(0).normal(size=(N, 3, 8, 8)).astype(np.float32)}
    return (*capture(tmp_path_factory.mktemp("picture"), net, **inputs), inputs)


@pytest.fixture(scope="module")
def text_net(torch, tmp_path_factory):
    """A transformer's encoder block with token ids and a mask, two outputs of its own and one that is an input."""
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 16)
            self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, input_ids, attention_mask):
            hidden = self.block(self.table(input_ids), src_key_padding_mask=attention_mask == 0)
            return {"logits": self.head(hidden[:, 0]), "last_hidden_state": hidden, "ids": input_ids}

    torch.manual_seed(1)
    mask = np.array([[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7])
    inputs = {"input_ids": np.random.default_rng(1).integers(0, 50, (N, 8)), "attention_mask": mask}
    return (*capture(tmp_path_factory.mktemp("text"), Net(), **inputs), inputs)


def convert(route, program, signature, folder):
    """Converts a captured program, by way of ONNX where the route asks for it."""
    out = folder / "model.openvino"
    if route.source == "onnx":
        from toolkit.convert.torch_onnx import ROUTE

        pytest.importorskip("onnxscript")
        ROUTE.convert(program, folder / "model.onnx", signature)
        program = folder / "model.onnx"
    route.convert(program, out, signature)
    return out


@pytest.mark.parametrize("route", [FROM_TORCH, FROM_ONNX], ids=lambda route: route.name)
@pytest.mark.parametrize("net", ["picture_net", "text_net"])
def test_a_converted_network_computes_what_pytorch_computes(request, tmp_path, net, route):
    program, signature, expected, inputs = request.getfixturevalue(net)
    session = RUNTIME.open(convert(route, program, signature, tmp_path), threads=1)
    assert session.signature == signature
    for row in range(N):
        found = session.run({name: column[row : row + 1] for name, column in inputs.items()})
        for name, column in expected.items():
            assert found[name].dtype == column.dtype
            assert sqnr_db(column[row : row + 1], found[name]) > 100, f"{name} of sample {row}"


def test_operators_are_called_after_the_layers_of_the_model(picture_net, tmp_path):
    program, signature, _, _ = picture_net
    contents = READER.read(convert(FROM_TORCH, program, signature, tmp_path))
    assert [(layer.name, layer.operator) for layer in contents.layers] == [
        ("model.body.0/Convolution", "Convolution"),
        ("model.body.3/GroupConvolution", "GroupConvolution"),
        ("model.head/MatMul", "MatMul"),
    ]
    counted = {node.layer: node.macs for node in contents.nodes if node.macs}
    assert counted == {"body.0": 8 * 16 * 27, "body.3": 8 * 16 * 9, "head": 128 * 10}
    assert contents.weight_bytes["float32"] == 4 * (8 * 27 + 8 + 8 * 9 + 8 + 128 * 10 + 10)
    assert contents.arena_bytes is not None and "macs" not in contents.details


class Call:
    """Makes a module that computes what the function says."""

    def __new__(cls, torch, function):
        class Module(torch.nn.Module):
            def forward(self, **named):
                return function(**named)

        return Module()


X = np.array([[1.0, -4.0]], np.float32)


def test_one_value_may_have_two_names_and_an_input_may_be_an_output(torch, tmp_path):
    def function(x):
        return {"first": x * 2, "second": x * 2, "third": x + 1, "fourth": x + 1, "same": x}

    def shared(x):
        y = x * 2
        return {"first": y, "second": y, "same": x}

    for name, compute in (("apart", function), ("shared", shared)):
        folder = tmp_path / name
        folder.mkdir()
        program, signature, expected = capture(folder, Call(torch, compute), x=X)
        out = convert(FROM_TORCH, program, signature, folder)
        session = RUNTIME.open(out, threads=1)
        assert session.signature == signature == READER.read(out).signature
        for key, value in session.run({"x": X}).items():
            np.testing.assert_array_equal(value, expected[key])
        compiled = openvino_ir.library().compile_model(str(out / "model.xml"), "CPU")  # as a user of the file would
        np.testing.assert_array_equal(compiled({"x": X})["second"], X * 2)


def test_names_survive_in_an_order_that_is_not_alphabetic_and_unused_inputs_stay(torch, tmp_path):
    program, signature, expected = capture(
        tmp_path, Call(torch, lambda zed, unused, alpha: {"y": zed - alpha, "b": alpha}), zed=X, unused=X, alpha=X + 1
    )
    session = RUNTIME.open(convert(FROM_TORCH, program, signature, tmp_path), threads=1)
    assert session.signature == signature
    found = session.run({"alpha": X + 1, "zed": X, "unused": X})
    assert {name: value.tolist() for name, value in found.items()} == {name: value.tolist() for name, value in expected.items()}


def test_free_sizes_stay_free_where_the_program_has_them(torch, tmp_path):
    class Net(torch.nn.Module):
        def forward(self, *, x):
            return {"y": torch.relu(x) * 2}

    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.export.save(torch.export.export(Net(), (), kwargs={"x": torch.zeros(3, 4)}, dynamic_shapes=shapes), tmp_path / "model.pt2")
    free = (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),)
    signature = Signature(inputs=free, outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),))
    session = RUNTIME.open(convert(FROM_TORCH, tmp_path / "model.pt2", signature, tmp_path), threads=1)
    assert session.signature.inputs[0].shape == session.signature.outputs[0].shape == ("d0", 4)
    for n in (1, 5, 2):
        np.testing.assert_array_equal(session.run({"x": models.samples(n)})["y"], np.maximum(models.samples(n), 0) * 2)
    with pytest.raises(InputRejected, match=r"expected x \[d0 x 4\] float32"):
        session.run({"x": models.samples(3)[:, :3]})


@pytest.mark.parametrize(("route", "build", "free"), [(FROM_ONNX, models.tiny_onnx, "n"), (FROM_TFLITE, models.tiny_tflite, -1)])
def test_free_sizes_become_those_of_the_signature(tmp_path, route, build, free):
    if plugins.missing_modules(route):
        pytest.skip("not installed")
    program = build(tmp_path / f"model.{route.source}", free)
    x = models.samples(2)
    for name, sizes in (("fixed", [2]), ("free", ["batch"])):
        signature = Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=(*sizes, 4)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(*sizes, 3)),),
        )
        route.convert(program, tmp_path / name, signature)
        session = RUNTIME.open(tmp_path / name, threads=1)
        assert session.signature.inputs[0].shape[0] == (2 if name == "fixed" else "d0")
        np.testing.assert_allclose(session.run({"x": x})["logits"], models.reference(x), atol=1e-6)
    with pytest.raises(StageFailed, match="no such"):
        wrong = Signature(inputs=(TensorSpec(name="no such", dtype="float32", shape=(1, 4)),), outputs=signature.outputs)
        route.convert(program, tmp_path / "wrong", wrong)


def test_tflite_files_without_a_signature_keep_their_tensors_names(tmp_path):
    pytest.importorskip("ai_edge_litert")
    program = models.tiny_tflite(tmp_path / "model.tflite", signature=False)
    signature = Signature(
        inputs=(TensorSpec(name="x_0", dtype="float32", shape=(1, 4)),), outputs=(TensorSpec(name="y_0", dtype="float32", shape=(1, 3)),)
    )
    FROM_TFLITE.convert(program, tmp_path / "model", signature)
    session = RUNTIME.open(tmp_path / "model", threads=1)
    assert session.signature == signature
    np.testing.assert_allclose(session.run({"x_0": models.samples(1)})["y_0"], models.reference(models.samples(1)), atol=1e-6)


def test_another_process_writes_the_same_bytes_whatever_it_did_before(picture_net, text_net, tmp_path):
    (program, signature, _, _), (other, other_signature, _, _) = picture_net, text_net
    out = convert(FROM_TORCH, program, signature, tmp_path)
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from toolkit.artifact import Signature
        from toolkit.convert.torch_openvino import ROUTE
        for program, out, signature in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
            ROUTE.convert(Path(program), Path(out), Signature.model_validate_json(signature))
        """
    )
    jobs = [(other, tmp_path / "other", other_signature), (program, tmp_path / "again", signature)]
    arguments = [str(part) for one in jobs for part in (*one[:2], one[2].model_dump_json())]
    subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, check=True, capture_output=True)
    assert modelfile.sha256(tmp_path / "again") == modelfile.sha256(out)
    xml = (out / "model.xml").read_text()
    assert "Runtime" not in xml and "conversion_parameters" not in xml and str(tmp_path) not in xml
    assert "<rt_info>" not in xml.split("</edges>")[1]


def test_nothing_is_sent_and_nothing_is_written_to_the_home(tmp_path):
    script = textwrap.dedent(
        """
        import json, sys
        from toolkit import openvino_ir
        openvino = openvino_ir.library()
        from openvino.tools.ovc import convert_impl, telemetry_utils
        print(json.dumps([telemetry_utils.tm.__name__, convert_impl.tm.__name__, [name for name in sys.modules if "openvino_telemetry" in name]]))
        """
    )
    home = tmp_path / "home"
    home.mkdir()
    given = {**os.environ, "HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=given, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == ["openvino.tools.ovc.telemetry_stub", "openvino.tools.ovc.telemetry_stub", []]
    assert list(home.rglob("*")) == []


def test_an_operator_without_counterpart_is_named_with_its_layer(torch, tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Odd()

        def forward(self, x):
            return self.odd(x * 2)

    program, signature, _ = capture(tmp_path, Net(), x=X)
    with pytest.raises(StageFailed, match=r"no counterpart for aten\.special_bessel_j0 in layer 'odd'") as caught:
        convert(FROM_TORCH, program, signature, tmp_path)
    assert "\n" not in caught.value.message and len(caught.value.message) < 400
    assert not (tmp_path / "model.openvino").exists()


def test_an_operator_that_only_splitting_reveals_has_its_layer_too(torch, tmp_path):
    class Solver(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x.reshape(-1, 2, 2) + torch.eye(2))

    program, signature, _ = capture(tmp_path, torch.nn.Sequential(torch.nn.Linear(4, 4), Solver()), x=np.ones((2, 4), np.float32))
    with pytest.raises(StageFailed, match=r"no counterpart for aten\.linalg_inv_ex in layer '1'"):
        convert(FROM_TORCH, program, signature, tmp_path)


@pytest.mark.parametrize("route", [FROM_TORCH, FROM_ONNX, FROM_TFLITE], ids=lambda route: route.name)
def test_a_damaged_program_is_refused(tmp_path, route):
    if plugins.missing_modules(route):
        pytest.skip("not installed")
    for number, content in enumerate((b"", b"PK\x03\x04", b"not a program", b"\x1c\0\0\0TFL3" + b"\xff" * 90)):
        program = tmp_path / f"{number}.{route.source}"
        program.write_bytes(content)
        with pytest.raises(InputRejected):
            route.convert(program, tmp_path / "out", Signature(inputs=specs({"x": X}), outputs=specs({"y": X})))


def test_sums_get_operands_of_equal_rank(tmp_path):
    """OpenVINO 2026.4 ends the process on some where they differ."""
    openvino_ir.library()
    from openvino import Model, opset1

    x = opset1.parameter([1, 8, 4], np.float32, name="x")
    flat = opset1.matmul(opset1.reshape(x, np.array([8, 4]), False), np.eye(4, dtype=np.float32), False, False)
    model = Model([opset1.add(x, opset1.relu(flat))], [x], "sums")
    openvino_ir.rename(model, ["x"], ["y"])
    openvino_ir.write(model, tmp_path / "model")
    (graph, *_), _ = openvino_graph.read_graphs(tmp_path / "model" / "model.xml", (tmp_path / "model" / "model.bin").stat().st_size)
    (add,) = graph.of_kind("Add")
    assert [graph.tensors[key].shape for key in add.inputs] == [(1, 8, 4), (1, 8, 4)]
    given = np.random.default_rng(0).normal(size=(1, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(RUNTIME.open(tmp_path / "model", threads=1).run({"x": given})["y"], given + np.maximum(given, 0), rtol=1e-6)


def test_another_element_type_is_refused_rather_than_converted(tmp_path):
    session = RUNTIME.open(folders.tiny_openvino(tmp_path / "model"), threads=1)
    for wrong in (np.float64, np.float16, np.int32):
        with pytest.raises(InputRejected, match=r"expected x \[1 x 4\] float32"):
            session.run({"x": models.samples(1).astype(wrong)})
    with pytest.raises(InputRejected, match=r"\[4\] float32"):
        session.run({"x": models.samples(1)[0]})  # NumPy would stretch it


def test_it_computes_in_float32_with_the_threads_that_it_was_given(tmp_path):
    session = RUNTIME.open(folders.tiny_openvino(tmp_path / "model"), threads=2)
    compiled = session._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert (compiled.get_property("INFERENCE_NUM_THREADS"), compiled.get_property("NUM_STREAMS")) == (2, 1)


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "model.openvino").write_bytes(b"<net>")
    for read in (lambda path: RUNTIME.open(path, threads=1), READER.read):
        with pytest.raises(InputRejected):
            read(tmp_path / "model.openvino")


def test_a_free_batch_is_read_and_run(tmp_path):
    model = folders.tiny_openvino(tmp_path / "model", batch=-1)
    session = RUNTIME.open(model, threads=1)
    assert session.signature == READER.read(model).signature
    assert session.signature.inputs[0].shape == ("d0", 4)
    for n in (4, 1):
        np.testing.assert_allclose(session.run({"x": models.samples(n)})["logits"], models.reference(models.samples(n)), atol=1e-6)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><net name="&b;" version="11"><layers/></net>'
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "declares a document type"),
        ("<net>" + "<a>" * 100 + "</a>" * 100 + "</net>", "deep"),
        ("<model/>", "root element"),
        ('<net version="11"><layers/><edges/></net>', "no outputs"),
        ('<net><layers><layer id="0" name="x" type="ReLU"><input><port id="0"/></input></layer></layers></net>', "no edge leads"),
    ],
)
def test_the_reader_refuses_hostile_xml(tmp_path, text, reason):
    model = folders.tiny_openvino(tmp_path / "model")
    (model / "model.xml").write_text(text)
    with pytest.raises(InputRejected, match=reason):
        READER.read(model)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ('offset="48"', 'offset="60"', "model.bin has"),
        ('offset="0"', 'offset="-8"', "model.bin has"),
        ('shape="4, 3"', 'shape="4, 5"', "do not fit"),
        ('from-layer="4"', 'from-layer="44"', "which there is not"),
        ('from-port="2"', 'from-port="9"', "which there is not"),
    ],
)
def test_reader_and_runtime_refuse_what_contradicts_itself(tmp_path, before, after, reason):
    model = folders.tiny_openvino(tmp_path / "model")
    text = (model / "model.xml").read_text()
    assert before in text
    (model / "model.xml").write_text(text.replace(before, after))
    with pytest.raises(InputRejected, match=reason):
        READER.read(model)
    with pytest.raises(InputRejected):
        RUNTIME.open(model, threads=1)


def quantized(folder, activations):
    """Builds what NNCF writes: weights as int8 with a scale, and perhaps activations behind ``FakeQuantize``."""
    openvino_ir.library()
    from openvino import Model, opset1

    x = opset1.parameter([1, 4], np.float32, name="x")
    weights = opset1.constant(np.arange(12, dtype=np.int8).reshape(4, 3))
    scaled = opset1.multiply(opset1.convert(weights, "f32"), np.full((1, 3), 0.1, np.float32))
    data = opset1.fake_quantize(x, *map(np.float32, (-4, 3.96875, -4, 3.96875)), 256) if activations else x
    model = Model([opset1.matmul(opset1.reshape(data, np.array([1, 4]), False), scaled, False, False)], [x], "quantized")
    openvino_ir.rename(model, ["x"], ["y"])
    openvino_ir.write(model, folder)
    return folder


@pytest.mark.parametrize(("activations", "scheme"), [(True, "static_wi8_ai8"), (False, "weight_only_wi8")])
def test_quantized_files_are_told_by_their_bytes(tmp_path, activations, scheme):
    model = quantized(tmp_path / "model", activations)
    contents = READER.read(model)
    assert classify(contents) == scheme
    (layer,) = contents.layers
    assert (layer.weight_dtype, layer.activation_dtype, layer.weight_bytes) == ("int8", "int8" if activations else "float32", 12)
    assert contents.weight_bytes["int8"] == 12 and contents.details["quantized_tensors"] == str(int(activations))
    (product,) = (node for node in contents.nodes if node.macs)
    assert (product.macs, product.dtype) == (12, "int8" if activations else "float32")
    x = np.array([[0.5, 1, -2, 3]], np.float32)
    np.testing.assert_allclose(RUNTIME.open(model, threads=1).run({"x": x})["y"], x @ np.arange(12).reshape(4, 3) * 0.1, atol=1e-4)


def test_the_reader_agrees_with_openvino_about_operators_and_weights(text_net, tmp_path):
    program, signature, _, _ = text_net
    out = convert(FROM_TORCH, program, signature, tmp_path)
    model = openvino_ir.library().Core().read_model(str(out / "model.xml"))
    kinds = {"Relu": "ReLU"}  # the file's spelling
    expected: dict[str, int] = {}
    stored: dict[str, int] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Constant":
            stored[node.get_element_type().get_type_name()] = stored.get(node.get_element_type().get_type_name(), 0) + node.get_byte_size()
        elif kind not in ("Parameter", "Result"):
            expected[kinds.get(kind, kind)] = expected.get(kinds.get(kind, kind), 0) + 1
    contents = READER.read(out)
    assert contents.operators == expected
    assert contents.weight_bytes["float32"] <= stored["f32"]  # equal ones are stored once
    assert contents.weight_bytes["float32"] >= 4 * (50 * 16 + 3 * 16 * 16 + 16 * 16 + 2 * 16 * 32 + 16 * 3)
    attention = next(node for node in contents.nodes if node.operator == "ScaledDotProductAttention")
    assert (attention.macs, attention.layer) == (2 * 8 * 8 * (8 + 8), "block.self_attn")
