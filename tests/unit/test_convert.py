import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toolkit import plugins, pt2  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.convert import stage  # noqa: E402
from toolkit.convert.torch_litert import ROUTE as LITERT  # noqa: E402
from toolkit.convert.torch_onnx import ROUTE as ONNX  # noqa: E402
from toolkit.errors import ConfigError, InputRejected, StageFailed, UnsupportedOperators  # noqa: E402
from toolkit.job import Job  # noqa: E402
from toolkit.plugins import Obstacle  # noqa: E402
from toolkit.sources.torch import SOURCE  # noqa: E402

ROUTES = [
    pytest.param(route, id=route.name, marks=pytest.mark.skipif(bool(plugins.missing_modules(route)), reason="not installed"))
    for route in (ONNX, LITERT)
]


class Call(torch.nn.Module):
    """A model that computes what the function says."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale = torch.nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, **named):
        return self.function(self.scale, **named)


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def capture(folder, function, **inputs):
    """Captures and returns the program, its signature and what NumPy says about the outputs' shapes."""
    expected = SOURCE.capture(Call(function).eval(), inputs, folder / "model.pt2")
    return folder / "model.pt2", Signature(inputs=specs(inputs), outputs=specs(expected))


def run(path, **inputs):
    """Runs a converted file with its own runtime, past Edgekit's."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner()
    return dict(runner(**{name: value.astype(runner.get_input_details()[name]["dtype"]) for name, value in inputs.items()}))


X = np.array([[1.0, -4.0]], np.float32)


@pytest.mark.parametrize("route", ROUTES)
def test_names_survive_in_an_order_that_is_not_alphabetic(tmp_path, route):
    program, signature = capture(tmp_path, lambda scale, zed, alpha: {"y": zed - alpha * scale, "b": zed + alpha}, zed=X, alpha=X + 1)
    out = tmp_path / f"model.{route.format}"
    route.convert(program, out, signature)
    found = run(out, zed=X, alpha=X + 1)
    np.testing.assert_allclose(found["y"], [[1 - 2 * 2, -4 + 3 * 3]])
    np.testing.assert_allclose(found["b"], [[3, -7]])


@pytest.mark.parametrize("route", ROUTES)
def test_one_value_may_have_two_names_and_an_input_may_be_an_output(tmp_path, route):
    def function(scale, x):
        y = x * scale
        return {"first": y, "second": y, "same": x}

    program, signature = capture(tmp_path, function, x=X)
    out = tmp_path / f"model.{route.format}"
    route.convert(program, out, signature)
    found = run(out, x=X)
    assert {name: value.tolist() for name, value in found.items()} == {"first": [[2, -12]], "second": [[2, -12]], "same": [[1, -4]]}


@pytest.mark.parametrize("route", ROUTES)
def test_integer_inputs(tmp_path, route):
    ids = np.array([[1, 0, 1]], np.int64)
    program, signature = capture(tmp_path, lambda scale, ids: {"y": scale[ids]}, ids=ids)
    out = tmp_path / f"model.{route.format}"
    route.convert(program, out, signature)
    np.testing.assert_allclose(run(out, ids=ids)["y"], [[3, 2, 3]])


@pytest.mark.parametrize("route", ROUTES)
def test_an_operator_without_counterpart_is_one_line_that_names_it(tmp_path, route):
    program, signature = capture(tmp_path, lambda scale, x: {"y": torch.special.bessel_j0(x * scale)}, x=X)
    with pytest.raises(StageFailed, match="bessel_j0") as caught:
        route.convert(program, tmp_path / "out", signature)
    assert "\n" not in caught.value.message and len(caught.value.message) < 400


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a program"])
def test_a_damaged_program_is_refused(tmp_path, route, content):
    (tmp_path / "model.pt2").write_bytes(content)
    with pytest.raises(InputRejected):
        route.convert(tmp_path / "model.pt2", tmp_path / "out", Signature(inputs=specs({"x": X}), outputs=specs({"y": X})))


def test_onnx_holds_no_trace_of_where_it_was_made(tmp_path):
    onnx = pytest.importorskip("onnx")
    program, signature = capture(tmp_path, lambda scale, x: {"y": torch.relu(x * scale)}, x=X)
    ONNX.convert(program, tmp_path / "model.onnx", signature)
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert (model.producer_name, model.producer_version) == ("pytorch", torch.__version__.partition("+")[0])
    assert {entry.key: entry.value for entry in model.metadata_props} == {"edgekit.clean_up": "onnxscript"} and not model.doc_string
    for message in (
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
        *model.graph.value_info,
    ):
        assert not message.metadata_props and not message.doc_string
    content = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in content and str(tmp_path).encode() not in content and b"toolkit" not in content


def test_metadata_inside_control_flow_is_dropped_too():
    onnx = pytest.importorskip("onnx")
    from toolkit import onnx_files

    inner = onnx.helper.make_node("Identity", ["x"], ["y"], doc_string="/home/someone/net.py")
    branch = onnx.helper.make_graph([inner], "branch", [], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    outer = onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    graph = onnx.helper.make_graph([outer], "g", [], [onnx.helper.make_tensor_value_info("z", 1, [1])])
    model = onnx.helper.make_model(graph, producer_version="2.0+cu130")
    onnx_files.forget_origin(model)
    assert b"someone" not in model.SerializeToString() and model.producer_version == "2.0"


def test_onnx_names_that_do_not_fit_the_signature_are_an_error():
    onnx = pytest.importorskip("onnx")
    from toolkit import onnx_files

    values = [onnx.helper.make_tensor_value_info(name, 1, [1, 2]) for name in ("x", "linear")]
    model = onnx.helper.make_model(onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["linear"])], "g", values[:1], values[1:]))
    with pytest.raises(StageFailed, match=r"outputs \['linear'\], expected \['y'\]"):
        onnx_files.check(model, Signature(inputs=specs({"x": X}), outputs=specs({"y": X})), "torch_onnx")


@pytest.mark.parametrize("route", ROUTES)
def test_another_process_writes_the_same_bytes(tmp_path, route):
    program, signature = capture(
        tmp_path, lambda scale, x, w: {"y": torch.relu(x * scale) @ w.transpose(1, 2)}, x=X[None], w=np.ones((1, 5, 2), np.float32)
    )
    options = {"route": route.name, "signature": signature.model_dump(mode="json")}
    facts = stage.run(Job({"program": program}, options, tmp_path))
    script = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from toolkit.convert import stage
        from toolkit.job import Job
        out = Path(sys.argv[2])
        out.mkdir()
        stage.run(Job({"program": Path(sys.argv[1])}, json.loads(sys.argv[3]), out))
        """
    )
    subprocess.run([sys.executable, "-c", script, str(program), str(tmp_path / "again"), json.dumps(options)], check=True, capture_output=True)
    name = f"model.{route.format}"
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    versions = {name: plugins.distribution_version(name) for name in route.distributions}
    assert facts == {"signature": options["signature"], "made_by": route.name, "versions": versions}


