"""Detection, linear algebra, spectra, training leftovers and results of free size in TFLite: what ONNX Runtime or ONNX's reference computes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tfl_models import agree, convert, drawer, model_of, node
from toolkit.errors import StageFailed

reference = pytest.importorskip("onnx.reference")
draw = drawer(11)
IMAGE = draw(2, 3, 6, 7)


def defined(folder, nodes, given, outputs=("y",), constants=None, opset=26, *, exact=False):
    """Checks that LiteRT gives what ONNX's own reference gives, of operators that ONNX Runtime does not have yet."""
    made = model_of(nodes, given, outputs, constants or {}, opset)
    made.ir_version = 10
    wanted = dict(zip(outputs, reference.ReferenceEvaluator(made).run(None, given), strict=True))
    run = convert(made, given, wanted, folder).get_signature_runner()
    found = run(**{name: one.astype(np.int32) if one.dtype == np.int64 else one for name, one in given.items()})
    for name, expected in wanted.items():
        assert found[name].shape == expected.shape
        np.testing.assert_allclose(found[name], expected, rtol=0 if exact else 3e-5, atol=0 if exact else 3e-5)


def refused(folder, nodes, given, constants, match, opset=17):
    with pytest.raises(StageFailed, match=match):
        convert(model_of(nodes, given, ["y"], constants, opset), given, {"y": np.zeros(1, np.float32)}, folder)


BOXES = np.array([[0.5, 0.2, 4.1, 5.9], [2.0, 1.0, 2.4, 1.3], [-3.0, -2.0, 3.0, 2.5], [1.0, 0.0, 30.0, 20.0]], np.float32)


