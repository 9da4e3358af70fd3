"""Damaged and lying ``.jax`` files: every one is an InputRejected, and none runs code that the file chose."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit import intake, jax_programs
from toolkit.errors import InputRejected

jax = pytest.importorskip("jax")
RELAXED = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    from jax import export

    exported = export.export(jax.jit(lambda x: (jax.numpy.tanh(x),)), platforms=("cpu",))(jax.ShapeDtypeStruct((1, 4), np.float32))
    path = tmp_path_factory.mktemp("jax") / "good.jax"
    jax_programs.save(jax_programs.Program(exported, ("x",), ("y",)), path)
    return path.read_bytes()


def packed(body, **changes):
    header = json.dumps({"inputs": ["x"], "outputs": ["y"], "sha256": hashlib.sha256(body).hexdigest()} | changes).encode()
    return intake.JAX_MAGIC + len(header).to_bytes(8, "little") + header + body


def body_of(good):
    start = len(intake.JAX_MAGIC) + 8
    return good[start + int.from_bytes(good[start - 8 : start], "little") :]


def refused(data, folder):
    path = folder / "model.jax"
    path.write_bytes(data)
    with pytest.raises(InputRejected) as caught:
        jax_programs.load(path)
    assert caught.value.message and caught.value.hint
    return caught.value.message


@RELAXED
@given(cut=st.floats(0, 0.999))
def test_truncated_files(good, tmp_path, cut):
    refused(good[: int(len(good) * cut)], tmp_path)


@RELAXED
@given(place=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_a_flipped_bit_never_loads_as_another_program(good, tmp_path, place, bit):
    data = bytearray(good)
    data[int(len(data) * place)] ^= 1 << bit
    path = tmp_path / "model.jax"
    path.write_bytes(data)
    try:
        program = jax_programs.load(path)
    except InputRejected:
        return
    assert body_of(bytes(data)) == body_of(good), "the program differs from the one its digest names"
    assert len(program.inputs) == len(program.outputs) == 1, "only a name may have changed"


def test_headers_that_lie(good, tmp_path):
    body = body_of(good)
    for changes in ({"inputs": []}, {"inputs": ["x", "y"]}, {"inputs": [1]}, {"outputs": [""]}, {"inputs": None}, {"sha256": "0" * 64}):
        refused(packed(body, **changes), tmp_path)
    refused(intake.JAX_MAGIC + (1 << 60).to_bytes(8, "little") + b"{}", tmp_path)
    refused(intake.JAX_MAGIC + (4).to_bytes(8, "little") + b"[[[[", tmp_path)


def test_bodies_that_are_no_program_under_a_right_digest(good, tmp_path):
    for body in (b"", b"junk" * 40, body_of(good)[:200], b"\0" * 500):
        refused(packed(body), tmp_path)


def test_a_call_of_code_that_is_not_jax_s_own_is_refused(tmp_path):
    from jax import export

    call = jax.ffi.ffi_call("xla_ffi_python_cpu_callback", jax.ShapeDtypeStruct((1, 4), np.float32))
    allowed = [export.DisabledSafetyCheck.custom_call("xla_ffi_python_cpu_callback")]
    exported = export.export(jax.jit(lambda x: (call(x),)), platforms=("cpu",), disabled_checks=allowed)(jax.ShapeDtypeStruct((1, 4), np.float32))
    assert "xla_ffi_python_cpu_callback" in refused(packed(bytes(exported.serialize())), tmp_path)


def test_linear_algebra_is_jax_s_own_code(tmp_path):
    from jax import export

    exported = export.export(jax.jit(lambda x: (jax.numpy.linalg.inv(x),)), platforms=("cpu",))(jax.ShapeDtypeStruct((1, 4, 4), np.float32))
    jax_programs.save(jax_programs.Program(exported, ("x",), ("y",)), tmp_path / "model.jax")
    assert jax_programs.load(tmp_path / "model.jax").outputs == ("y",)


def test_a_program_for_another_platform_is_refused(tmp_path):
    from jax import export

    exported = export.export(jax.jit(lambda x: (x + 1,)), platforms=("cuda",))(jax.ShapeDtypeStruct((1, 4), np.float32))
    assert "cuda" in refused(packed(bytes(exported.serialize())), tmp_path)
