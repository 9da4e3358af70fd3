"""Files that lie: every one must be an InputRejected, and none may crash, hang or run code."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit import intake, modelfile, plugins
from toolkit.contents import Contents
from toolkit.errors import InputRejected

RELAXED = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def onnx_bytes():
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.arange(64, dtype=np.int8).reshape(8, 8), "w")
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"]), helper.make_node("MatMul", ["x", "d"], ["y"], name="dense")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight, scale])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], producer_name="test").SerializeToString()


def tflite_bytes():
    """One FULLY_CONNECTED layer, packed with the schema's object API."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    import flatbuffers

    def tensor(name, dtype, shape, buffer):
        made = schema.TensorT()
        made.name, made.type, made.shape, made.buffer = name, dtype, shape, buffer
        return made

    def buffer(data=None):
        made = schema.BufferT()
        made.data = data
        return made

    operator, code, graph, model = schema.OperatorT(), schema.OperatorCodeT(), schema.SubGraphT(), schema.ModelT()
    operator.inputs, operator.outputs = [0, 1], [2]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    kinds = schema.TensorType
    graph.tensors = [tensor("x", kinds.FLOAT32, [1, 8], 0), tensor("w", kinds.INT8, [8, 8], 1), tensor("y", kinds.FLOAT32, [1, 8], 0)]
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [2]
    model.version, model.description, model.operatorCodes, model.subgraphs = 3, "test", [code], [graph]
    model.buffers = [buffer(), buffer(np.arange(64, dtype=np.uint8))]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def tensor_pickle(imports=("torch._utils", "_rebuild_tensor_v2")):
    return b"\x80\x02c" + "\n".join(imports).encode() + b"\nq\x00."


def call(target):
    return {"target": target, "inputs": [], "outputs": []}


def pt2_bytes(extra=None, *, program=None, format=b"pt2", config=None, graph=None):
    """The layout that torch.export.save writes, without torch."""
    sample = io.BytesIO()
    with zipfile.ZipFile(sample, "w") as archive:
        archive.writestr("archive/data.pkl", program or tensor_pickle())
    members = {
        "m/archive_format": format,
        "m/models/model.json": json.dumps(
            graph or {"nodes": [call("torch.ops.aten.relu.default")], "sizes": [{"expr_str": "2*s0 + Max(1, s27//2)"}]}
        ),
        "m/data/weights/model_weights_config.json": json.dumps(config or {"config": {"w": {"use_pickle": False}}}),
        "m/data/sample_inputs/model.pt": sample.getvalue(),
        **(extra or {}),
    }
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return made.getvalue()


MAKERS = {".onnx": onnx_bytes, ".tflite": tflite_bytes, ".pt2": pt2_bytes}
SUFFIXES = tuple(MAKERS)


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def rejected(path, match=None, **options):
    with pytest.raises(InputRejected, match=match) as caught:
        intake.check_model(path, **options)
    assert caught.value.hint and str(path.name) in caught.value.where
    return caught.value


# --- any format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_good_files_pass(tmp_path, suffix):
    assert intake.check_model(write(tmp_path, f"m{suffix}", MAKERS[suffix]())) == suffix[1:]
    assert intake.check_model(write(tmp_path, f"M{suffix.upper()}", MAKERS[suffix]())) == suffix[1:]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_empty_and_folder(tmp_path, suffix):
    rejected(tmp_path / f"none{suffix}", "does not exist")
    rejected(write(tmp_path, f"empty{suffix}", b""), "is empty")
    (tmp_path / f"folder{suffix}").mkdir()
    rejected(tmp_path / f"folder{suffix}", "not a regular file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    rejected(tmp_path / "m.onnx", "not a regular file")


def test_size_limit(tmp_path):
    path = write(tmp_path, "m.onnx", onnx_bytes())
    rejected(path, "the limit is 10", max_bytes=10)
    assert intake.check_model(path, max_bytes=path.stat().st_size) == "onnx"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("other", SUFFIXES)
def test_suffix_lies(tmp_path, suffix, other):
    path = write(tmp_path, f"m{suffix}", MAKERS[other]())
    if suffix == other:
        assert intake.check_model(path) == suffix[1:]
    else:
        rejected(path, f"is not a usable {suffix[1:]} file")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "data",
    [b"\0" * 64, b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60, b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid"],
    ids=range(5),
)
def test_garbage(tmp_path, suffix, data):
    rejected(write(tmp_path, f"m{suffix}", data))


def test_unknown_suffix_needs_a_format(tmp_path):
    path = write(tmp_path, "m.xyz", b"anything")
    error = rejected(path, "unknown suffix '.xyz'")
    assert ".onnx, .tflite, .pt2" in error.message
    assert intake.check_model(path, "xyz") == "xyz"
    rejected(write(tmp_path, "e.xyz", b""), "is empty", format="xyz")


def test_a_given_format_is_checked_whatever_the_suffix(tmp_path):
    rejected(write(tmp_path, "m.xyz", b"not onnx"), format="onnx")
    assert intake.check_model(write(tmp_path, "good.xyz", onnx_bytes()), "onnx") == "onnx"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".ckpt"])