@pytest.mark.parametrize("transformation", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(mode, transformation, tmp_path):
    """Boxes lie in the image, outside, and all around it, and are smaller than an element."""
    options = {"output_height": 3, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.8, "coordinate_transformation_mode": transformation}
    given = {"x": IMAGE, "boxes": BOXES, "places": np.array([0, 1, 1, 0])}
    agree(tmp_path, [node("RoiAlign", ["x", "boxes", "places"], ["y"], mode=mode, **options)], given, opset=16)


def test_roi_align_of_an_older_operator_set_counts_from_corners(tmp_path):
    given = {"x": IMAGE, "boxes": BOXES, "places": np.array([0, 1, 1, 0])}
    agree(tmp_path, [node("RoiAlign", ["x", "boxes", "places"], ["y"], output_height=2, output_width=2, sampling_ratio=3)], given, opset=13)


def test_roi_align_with_a_number_of_samples_of_its_own_is_refused(tmp_path):
    given = {"x": IMAGE, "boxes": BOXES, "places": np.array([0, 1, 1, 0])}
    refused(tmp_path, [node("RoiAlign", ["x", "boxes", "places"], ["y"])], given, {}, "sampling_ratio")


@pytest.mark.parametrize(("groups", "sets", "masked"), [(1, 1, False), (1, 2, True), (2, 1, True), (2, 2, False)])
def test_deformable_convolution(groups, sets, masked, tmp_path):
    image, filters = draw(2, 4, 6, 5), draw(6, 4 // groups, 3, 2)
    options = {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2], "kernel_shape": [3, 2], "group": groups, "offset_group": sets}
    tall, wide = (6 + 3 - 3) // 2 + 1, (5 + 1 - 3) + 1
    given = {"x": image, "offsets": 2 * draw(2, sets * 12, tall, wide)}
    constants = {"w": filters, "b": draw(6)}
    if masked:
        given["mask"] = draw(2, sets * 6, tall, wide)
    inputs = ["x", "w", "offsets", "b", *(["mask"] if masked else [])]
    defined(tmp_path, [node("DeformConv", inputs, ["y"], **options)], given, constants=constants, opset=19)


def boxes(samples, count):
    return np.random.default_rng(count).random((samples, count, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "classes", "count", "most", "overlap", "least", "middle"),
    [(1, 1, 50, 10, 0.5, None, 0), (2, 3, 40, 5, 0.3, 0.4, 0), (1, 2, 30, 100, 0.5, 0.2, 1), (1, 1, 20, 3, 0.0, 0.0, 0), (1, 1, 5, 3, 0.5, 2.0, 0)],
)
def test_boxes_that_overlap_are_suppressed(samples, classes, count, most, overlap, least, middle, tmp_path):
    """The number of results is that of ONNX Runtime, none included."""
    scores = np.random.default_rng(1).random((samples, classes, count)).astype(np.float32)
    constants = {"most": np.array([most]), "overlap": np.float32([overlap])} | ({} if least is None else {"least": np.float32([least])})
    made = node("NonMaxSuppression", ["b", "s", *constants], ["y"], center_point_box=middle)
    agree(tmp_path, [made], {"b": boxes(samples, count), "s": scores}, constants=constants)


def test_an_overlap_that_is_the_limit_is_kept(tmp_path):
    given = {"b": np.float32([[[0, 0, 1, 1], [0, 0, 1, 2], [0, 0, 2, 2], [5, 5, 6, 6]]]), "s": np.float32([[[0.9, 0.8, 0.7, 0.6]]])}
    made = node("NonMaxSuppression", ["b", "s", "most", "overlap"], ["y"])
    agree(tmp_path, [made], given, constants={"most": np.array([4]), "overlap": np.float32([0.5])})
    refused(tmp_path, [made], given, {"most": np.array([4]), "overlap": np.float32([1.0])}, "iou_threshold is 1")


def test_boxes_that_are_kept_are_taken(tmp_path):
    """Twice with other scores: the number of rows follows the data."""
    nodes = [
        node("NonMaxSuppression", ["b", "s", "most", "overlap", "least"], ["kept"]),
        node("Gather", ["kept", "two"], ["places"], axis=1),
        node("Squeeze", ["b", "zero"], ["rows"]),
        node("Gather", ["rows", "places"], ["y"], axis=0),
    ]
    constants = {"most": np.array([10]), "overlap": np.float32([0.4]), "least": np.float32([0.5]), "two": np.array(2), "zero": np.array([0])}
    for seed in (1, 2):
        scores = np.random.default_rng(seed).random((1, 1, 30)).astype(np.float32)
        agree(tmp_path, nodes, {"b": boxes(1, 30), "s": scores}, constants=constants)


def test_what_is_not_zero_is_found(tmp_path):
    given = {"x": np.where(draw(3, 4, 2) > 0, draw(3, 4, 2), 0).astype(np.float32)}
    agree(tmp_path, [node("NonZero", ["x"], ["y"])], given)
    agree(tmp_path, [node("NonZero", ["x"], ["y"])], {"x": np.zeros((2, 3), np.float32)})
    agree(tmp_path, [node("NonZero", ["x"], ["places"]), node("Transpose", ["places"], ["rows"]), node("Cast", ["rows"], ["y"], to=1)], given)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_a_condition_that_is_computed_picks(axis, tmp_path):
    options = {} if axis is None else {"axis": axis}
    nodes = [node("Greater", ["c", "zero"], ["kept"]), node("Compress", ["x", "kept"], ["y"], **options)]
    agree(tmp_path, nodes, {"x": draw(3, 4, 3), "c": np.float32([1, -1, 1])}, constants={"zero": np.float32(0)})


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_determinants(size, tmp_path):
    agree(tmp_path, [node("Det", ["x"], ["y"])], {"x": 2 * draw(3, 2, size, size)})
    agree(tmp_path, [node("Det", ["x"], ["y"])], {"x": np.eye(size, dtype=np.float32)[::-1].copy()})  # a pivot of zero


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_running_products(axis, reverse, exclusive, tmp_path):
    made = [node("CumProd", ["x", "axis"], ["y"], reverse=reverse, exclusive=exclusive)]
    defined(tmp_path, made, {"x": 2 * draw(3, 7, 4)}, constants={"axis": np.array(axis)})
    defined(tmp_path, made, {"x": np.arange(1, 13, dtype=np.int32).reshape(3, 2, 2)}, constants={"axis": np.array(axis)}, exact=True)


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_a_cache_is_written(mode, tmp_path):
    starts = np.array([1, 3] if mode == "circular" else [0, 2])
    given = {"past": draw(2, 3, 4, 5), "new": draw(2, 3, 2, 5), "at": starts}
    defined(tmp_path, [node("TensorScatter", ["past", "new", "at"], ["y"], mode=mode)], given, opset=24, exact=True)
    given = {"past": draw(2, 4, 5), "new": draw(2, 2, 5)}
    defined(tmp_path, [node("TensorScatter", ["past", "new"], ["y"], axis=1, mode=mode)], given, opset=24, exact=True)


@pytest.mark.parametrize("length", [None, 5, 8, 12])
@pytest.mark.parametrize(("parts", "inverse", "half"), [(1, 0, 0), (2, 0, 0), (1, 0, 1), (2, 1, 0)])
def test_spectra(parts, inverse, half, length, tmp_path):
    """Along an axis in the middle, with numbers cut off and zeros put behind."""
    constants = {"axis": np.array(1)} | ({} if length is None else {"length": np.array(length)})
    inputs = ["x", "length" if length else "", "axis"]
    agree(tmp_path, [node("DFT", inputs, ["y"], inverse=inverse, onesided=half)], {"x": draw(2, 8, 3, parts)}, constants=constants, opset=20)


@pytest.mark.parametrize("length", [None, 7, 8])
def test_real_numbers_of_half_a_spectrum(length, tmp_path):
    given, axis = {"x": draw(2, 5, 3, 2)}, {"axis": np.array(1)}
    constants = axis if length is None else {**axis, "length": np.array(length)}
    made = [node("DFT", ["x", "length" if length else "", "axis"], ["y"], inverse=1, onesided=1)]
    defined(tmp_path, made, given, constants=constants)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("window", ["none", "known", "computed"])
def test_short_time_spectra(window, half, tmp_path):
    given, constants = {"x": draw(2, 40, 1)}, {"step": np.array(5), "length": np.array(12)}
    if window == "computed":
        given["w"] = np.hanning(12).astype(np.float32)
    elif window == "known":
        constants["w"] = np.hanning(12).astype(np.float32)
    agree(tmp_path, [node("STFT", ["x", "step", "" if window == "none" else "w", "length"], ["y"], onesided=half)], given, constants=constants)


def test_a_mask_of_what_is_kept(tmp_path):
    agree(tmp_path, [node("Dropout", ["x"], ["y", "mask"])], {"x": IMAGE}, ["y", "mask"])
    constants = {"share": np.float32(0), "training": np.array(True)}
    agree(tmp_path, [node("Dropout", ["x", "share", "training"], ["y", "mask"])], {"x": IMAGE}, ["y", "mask"], constants)
    constants["share"] = np.float32(0.5)
    refused(tmp_path, [node("Dropout", ["x", "share", "training"], ["y"])], {"x": IMAGE}, constants, "at random")


def test_batch_normalization_in_training(tmp_path):
    given = {"x": IMAGE} | {name: draw(3) for name in ("scale", "bias", "mean")} | {"variance": np.abs(draw(3)) + 1}
    made = node("BatchNormalization", list(given), ["y", "means", "variances"], training_mode=1, momentum=0.8)
    defined(tmp_path, [made], given, ["y", "means", "variances"], opset=15)


@pytest.mark.parametrize(
    ("source", "wanted"), [("float32", "int32"), ("int32", "float32"), ("uint32", "int32"), ("int8", "uint8"), ("uint16", "int16"), ("bool", "uint8")]
)
def test_bits_of_another_type(source, wanted, tmp_path):
    from onnx import helper

    values = np.array([0, 1, 1, 0]).astype(bool) if source == "bool" else np.array([0, 1, 100, 200]).astype(source)
    made = [node("BitCast", ["x"], ["y"], to=helper.np_dtype_to_tensor_dtype(np.dtype(wanted)))]
    defined(tmp_path, made, {"x": values}, exact=True)


UNSIGNED = np.array([0, 1, 5, 2**63 - 1, 2**63, 2**63 + 7, 2**64 - 1], np.uint64)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Max", "Min", "Equal", "Less", "GreaterOrEqual", "BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_unsigned_numbers_of_64_bits(kind, tmp_path):
    """All of them are used, beyond what signed ones hold."""
    given = {"a": UNSIGNED[:, None], "b": UNSIGNED}
    defined(tmp_path, [node(kind, ["a", "b"], ["y"])], given, opset=18, exact=True)
    defined(tmp_path, [node(kind, ["a", "b"], ["y"])], {"a": UNSIGNED}, constants={"b": UNSIGNED[::-1].copy()}, opset=18, exact=True)


@pytest.mark.parametrize("largest", [0, 1])
def test_the_greatest_unsigned_numbers(largest, tmp_path):
    given, constants = {"x": np.random.default_rng(3).permutation(UNSIGNED)}, {"k": np.array([4])}
    made = [node("TopK", ["x", "k"], ["y", "places"], largest=largest)]
    defined(tmp_path, made, given, ["y", "places"], constants, opset=24, exact=True)


def test_results_without_elements(tmp_path):
    given, constants = {"x": draw(2, 3)}, {"none": np.zeros((0, 3), np.float32), "low": np.array([2]), "high": np.array([5])}
    agree(tmp_path, [node("Slice", ["x", "low", "high"], ["y"])], given, constants=constants)
    agree(tmp_path, [node("Identity", ["none"], ["y"]), node("Relu", ["x"], ["z"])], given, ["y", "z"], constants)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "bfloat16"])