def test_stage_names_an_unknown_route(tmp_path):
    with pytest.raises(ConfigError, match="unknown route 'nowhere'"):
        stage.run(Job({"program": tmp_path}, {"route": "nowhere", "signature": {"inputs": [], "outputs": []}}, tmp_path))


class Looking:
    """A route that says what it was asked, and finds what it is told to find."""

    name, version, source, format = "looking", 1, "pt2", "made"
    modules: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    extra = ""
    options = ("rewrites",)

    def __init__(self, found=(), error=None):
        self.found, self.error, self.asked = list(found), error, []

    def preflight(self, program, signature, rewrites=()):
        self.asked.append(("preflight", rewrites))
        if self.error:
            raise self.error
        return self.found

    def convert(self, program, out, signature, rewrites=()):
        self.asked.append(("convert", rewrites))
        out.write_text("made")


def look(monkeypatch, tmp_path, route, **options):
    monkeypatch.setattr(plugins, "get", lambda group, name: route)
    return stage.run(Job({"program": tmp_path}, {"route": "looking", "signature": {"inputs": [], "outputs": []}, **options}, tmp_path))


def test_a_preflight_that_finds_nothing_lets_the_conversion_begin(monkeypatch, tmp_path):
    route = Looking()
    look(monkeypatch, tmp_path, route)
    look(monkeypatch, tmp_path, route, rewrites=["gelu"])
    assert route.asked == [("preflight", ()), ("convert", ()), ("preflight", ("gelu",)), ("convert", ("gelu",))]


def test_what_the_preflight_finds_is_named_once_counted_and_not_converted(monkeypatch, tmp_path):
    found = [Obstacle("aten.stft", f"block.{index}", "has no kernel", "compute it outside") for index in range(9)]
    route = Looking([*found, found[0], Obstacle("aten.foo", "", "is unknown")])
    with pytest.raises(UnsupportedOperators) as caught:
        look(monkeypatch, tmp_path, route)
    assert caught.value.message.startswith("operator aten.stft in layer 'block.0' has no kernel; operator aten.stft in layer 'block.1'")
    assert caught.value.message.count("aten.stft") == 5 and caught.value.message.endswith("; and 5 more")
    assert caught.value.hint == "compute it outside" and caught.value.exit_code == 5
    assert route.asked == [("preflight", ())] and list(tmp_path.iterdir()) == []


def test_a_preflight_that_fails_itself_stops_nothing(monkeypatch, tmp_path):
    route = Looking(error=StageFailed("cannot split the program"))
    look(monkeypatch, tmp_path, route)
    assert (tmp_path / "model.made").read_text() == "made"


def test_a_kept_program_is_handed_over_once(tmp_path):
    program, _ = capture(tmp_path, lambda scale, x: {"y": x * scale}, x=X)
    kept = pt2.load(program, keep=True)
    assert pt2.load(program) is kept and pt2.load(program) is not kept


def test_a_layout_of_pictures_needs_a_picture(tmp_path):
    program, signature = capture(tmp_path, lambda scale, x: x * scale, x=np.ones((2, 2), np.float32))
    options = {"route": "torch_litert", "signature": signature.model_dump(mode="json"), "layout": "channels_last"}
    with pytest.raises(ConfigError, match=r"layout 'channels_last' is for inputs of four axes, found x \[1 x 2\] float32"):
        stage.run(Job({"program": program}, options, tmp_path / "out"))