def test_formats_that_run_code_are_refused(tmp_path, suffix):
    error = rejected(write(tmp_path, f"m{suffix}", pickle.dumps({"a": 1})), "runs code from the file")
    assert "export" in error.hint or "convert" in error.hint


# --- ONNX -------------------------------------------------------------------------------------------------------------


def test_truncated_onnx_is_caught_everywhere(tmp_path):
    data = onnx_bytes()
    for cut in sorted({len(data) * part // 32 for part in range(32)} | set(range(len(data)))):
        rejected(write(tmp_path, "m.onnx", data[:cut]))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x08\x07", "has no graph"),
        (b"\x3a\x00", "has no opset_import"),
        (b"\x3a\xff\xff\xff\xff\x7f", "are left; the file is truncated"),
        (b"\x3a" + b"\xff" * 11, "longer than 10 bytes"),
        (b"\x18\x01", "field 3 with wire type 0"),
        (b"\x08\x07" * 200_002, "more than 200,000"),
    ],
)
def test_onnx_wire_format(tmp_path, data, match):
    rejected(write(tmp_path, "m.onnx", data), match)


def test_onnx_fields_are_those_of_the_installed_schema():
    onnx = pytest.importorskip("onnx")
    wires = {
        onnx_field.number: 0 if onnx_field.cpp_type != onnx_field.CPPTYPE_MESSAGE and onnx_field.cpp_type != onnx_field.CPPTYPE_STRING else 2
        for onnx_field in onnx.ModelProto.DESCRIPTOR.fields
    }
    assert wires.items() <= intake._ONNX_FIELDS.items()


# --- TFLite -----------------------------------------------------------------------------------------------------------


def test_tflite_marks(tmp_path):
    data = tflite_bytes()
    rejected(write(tmp_path, "m.tflite", data[:4] + b"TFL2" + data[8:]), "expected b'TFL3'")
    rejected(write(tmp_path, "m.tflite", struct.pack("<I", len(data) - 3) + data[4:]), "root table")
    rejected(write(tmp_path, "m.tflite", data[:7]), "expected b'TFL3'")


