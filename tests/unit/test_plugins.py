"""How plugins are found, and what is said of one that is broken. Each test installs its plugins in a folder of its own."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from toolkit import plugins
from toolkit.errors import ConfigError, MissingExtra, NoRoute, SetupError

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = """
class Runtime:
    name, version, extra = "{name}", 1, "pip-name-of-{name}"
    modules, distributions, formats = {modules}, ("numpy",), ("{name}",)

    def open(self, model, *, threads):
        raise NotImplementedError

PLUGIN = Runtime()
"""


@pytest.fixture(autouse=True)
def fresh():
    """Plugins are looked for once a process; here, once a test."""
    plugins.discover.cache_clear()
    yield
    plugins.discover.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Returns a function that installs a distribution with one module and its entry points, as pip leaves them behind."""

    def install(name, code, group="runtimes", target=None):
        site = tmp_path / name
        metadata = site / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (site / f"{name}.py").write_text(code)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[edgekit.{group}]\n{name} = {target or f'{name}:PLUGIN'}\n")
        monkeypatch.syspath_prepend(site)

    return install


def runtime(name, modules="()"):
    return RUNTIME.format(name=name, modules=modules)


def test_a_plugin_stands_beside_our_own_in_order(install):
    install("ek_abacus", runtime("ek_abacus"))
    found = list(plugins.discover("runtimes"))
    assert found == sorted(found) and {"ek_abacus", "onnxruntime", "litert"} <= set(found)
    assert plugins.get("runtimes", "ek_abacus") is plugins.runtime_for("ek_abacus")


def test_two_plugins_of_one_name_are_refused(install):
    install("ek_first", runtime("ek_same"))
    install("ek_second", runtime("ek_same"))
    with pytest.raises(SetupError, match="takes the name 'ek_same', which another plugin has") as caught:
        plugins.discover("runtimes")
    assert "ek_first" in caught.value.where or "ek_second" in caught.value.where
    assert caught.value.hint


def test_a_plugin_cannot_take_the_place_of_ours(install):
    install("ek_usurper", runtime("onnxruntime"))
    with pytest.raises(SetupError, match="'onnxruntime'"):
        plugins.discover("runtimes")


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_a_plugin_without_its_attributes_is_refused_and_they_are_named(install, group):
    install("ek_hollow", "class Hollow:\n    name, version = 'ek_hollow', 1\n\nPLUGIN = Hollow()\n", group)
    own = {"sources": "capture", "collections": "build", "routes": "convert", "quantizers": "quantize", "runtimes": "open", "readers": "read"}[group]
    with pytest.raises(SetupError) as caught:
        plugins.discover(group)
    lacking = caught.value.message.partition(" of the ")[0]
    assert all(name in lacking for name in ("distributions", "extra", "modules", own)) and "version" not in lacking
    assert "ek_hollow" in caught.value.where and caught.value.hint == "see docs/plugins.md"


@pytest.mark.parametrize(
    ("code", "target"),
    [
        ("import ek_never_installed", None),
        ("PLUGIN = 1 / 0", None),
        ("PLUGIN = (", None),
        ("", "ek_broken:PLUGIN"),
        ("", "ek_no_such_module:PLUGIN"),
    ],
    ids=["import", "exception", "syntax", "no such name", "no such module"],
)
def test_a_plugin_that_cannot_be_loaded_is_named(install, code, target):
    install("ek_broken", code, target=target)
    with pytest.raises(SetupError, match=r"cannot be loaded: \w+Error") as caught:
        plugins.discover("runtimes")
    assert "ek_broken" in caught.value.where and caught.value.hint


def test_a_missing_framework_gives_the_line_that_installs_it(install):
    install("ek_needy", runtime("ek_needy", '("ek_never_installed", "numpy")'))
    plugin = plugins.get("runtimes", "ek_needy")
    assert plugins.missing_modules(plugin) == ["ek_never_installed"]
    with pytest.raises(MissingExtra, match="ek_needy needs ek_never_installed") as caught:
        plugins.require(plugin)
    assert caught.value.hint == 'run: pip install "pip-name-of-ek_needy"'


def test_a_format_is_known_by_suffix_when_a_plugin_declares_it(install):
    assert plugins.format_of(Path("model.ek_abacus")) is None
    install("ek_abacus", runtime("ek_abacus"))
    plugins.discover.cache_clear()
    assert plugins.format_of(Path("model.EK_Abacus")) == "ek_abacus"
    assert plugins.format_of(Path("model.onnx")) == "onnx"
    assert plugins.format_of(Path("ek_abacus")) is None
    assert plugins.format_of(Path("model.pkl")) is None
    assert plugins.find_reader("ek_abacus") is None
    with pytest.raises(NoRoute, match="no reader looks into ek_abacus"):
        plugins.reader("ek_abacus")


def test_unknown_names_and_ways_list_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown runtime 'ort'.*onnxruntime"):
        plugins.get("runtimes", "ort")
    with pytest.raises(NoRoute, match=r"no route converts ort to pt2; from ort routes lead to: nothing"):
        plugins.routes("ort", "pt2")
    with pytest.raises(NoRoute, match=r"no quantizer makes weight_only_wi2 for onnx.*onnx: static_wi8_ai8"):
        plugins.quantizer("onnx", "weight_only_wi2")


def test_a_bare_checkout_has_exactly_the_entry_points_of_the_project_file(monkeypatch):
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda **_: [])  # nothing is installed
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(declared) == {f"edgekit.{group}" for group in plugins.GROUPS} | {"pytest11"}
    for group in plugins.GROUPS:
        assert list(plugins.discover(group)) == sorted(declared[f"edgekit.{group}"])
        for name, plugin in plugins.discover(group).items():
            module, _, attribute = declared[f"edgekit.{group}"][name].partition(":")
            assert type(plugin).__module__.startswith("toolkit.") and getattr(import_module(module), attribute) is plugin


def test_our_own_plugins_are_asked_before_others_and_ready_ones_before_both(install):
    code = runtime("aaa").replace('("aaa",)', '("onnx", "pt2")')
    install("ek_early", code)
    assert plugins.runtime_for("onnx").name == "onnxruntime"
    install("ek_unready", runtime("aab", modules='("no_such_module",)').replace('("aab",)', '("only_aab",)'))
    plugins.discover.cache_clear()
    assert plugins.runtime_for("only_aab").name == "aab"


def test_doctor_survives_a_broken_plugin_and_shows_it(install):
    import toolkit

    install("ek_half", "raise RuntimeError('half installed')")
    broken = [state for state in toolkit.doctor().plugins if "cannot be loaded" in state.does]
    assert [(state.group, state.does) for state in broken] == [("runtimes", "cannot be loaded: RuntimeError: half installed")]
    assert "ek_half" in broken[0].name and not broken[0].ready
    assert broken[0].install
