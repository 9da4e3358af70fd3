"""Keras files made to run code, to read other files, to fill the disk, or simply broken: each must be refused before Keras sees it."""

import io
import json
import zipfile

import numpy as np
import pytest

from toolkit import intake, intake_keras
from toolkit.errors import InputRejected

h5py = pytest.importorskip("h5py")

DENSE = {"module": "keras.layers", "class_name": "Dense", "config": {"name": "dense", "units": 2}, "registered_name": None}


def model(*layers, **fields):
    config = {"name": "sequential", "layers": list(layers)}
    return {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": "Sequential", **fields}


def layer(class_name, module="keras.layers", registered_name=None, **config):
    return {"module": module, "class_name": class_name, "config": {"name": "odd", **config}, "registered_name": registered_name}


def weights(change=None):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.ones((3, 2), np.float32))
        if change:
            change(file)
    return buffer.getvalue()


def archive(path, config=None, members=None, compression=zipfile.ZIP_STORED):
    parts = {"metadata.json": b"{}", "config.json": json.dumps(model(DENSE) if config is None else config).encode(), "model.weights.h5": weights()}
    parts.update(members or {})
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in parts.items():
            if data is not None:
                file.writestr(name, data)
    return path


def legacy(path, config, change=None):
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config).encode()
        file.create_dataset("model_weights/dense/kernel", data=np.ones((3, 2), np.float32))
        if change:
            change(file)
    return path


def refused(path, *words):
    with pytest.raises(InputRejected) as caught:
        intake.check_model(path)
    text = f"{caught.value}"
    assert all(word in text for word in words), text
    assert caught.value.hint
    assert len(text) < 700


def test_sound_files_pass(tmp_path):
    assert intake.check_model(archive(tmp_path / "a.keras")) == "keras"
    assert intake.check_model(legacy(tmp_path / "a.h5", {"class_name": "Sequential", "config": [{"class_name": "Dense", "config": {}}]})) == "h5"
    assert intake.check_model(legacy(tmp_path / "a.hdf5", {"class_name": "Sequential", "config": []})) == "h5"