def test_truncated_tflite_is_caught_by_the_reader(tmp_path):
    data = tflite_bytes()
    reader = plugins.reader("tflite")
    assert reader.read(write(tmp_path, "m.tflite", data)).layers[0].activation_dtype == "dynamic int8"
    outcomes = [outcome(reader, write(tmp_path, "m.tflite", data[:cut])) for cut in range(len(data))]
    # The last bytes may be padding or the end of a vtable that nothing reads.
    assert all(outcomes[: len(data) * 31 // 32])


# --- PT2 --------------------------------------------------------------------------------------------------------------


def test_truncated_pt2_is_caught_everywhere(tmp_path):
    data = pt2_bytes()
    for cut in range(1, len(data), 7):
        rejected(write(tmp_path, "m.pt2", data[:cut]))


@pytest.mark.parametrize("name", ["m/../../evil", "/evil", "m/..", "..\\evil", "C:/evil"])
def test_pt2_members_stay_inside(tmp_path, name):
    rejected(write(tmp_path, "m.pt2", pt2_bytes({name: b"x"})), "unpacked outside")


def test_pt2_that_unpacks_to_far_more(tmp_path):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/archive_format", b"pt2")
        archive.writestr("m/bomb", b"\0" * 10_000_000)
    rejected(write(tmp_path, "m.pt2", made.getvalue()), "unpacks to 10,000,003 bytes")


def test_pt2_with_a_wrong_checksum(tmp_path):
    data = pt2_bytes({"m/data/weights/weight_0": b"WEIGHTS" * 9})
    rejected(write(tmp_path, "m.pt2", data.replace(b"WEIGHTS", b"weights")), "checksum of member 'm/data/weights/weight_0'")


@pytest.mark.parametrize(
    ("made", "match"),
    [
        ({"extra": {"m/data/constants/opaque_obj_0": b"x"}}, "pickled object"),
        ({"extra": {"m/data/constants/custom_obj_0": b"x"}}, "pickled object"),
        ({"extra": {"m/data/aotinductor/model/a.so": b"x"}}, "compiled code"),
        ({"extra": {"version": b"1"}}, "one top folder"),
        ({"config": {"config": {"w": {"use_pickle": True}}}}, "tensors are pickled"),
        ({"config": {"config": {"w": {}}}}, "tensors are pickled"),
        ({"config": {"config": []}}, "not a table"),
        ({"format": b"pt3"}, "no archive_format"),
        ({"program": tensor_pickle(("os", "system"))}, "imports os system"),
        ({"program": tensor_pickle(("torch", "hub.load"))}, "imports torch hub.load"),
        ({"program": b"\x80\x04\x8c\x02os\x8c\x06system\x93."}, "imports STACK_GLOBAL"),
        ({"program": b"garbage"}, "damaged"),
        ({"graph": {"nodes": [call("torch.hub.load")]}}, "'torch.hub.load', which can run code"),
        ({"graph": {"nodes": [call("torch.ops.os.system.x.y")]}}, "can run code"),
        ({"graph": {"nodes": [call("_operator.methodcaller")]}}, "can run code"),
        ({"graph": {"nodes": [call(["torch"])]}}, "can run code"),
        ({"graph": [[{"expr_str": "__import__('os').getpid()"}]]}, "can run code"),
        ({"graph": {"a": {"expr_str": "exec(s0)"}}}, "can run code"),
        ({"graph": {"a": {"expr_str": "s0.__class__"}}}, "can run code"),
        ({"graph": {"a": {"expr_str": "Symbol('s0', x=open('f'))"}}}, "can run code"),
        ({"graph": {"a": {"expr_str": "1" * 50_000 + "!"}}}, "can run code"),
        ({"extra": {"m/models/model.json": b"["}}, "is not JSON"),
    ],
)
def test_pt2_that_could_run_code(tmp_path, made, match):
    rejected(write(tmp_path, "m.pt2", pt2_bytes(**made)), match)


def test_two_members_of_one_name(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = io.BytesIO(pt2_bytes())
        with zipfile.ZipFile(made, "a") as archive:
            archive.writestr("m/models/model.json", b"other")
    rejected(write(tmp_path, "m.pt2", made.getvalue()), "share one name")


def test_a_torch_checkpoint_named_pt2(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt2")
    rejected(tmp_path / "m.pt2", "no archive_format")


# --- paths ------------------------------------------------------------------------------------------------------------


def test_inside(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "a")
    assert intake.inside(root, "a/b") == (root / "a/b").resolve()
    assert intake.inside(root, "in/b") == (root / "a/b").resolve()
    assert intake.inside(root, root / "a") == (root / "a").resolve()
    for escape in ("..", "a/../../x", "out/x", "/etc/passwd", Path("/"), f"../{root.name}-other", "\0"):
        with pytest.raises(InputRejected) as caught:
            intake.inside(root, escape)
        assert caught.value.hint


def test_inside_survives_a_loop_of_links(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    try:
        intake.inside(tmp_path, "loop/x")
    except InputRejected as error:
        assert "usable path" in error.message


def test_sha256_of_a_missing_file(tmp_path):
    with pytest.raises(InputRejected, match="cannot be read"):
        modelfile.sha256_file(tmp_path / "none")


# --- anything at all --------------------------------------------------------------------------------------------------


def outcome(reader, path):
    """Whether the file was refused; any other exception is a finding."""
    try:
        intake.check_model(path)
        assert isinstance(reader.read(path), Contents)
    except InputRejected as error:
        assert error.message
        return True
    return False


@pytest.mark.parametrize("suffix", SUFFIXES)
@RELAXED
@given(data=st.binary(min_size=1, max_size=300))
def test_random_bytes(tmp_path, suffix, data):
    path = write(tmp_path, f"m{suffix}", data)
    try:
        assert intake.check_model(path) == suffix[1:]
    except InputRejected as error:
        assert error.message and error.hint


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
@RELAXED
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=6))
def test_flipped_bytes_never_surprise_a_reader(tmp_path, suffix, flips):
    outcome(plugins.reader(suffix[1:]), write(tmp_path, f"m{suffix}", flipped(MAKERS[suffix](), flips)))


@RELAXED
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=6))
def test_flipped_bytes_never_surprise_the_archive_check(tmp_path, flips):
    path = write(tmp_path, "m.pt2", flipped(pt2_bytes(), flips))
    try:
        assert intake.check_model(path) == "pt2"
    except InputRejected as error:
        assert error.message


def flipped(data, flips):
    damaged = bytearray(data)
    for position, mask in flips:
        damaged[position % len(damaged)] ^= mask
    return bytes(damaged)
