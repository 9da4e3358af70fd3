"""Programs that would run code when PyTorch loads them must be refused before it does; each attack leaves a mark if it works."""

import io
import json
import os
import pickle
import zipfile

import pytest

from tests import models
from toolkit import intake
from toolkit.errors import InputRejected
from toolkit.runtimes.torch import RUNTIME

torch = pytest.importorskip("torch")


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def torch_pickle(mark):
    buffer = io.BytesIO()
    torch.save(Payload(mark), buffer)
    return buffer.getvalue()


def sample_inputs(name, data, mark):
    return [(name, torch_pickle(mark) if name.endswith("sample_inputs/model.pt") else data)]


def pickled_weight(name, data, mark):
    if name.endswith("model_weights_config.json"):
        table = json.loads(data)
        table["config"]["linear.weight"]["use_pickle"] = True
        data = json.dumps(table).encode()
    return [(name, torch_pickle(mark) if name.endswith("weights/weight_0") else data)]


def opaque_constant(name, data, mark):
    if not name.endswith("model_constants_config.json"):
        return [(name, data)]
    table = {"config": {"c": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}}
    return [(name, json.dumps(table).encode()), (name.replace("model_constants_config.json", "opaque_obj_0"), pickle.dumps(Payload(mark)))]


def size_expression(name, data, mark):
    if name.endswith("models/model.json"):
        program = json.loads(data)
        sizes = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": f"__import__('os').mkdir({mark!r})", "hint": None}}
        data = json.dumps(program).encode()
    return [(name, data)]


def call_target(name, data, mark):
    if name.endswith("models/model.json"):
        program = json.loads(data)
        program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.mkdir"
        data = json.dumps(program).encode()
    return [(name, data)]


ATTACKS = [sample_inputs, pickled_weight, opaque_constant, size_expression, call_target]


def attacked(folder, attack):
    """Writes a program with one member changed; returns it with the folder that a successful attack makes."""
    mark = folder / "mark"
    with zipfile.ZipFile(models.tiny_pt2(folder / "good.pt2")) as good, zipfile.ZipFile(folder / "bad.pt2", "w") as bad:
        for name in good.namelist():
            for member, data in attack(name, good.read(name), str(mark)):
                bad.writestr(member, data)
    return folder / "bad.pt2", mark


@pytest.mark.parametrize("attack", ATTACKS)
def test_code_in_a_program_is_refused_and_not_run(tmp_path, attack):
    program, mark = attacked(tmp_path, attack)
    with pytest.raises(InputRejected, match=r"run|pickle"):
        RUNTIME.open(program, threads=1)
    assert not mark.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "exec(chr(112))",
        "s0.__class__",
        "Symbol('s0').func('x')",
        "[s0][0]",
        "Symbol('__import__(1)')",
        "(lambda: 1)()",
        "s0 if s0 else s1",
        7,
    ],
)
def test_size_expressions_that_are_more_than_arithmetic_are_refused(expression):
    assert intake._suspect({"expr_str": expression})


@pytest.mark.parametrize(
    "expression", ["s77", "4*s0 + 1", "-(s0 // 2)", "Symbol('s77', positive=True, integer=True)", "Mul(Integer(2), Symbol('s0'))"]
)
def test_plain_size_expressions_are_accepted(expression):
    assert not intake._suspect({"expr_str": expression})


def test_the_unchanged_program_is_accepted(tmp_path):
    program, _ = attacked(tmp_path, lambda name, data, mark: [(name, data)])
    assert RUNTIME.open(program, threads=1).signature.outputs[0].name == "logits"