CODE = {"class_name": "__lambda__", "config": {"code": "4wEAAAAA", "defaults": None, "closure": None}}
NETWORK = {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "get_file"}
ATTACKS = {
    "lambda layer": (layer("Lambda", function=CODE), "Lambda layer"),
    "lambda of a named function": (layer("Lambda", function=NETWORK), "Lambda layer"),
    "lambda registered as something else": (layer("Lambda", module="keras.src.layers.core.lambda_layer", registered_name="Dense"), "Lambda layer"),
    "lambda in a wrapper": (layer("TimeDistributed", layer=layer("Lambda", function=CODE)), "Lambda layer"),
    "byte code as an activation": (layer("Dense", activation=CODE), "byte code"),
    "byte code far inside": (layer("RNN", cell={"a": [{"b": [CODE]}]}), "byte code"),
    "own class": (layer("Scale", module="my.package", registered_name="my>Scale"), "my.package.Scale"),
    "own class without a module": (layer("Scale", module=None, registered_name="Scale"), "Scale"),
    "own class in disguise": (layer("Dense", registered_name="my>Dense"), "outside of the file"),
    "own function": (
        layer("Dense", activation={"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}),
        "os.system",
    ),
    "download": (layer("Dense", activation=NETWORK), "get_file"),
    "loading another file": (
        layer("Dense", activation={"module": "keras.saving", "class_name": "function", "config": "load_model", "registered_name": "f"}),
        "load_model",
    ),
    "turning the checks off": (
        layer("Dense", activation={"module": "keras.config", "class_name": "function", "config": "enable_unsafe_deserialization"}),
        "enable_unsafe_deserialization",
    ),
    "module that only starts like Keras": (layer("Dense", module="keras_evil.layers"), "keras_evil"),
    "module path through layers": (layer("Popen", module="keras.layers/../subprocess"), "Popen"),
    "pickled torch module": (layer("TorchModuleWrapper", module={"class_name": "__bytes__", "config": {"value": "gASV"}}), "pickle"),
    "SavedModel by path": (layer("TFSMLayer", filepath="/etc"), "SavedModel"),
    "file read as a vocabulary": (layer("StringLookup", vocabulary="/etc/passwd"), "/etc/passwd"),
    "compiled part inside": ({**DENSE, "compile_config": {"loss": layer("Evil", module="evil")}}, "evil.Evil"),
    "class name that is no text": ({"class_name": ["Lambda"], "config": {}}, "no text"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_code_is_refused_in_both_formats_and_at_any_depth(name, tmp_path):
    attack, words = ATTACKS[name]
    nested = model(model(DENSE, model(attack)))
    refused(archive(tmp_path / "direct.keras", model(DENSE, attack)), words)
    refused(archive(tmp_path / "nested.keras", nested), words)
    refused(legacy(tmp_path / "nested.h5", nested), words)


def test_keras_2_files_are_judged_by_their_class_names(tmp_path):
    for name, words in (("Lambda", "Lambda layer"), ("TFOpLambda", "Keras 2"), ("my>Scale", "outside of the file")):
        refused(
            legacy(tmp_path / "a.h5", {"class_name": "Functional", "config": {"layers": [{"class_name": name, "config": {"name": "odd"}}]}}), words
        )


def test_how_the_model_was_compiled_does_not_matter(tmp_path):
    own = {"loss": layer("MyLoss", module="my.package", registered_name="my>MyLoss")}
    assert intake.check_model(archive(tmp_path / "a.keras", model(DENSE, compile_config=own))) == "keras"


@pytest.mark.parametrize(
    "member", ["../config.json", "/etc/cron.d/x", "a/../../x", "c:evil", "\\\\server\\x", "evil.py", "assets/../../x", "pickle.pkl", "__init__.py"]
)
def test_members_that_do_not_belong_are_refused(member, tmp_path):
    refused(archive(tmp_path / "a.keras", members={member: b"x"}), "member")


def test_links_doubles_bombs_and_what_is_missing(tmp_path):
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = 0o120777 << 16
    path = archive(tmp_path / "link.keras")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/etc/passwd")
    refused(path, "outside")
    path = archive(tmp_path / "double.keras")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("config.json", b"{}")
    refused(path, "share one name")
    refused(archive(tmp_path / "bomb.keras", members={"assets/zeros": b"\0" * (64 << 20)}, compression=zipfile.ZIP_DEFLATED), "unpacks to")
    refused(archive(tmp_path / "none.keras", members={"config.json": None}), "lacks config.json")
    refused(archive(tmp_path / "weightless.keras", members={"model.weights.h5": None}), "lacks")
    refused(archive(tmp_path / "text.keras", members={"config.json": b"[1, 2]"}), "names no class")
    refused(archive(tmp_path / "broken.keras", members={"config.json": b"{"}), "not JSON")
    refused(archive(tmp_path / "deep.keras", members={"config.json": b'{"a":' * 200_000}), "not JSON")


def test_weights_may_not_lead_to_other_files(tmp_path):
    def external(file):
        file["secret"] = h5py.ExternalLink("/etc/passwd", "/x")

    def soft(file):
        file["loop"] = h5py.SoftLink("/loop")

    def stored_outside(file):
        file.create_dataset("outside", (16,), np.uint8, external=[("/etc/passwd", 0, 16)])

    def virtual(file):
        layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
        layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", shape=(4,))
        file.create_virtual_dataset("virtual", layout)

    def objects(file):
        file.create_dataset("text", data=np.array(["a"], dtype=object), dtype=h5py.string_dtype())

    def huge(file):
        file.create_dataset("huge", (1 << 34,), np.float32, chunks=(1 << 20,))

    for change, words in (
        (external, "link"),
        (soft, "link"),
        (stored_outside, "outside"),
        (virtual, "outside"),
        (objects, "outside"),
        (huge, "claim"),
    ):
        refused(archive(tmp_path / "a.keras", members={"model.weights.h5": weights(change)}), words)
        refused(legacy(tmp_path / "a.h5", model(DENSE), change), words)
    refused(archive(tmp_path / "pickle.keras", members={"model.weights.h5": b"\x80\x04junk" * 20}), "HDF5")


def test_weights_only_files_say_what_to_do(tmp_path):
    with pytest.raises(InputRejected, match="weights only") as caught:
        intake.check_model(legacy(tmp_path / "a.weights.h5", None))
    assert "model.save" in caught.value.hint


def test_truncated_and_flipped_files_are_refused_or_read(tmp_path):
    rng = np.random.default_rng(0)
    for original in (archive(tmp_path / "a.keras"), legacy(tmp_path / "a.h5", model(DENSE))):
        data = original.read_bytes()
        damaged = original.with_stem("damaged")
        for size in range(0, len(data) - 1, max(1, len(data) // 40)):
            damaged.write_bytes(data[:size])
            with pytest.raises(InputRejected):
                intake.check_model(damaged)
        for _ in range(150):
            flipped = bytearray(data)
            flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
            damaged.write_bytes(flipped)
            try:
                intake.check_model(damaged)
            except InputRejected as error:
                assert error.message and error.hint


def test_foreign_parts_of_a_sound_model_are_none():
    keras_op = {"module": "keras.src.ops.numpy", "class_name": "Add", "config": {"name": "add"}, "registered_name": "Add"}
    function = {"module": "builtins", "class_name": "function", "config": "gelu", "registered_name": "function"}
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
    assert not list(intake_keras.foreign_parts(model(keras_op, layer("Dense", activation=function, dtype=policy))))