def test_narrow_numbers(dtype, tmp_path):
    """They come in and go out as such; integers wrap around."""
    from onnx import helper

    narrow = helper.tensor_dtype_to_np_dtype(getattr(helper.TensorProto, dtype.upper()))
    values = np.float32([-9, -2, -1.5, 0, 1, 7.9, 8, 17])
    defined(tmp_path, [node("Cast", ["x"], ["y"], to=getattr(helper.TensorProto, dtype.upper()))], {"x": values}, opset=25, exact=True)
    if dtype != "int2":  # no input can have that
        given = {"x": np.array([0, 1, 3, 7]).astype(narrow)}
        made = model_of([node("Cast", ["x"], ["y"], to=1)], given, ["y"], {}, 25)
        run = convert(made, given, {"y": values}, tmp_path).get_signature_runner()
        fed = given["x"] if dtype == "bfloat16" else given["x"].astype(dtype.replace("4", "8"))
        np.testing.assert_array_equal(run(x=fed)["y"], [0, 1, 3, 7])


def test_numbers_quantized_by_blocks(tmp_path):
    constants = {"scale": np.abs(draw(2, 3)) + 0.1, "zero": np.array([[1, 2, 3], [4, 5, 6]], np.uint8)}
    given = {"x": np.random.default_rng(0).integers(0, 255, (2, 8)).astype(np.uint8)}
    made = [node("DequantizeLinear", ["x", "scale", "zero"], ["y"], axis=1, block_size=3)]
    defined(tmp_path, made, given, constants=constants, opset=21)


def test_a_loop_whose_numbers_are_known_collects_single_ones(tmp_path):
    """ONNX's reference gives them an axis too many, so they are not computed beforehand."""
    from onnx import TensorProto, helper

    values = [("i", TensorProto.INT64), ("go", TensorProto.BOOL), ("before", TensorProto.FLOAT)]
    nodes = [node("Identity", ["go"], ["on"]), node("Add", ["before", "two"], ["after"]), node("Identity", ["before"], ["kept"])]
    results = [("on", TensorProto.BOOL), ("after", TensorProto.FLOAT), ("kept", TensorProto.FLOAT)]
    infos = ([helper.make_tensor_value_info(name, kind, []) for name, kind in part] for part in (values, results))
    body = helper.make_graph(nodes, "body", *infos)
    constants = {"turns": np.array(3), "true": np.array(True), "first": np.float32(1), "two": np.float32(2)}
    made = [node("Loop", ["turns", "true", "first"], ["last", "all"], body=body), node("Mul", ["x", "all"], ["y"])]
    agree(tmp_path, made, {"x": np.float32([1, 2, 3])}, constants=constants)
