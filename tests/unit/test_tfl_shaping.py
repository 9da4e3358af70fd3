"""Operators that move, pick and resize, on LiteRT against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
litert = pytest.importorskip("ai_edge_litert.interpreter")

from onnx import helper, numpy_helper, save, shape_inference  # noqa: E402

from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.convert import onnx_litert  # noqa: E402
from toolkit.errors import StageFailed  # noqa: E402

IMAGE = np.random.default_rng(1).normal(size=(2, 4, 6, 8)).astype(np.float32)
WEIGHT = np.random.default_rng(2).normal(size=(8, 4, 1, 1)).astype(np.float32)


def _model(kind: str, given: dict[str, np.ndarray], constants: list[Any], between: bool, attributes: dict[str, Any], outputs: int) -> Any:
    """One operator, alone or between two convolutions, which want the channels last; settings are constants."""
    names = [f"c{place}" if value is not None else "" for place, value in enumerate(constants)]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, constants, strict=True) if value is not None]
    results = [f"y{place}" for place in range(outputs)]
    first, *others = given
    nodes = [helper.make_node(kind, ["before" if between else first, *others, *names], results, **attributes)]
    if between:
        tensors.append(numpy_helper.from_array(WEIGHT, "w"))
        nodes.insert(0, helper.make_node("Conv", [first, "w"], ["before"]))
    values = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(one.dtype), one.shape) for name, one in given.items()]
    graph = helper.make_graph(nodes, "one", values, [helper.make_empty_tensor_value_info(name) for name in results], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return _followed(model) if between else model


def _followed(model: Any) -> Any:
    """Puts a convolution behind each image."""
    found = [[axis.dim_value for axis in one.type.tensor_type.shape.dim] for one in shape_inference.infer_shapes(model).graph.output]
    for place, shape in enumerate(found):
        if len(shape) == 4:
            model.graph.initializer.append(numpy_helper.from_array(np.eye(shape[1], dtype=np.float32)[:, :, None, None], f"v{place}"))
            model.graph.node.append(helper.make_node("Conv", [f"y{place}", f"v{place}"], [f"z{place}"]))
            model.graph.output[place].name = f"z{place}"
    return model


def _check(
    scratch: Path,
    kind: str,
    given: dict[str, np.ndarray],
    *constants: Any,
    between: bool = False,
    outputs: int = 1,
    free: bool = False,
    **attributes: Any,
) -> list[str]:
    """Compares LiteRT with ONNX Runtime and returns the kinds of the operators that LiteRT runs."""
    source, out = scratch / "m.onnx", scratch / "m.tflite"
    save(_model(kind, given, list(constants), between, attributes, outputs), str(source))
    session = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    wanted = session.run(None, given)
    shapes = {name: ("n", *one.shape[1:]) if free else one.shape for name, one in given.items()}
    ins = tuple(TensorSpec(name=name, dtype=one.dtype.name, shape=shapes[name]) for name, one in given.items())
    names = [one.name for one in session.get_outputs()]
    results = dict(zip(names, wanted, strict=True))
    outs = tuple(TensorSpec(name=name, dtype=one.dtype.name, shape=("n", *one.shape[1:]) if free else one.shape) for name, one in results.items())
    onnx_litert.ROUTE.convert(source, out, Signature(inputs=ins, outputs=outs))
    interpreter = litert.Interpreter(str(out), num_threads=1)
    runner = interpreter.get_signature_runner()
    details = runner.get_input_details()
    found = runner(**{name: one.astype(details[name]["dtype"]) for name, one in given.items()})
    for name, one in results.items():
        assert found[name].shape == one.shape
        np.testing.assert_allclose(found[name], one, rtol=1e-4, atol=1e-5)
    return [one["op_name"] for one in interpreter._get_ops_details() if one["op_name"] != "DELEGATE"]


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize(
    ("kind", "constants", "attributes"),
    [
        ("Slice", ([1, 7], [4, 0], [1, 3], [1, -3]), {}),
        ("Slice", ([-100, 5], [100, -100], [2, 1], [2, -1]), {}),
        ("Pad", ([0, 1, 2, 0, 0, -2, -1, 3], np.float32(2.5)), {}),
        ("Pad", ([0, 0, 2, 1, 0, 3, 0, 2],), {"mode": "reflect"}),
        ("Pad", ([0, 2, 1, 1, 0, 0, 0, 2],), {"mode": "edge"}),
        ("Pad", ([2, 1, 3, 1], None, [1, 3]), {"mode": "wrap"}),
        ("Tile", ([1, 3, 1, 2],), {}),
        ("Expand", ([3, 1, 1, 1, 1],), {}),
        ("DepthToSpace", (), {"blocksize": 2, "mode": "CRD"}),
        ("SpaceToDepth", (), {"blocksize": 2}),
        ("Gather", (np.array(-2),), {"axis": 1}),
        ("Gather", (np.array(3),), {"axis": 2}),
        ("Gather", ([5, -1, 0, 0],), {"axis": 3}),
        ("Gather", ([[1, 2], [0, -1]],), {"axis": 1}),
        ("Trilu", (np.array(1),), {"upper": 0}),
    ],
)
def test_moving(tmp_path: Path, kind: str, constants: tuple[Any, ...], attributes: dict[str, Any], between: bool) -> None:
    _check(tmp_path, kind, {"x": IMAGE}, *(one if one is None else np.asarray(one) for one in constants), between=between, **attributes)


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize(("axis", "sizes"), [(1, None), (2, [1, 2, 3]), (-1, [6, 2])])
def test_split(tmp_path: Path, axis: int, sizes: list[int] | None, between: bool) -> None:
    given = (np.array(sizes),) if sizes else ()
    count = {"num_outputs": 2} if not sizes else {}
    _check(tmp_path, "Split", {"x": IMAGE}, *given, between=between, outputs=len(sizes or [1, 1]), axis=axis, **count)


@pytest.mark.parametrize("kind", ["Slice", "Tile", "Gather"])
def test_a_free_number_of_samples(tmp_path: Path, kind: str) -> None:
    constants = {"Slice": ([5, 1], [0, 3], [3, 1], [-2, 1]), "Tile": ([1, 2, 1, 1],), "Gather": ([2, 3],)}[kind]
    _check(tmp_path, kind, {"x": IMAGE}, *map(np.array, constants), free=True, **({"axis": 1} if kind == "Gather" else {}))


def test_compress_by_a_known_condition(tmp_path: Path) -> None:
    _check(tmp_path, "Compress", {"x": IMAGE}, np.array([True, False, True, True]), axis=1)


def test_neighbours_are_sliced_and_not_gathered(tmp_path: Path) -> None:
    assert _check(tmp_path, "Gather", {"x": IMAGE}, np.array([3, 4, 5]), axis=3) == ["SLICE"]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("how", ["none", "add", "mul", "max", "min"])
def test_scatter_with_known_and_unknown_places(tmp_path: Path, how: str, known: bool) -> None:
    value, updates = IMAGE[0, 0], IMAGE[0, 1, :3]
    places = np.array([[0, 1, -1, 3, 4, 5, 0, 1], [2, -2, 3, 1, 1, 1, 1, 0], [4, 2, 0, 0, 0, 0, 2, 2]])
    if how != "none":
        places[1] = places[0]
    attributes = {"axis": 0} | ({"reduction": how} if how != "none" else {})
    constants = (places, updates) if known else ()
    given = {"x": value} if known else {"x": value, "places": places, "updates": updates}
    _check(tmp_path, "ScatterElements", given, *constants, **attributes)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("batch", [0, 1])
def test_places_of_several_numbers(tmp_path: Path, batch: int, known: bool) -> None:
    places = np.array([[[1, -1], [0, 2]], [[-2, 3], [1, 1]]])
    given = {"x": IMAGE} if known else {"x": IMAGE, "places": places}
    _check(tmp_path, "GatherND", given, *([places] if known else []), batch_dims=batch)


def test_one_hot_leaves_out_what_is_beyond(tmp_path: Path) -> None:
    _check(tmp_path, "OneHot", {"x": np.array([0, -1, 4, 5, -6, 2])}, np.array(5), np.array([0.5, 2], np.float32), axis=0)


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("sizes", [[2, 4, 9, 5], [2, 4, 12, 16], [2, 4, 3, 4], [2, 4, 1, 13]])
@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("places", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
def test_resize(tmp_path: Path, places: str, mode: str, sizes: list[int], between: bool) -> None:
    _check(
        tmp_path,
        "Resize",
        {"x": IMAGE},
        None,
        None,
        np.array(sizes[2:]),
        between=between,
        axes=[2, 3],
        mode=mode,
        coordinate_transformation_mode=places,
    )


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_resize_rounds_as_asked(tmp_path: Path, rounding: str) -> None:
    scales = np.array([1, 1, 0.5, 1.5], np.float32)
    _check(tmp_path, "Resize", {"x": IMAGE}, None, scales, mode="nearest", nearest_mode=rounding, coordinate_transformation_mode="half_pixel")


@pytest.mark.parametrize(
    ("mode", "places"), [("linear", "half_pixel"), ("linear", "asymmetric"), ("linear", "align_corners"), ("nearest", "half_pixel")]
)
def test_what_the_kernels_compute_is_left_to_them(tmp_path: Path, mode: str, places: str) -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    kinds = _check(tmp_path, "Resize", {"x": IMAGE}, None, scales, mode=mode, coordinate_transformation_mode=places, free=True)
    assert kinds == ["TRANSPOSE", "RESIZE_BILINEAR" if mode == "linear" else "RESIZE_NEAREST_NEIGHBOR", "TRANSPOSE"]


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_smooths_what_shrinks(tmp_path: Path, mode: str) -> None:
    _check(tmp_path, "Resize", {"x": IMAGE}, None, None, np.array([2, 4, 3, 3]), mode=mode, antialias=1)


def test_resize_crops(tmp_path: Path) -> None:
    crop = np.array([0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7], np.float32)
    attributes = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 10.0}
    _check(tmp_path, "Resize", {"x": IMAGE}, crop, None, np.array([2, 4, 3, 5]), **attributes)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("beyond", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grid_sample(tmp_path: Path, mode: str, beyond: str, corners: int) -> None:
    grid = np.random.default_rng(5).uniform(-2.5, 2.5, (2, 5, 7, 2)).astype(np.float32)
    for between in (False, True):
        _check(tmp_path, "GridSample", {"x": IMAGE, "grid": grid}, between=between, mode=mode, padding_mode=beyond, align_corners=corners)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bhqd,bhkd->bhqk", ((2, 3, 4, 5), (2, 3, 6, 5))),
        ("bqhd,bkhd->bhqk", ((2, 4, 3, 5), (2, 6, 3, 5))),
        ("...ij,...jk", ((2, 3, 4), (2, 4, 5))),
        ("ij,jk,kl->li", ((3, 4), (4, 5), (5, 2))),
        ("i,j->ij", ((3,), (4,))),
        ("bii->bi", ((2, 3, 3),)),
        ("ijk->ki", ((2, 3, 4),)),
        ("bchw,hkc->bkwh", ((2, 3, 4, 5), (4, 6, 3))),
    ],
)
def test_einsum(tmp_path: Path, equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    generator = np.random.default_rng(3)
    given = {f"x{place}": generator.normal(size=shape).astype(np.float32) for place, shape in enumerate(shapes)}
    _check(tmp_path, "Einsum", given, equation=equation)


def test_starts_of_a_slice_that_depend_on_the_data_are_refused(tmp_path: Path) -> None:
    given = {"x": IMAGE, "starts": np.array([1])}
    with pytest.raises(StageFailed, match="depend"):
        _check(tmp_path, "Slice", given, np.array([3]), np.array([1]))
