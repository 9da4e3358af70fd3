"""The pages against the code: what they list exists, and what exists is listed."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import typer.main

import toolkit
from tests.reports import sample_report
from toolkit import config, data_origin, errors, limits, metrics, resources, training
from toolkit.cli import app
from toolkit.report import json as report_json

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")])
COMMANDS = typer.main.get_command(app).commands


def options_of(command) -> set[str]:
    """Every flag of a verb, and of the verbs below it."""
    below = getattr(command, "commands", {}).values()
    return {flag for option in command.params for flag in option.opts}.union(*map(options_of, below))


TABLES = {
    "Project: top level": config.Project,
    "Project: `[data]`": data_origin.Data,
    "Project: `[data.image]`": data_origin.Image,
    "Project: `[model]`": config.Model,
    "Project: `[finetune]`": training.Finetune,
    "Project: `[calibration]`": config.Calibration,
    "Project: `[quantize]`": config.Quantization,
    "Project: `[convert]`": config.Conversion,
    "Project: `[parity]`": config.Parity,
    "Project: `[metrics]`": config.Metrics,
    "Project: `[timing]`": config.Timing,
    "Project: `[budgets]`": limits.Budgets,
    "Project: `[budgets.metrics.NAME]`": limits.MetricBudget,
    "Target: top level": config.Target,
    "Recipe: top level": config.Recipe,
}
PLAIN_TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean", "array": "list", "object": "table"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Cells of every table row, without header and rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")][1:]


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", prose(file.read_text(encoding="utf-8")), flags=re.MULTILINE)
            assert fragment in {anchor(heading) for heading in headings}, f"{name_of(page)} links to {target}"


def default_of(field) -> str:
    """A field's default as the page writes it."""
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if value is None:
        return "none"
    if value == config.SCHEMES:
        return "all eight"
    return f"`{json.dumps(value, default=lambda model: model.model_dump(exclude_none=True, exclude_defaults=True))}`"


def type_of(field, schema: dict) -> str:
    """A field's type as the page writes it, from its JSON schema; that of a fraction does not tell that it takes text too."""
    if "BeforeValidator" in repr(field):
        return "fraction"
    schema = next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
    if "$ref" in schema or "allOf" in schema:
        return "table"
    if schema.get("format") == "path":
        return "path"
    return PLAIN_TYPES[schema["type"]]


@pytest.mark.parametrize("heading", TABLES)
def test_configuration_lists_every_key(heading):
    kind = TABLES[heading]
    properties = kind.model_json_schema(by_alias=True)["properties"]
    expected = {field.alias or name: field for name, field in kind.model_fields.items()}
    documented = {cells[0].strip("`"): cells for cells in rows(sections(prose(read("docs/configuration.md")))[heading])}
    assert list(documented) == list(expected)
    for key, field in expected.items():
        _, type_, default, meaning = documented[key]
        assert default == default_of(field), key
        assert type_ == type_of(field, properties[key]), key
        assert meaning, key


def test_configuration_names_every_choice():
    page = read("docs/configuration.md")
    for kind in TABLES.values():
        for name, schema in kind.model_json_schema()["properties"].items():
            for choice in schema.get("enum", ()):
                assert f"`{choice}`" in page, f"{name}: {choice}"
    assert all(f"`{scheme}`" in page for scheme in config.SCHEMES)


def test_configuration_lists_every_task_with_its_metrics():
    table = rows(sections(prose(read("docs/configuration.md")))["Tasks and metrics"])
    listed = {task: tuple(re.findall(r"`(\w+)`", cells[1])) for cells in table for task in re.findall(r"`([\w-]+)`", cells[0])}
    assert listed == metrics.TASKS
    assert set(get_args(config.Task)) == set(metrics.TASKS)
    assert {name for names in metrics.TASKS.values() for name in names} == set(metrics.METRICS)


BASE = {
    "name": "x",
    "task": "image-classification",
    "targets": ["desktop-ort"],
    "data": {"train": "t.npz", "eval": "e.npz"},
    "model": {"factory": "a:b"},
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_toml_blocks_are_accepted(page):
    for block in blocks(page.read_text(encoding="utf-8"), "toml"):
        document = tomllib.loads(block)
        if "project" in document or "build-system" in document:
            continue
        if "runtime" in document:
            config.parse(config.Target, block, name_of(page), name="mine")
        elif "selection" in document or "method" in document:
            config.parse(config.Recipe, block, name_of(page), name="mine")
        elif "model" in document:
            config.parse(config.Project, block, name_of(page))
        else:
            config.Project.model_validate({**BASE, **document})


def commands(text: str) -> list[list[str]]:
    """Every call of ``edgekit`` in code spans and code blocks."""
    spans = re.findall(r"`([^`\n]+)`", prose(text))
    lines = "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)).splitlines()
    found = [match[1] for line in [*spans, *lines] if (match := re.search(r"(?:^|[ /])edgekit ((?:[a-z]+|-).*)$", line.strip()))]
    return [shlex.split(call.split(" && ")[0].split(" > ")[0], comments=True) for call in found if call.split()[0] in COMMANDS or call[0] == "-"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_the_flags_that_pages_give_them(page):
    for verb, *arguments in commands(page.read_text(encoding="utf-8")):
        if verb.startswith("-"):
            continue
        known = options_of(COMMANDS[verb])
        given = {argument.split("=")[0] for argument in arguments if argument.startswith("-")}
        assert given <= known, f"edgekit {verb}: {sorted(given - known)}"


def test_code_spans_name_no_unknown_flag():
    known = set().union(*map(options_of, COMMANDS.values())) | {"--version", "--help"}
    for page in ("README.md", "docs/ci.md", "docs/errors.md", "docs/report.md", "docs/calibration.md"):
        for flag in re.findall(r"`(--[a-z0-9-]+)", read(page)):
            assert flag in known, f"{page}: {flag}"


def test_readme_lists_every_verb():
    listed = [re.match(r"`edgekit (\w+)", cells[0])[1] for cells in rows(sections(prose(read("README.md")))["Command line"]) if "edgekit" in cells[0]]
    assert listed == list(COMMANDS)


def test_readme_lists_every_exit_code():
    known = {kind.exit_code for kind in errors._family(errors.ToolkitError).values()}
    known |= {errors.EXIT_PASS, errors.EXIT_CHECK_FAILED, errors.EXIT_INCONCLUSIVE}
    listed = {int(cells[0]) for cells in rows(sections(prose(read("README.md")))["Command line"]) if cells[0].isdigit()}
    assert listed == known


def test_errors_lists_every_class_with_its_codes():
    expected = {kind.__name__: (f"`{kind.code}`", str(kind.exit_code)) for kind in errors._family(errors.ToolkitError).values()}
    expected["StageError"] = ("`stage`", "5")
    listed = {cells[0].strip("`"): (cells[1], cells[2]) for cells in rows(sections(prose(read("docs/errors.md")))["Errors and exit codes"])}
    assert listed == expected
    page = read("docs/errors.md")
    drawn = re.findall(r"^[│├└─ ]*(\w+)$", blocks(page, "")[1], flags=re.MULTILINE)
    assert drawn == list(expected)


def test_python_lists_every_public_name():
    page = read("docs/python.md")
    assert {name for name in toolkit.__all__ if not re.search(rf"`toolkit\.{name}\b", page)} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_call_what_exists(page):
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "toolkit"):
                continue
            assert node.attr in toolkit.__all__ or (ROOT / "toolkit" / f"{node.attr}.py").exists(), node.attr
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "toolkit":
                known = inspect.signature(getattr(toolkit, call.func.attr)).parameters
                more = training.Finetune.model_fields if "settings" in known else ()
                assert {keyword.arg for keyword in call.keywords} <= {*known, *more}, ast.unparse(call)


def test_python_signatures_are_the_real_ones():
    """Every parameter and default that the page writes down; ``store`` and ``listener`` are explained once for all."""
    written = re.findall(r"^`toolkit\.(\w+)(\([^`]*\))`", read("docs/python.md"), flags=re.MULTILINE)
    assert len(written) >= 14
    for name, text in written:
        function = getattr(toolkit, name)
        if isinstance(function, type):
            continue
        scope: dict = {}
        exec(f"def f{text}: pass", scope)
        real = {n: p.default for n, p in inspect.signature(function).parameters.items() if n not in ("store", "listener")}
        documented = {n: p.default for n, p in inspect.signature(scope["f"]).parameters.items()}
        assert documented == real, name


def test_report_explains_every_field():
    page = read("docs/report.md")
    kinds = report_json.schema()
    for kind in [kinds, *kinds["$defs"].values()]:
        for field in kind.get("properties", ()):
            assert f"`{field}`" in page, field


def test_report_figures_are_made_as_described(tmp_path):
    out = tmp_path / "examples" / "digits" / "edgekit-out"
    out.mkdir(parents=True)
    (tmp_path / "docs" / "assets").mkdir(parents=True)
    report = sample_report()
    measured = tuple(row for row in report.rows if row.metric and row.change and row.latency_ms)
    environment = {**report.environment, "cores": 2, "load_1min": 0.1}
    (out / "report.json").write_text(report_json.render(report.model_copy(update={"rows": measured, "environment": environment})), encoding="utf-8")
    script = blocks(read("docs/report.md"), "python")[0]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("\n| `digits.") == len(measured)
    assert (tmp_path / "docs/assets/digits.svg").read_text(encoding="utf-8").count("class='dot'") == len(measured)


def test_readme_table_has_the_columns_that_the_script_prints():
    script = blocks(read("docs/report.md"), "python")[0]
    header = re.search(r'print\("(\| file .*)"\)', script)[1]
    assert header in read("README.md")


def test_architecture_lists_every_module():
    listed = set(re.findall(r"^\| `(toolkit/[^`]+)`", read("docs/architecture.md"), flags=re.MULTILINE))
    present = {path.relative_to(ROOT).as_posix() for path in (ROOT / "toolkit").rglob("*.py")}
    empty = {path for path in present if path.endswith("/__init__.py") and path not in ("toolkit/__init__.py", "toolkit/cli/__init__.py")}
    verbs = {f"toolkit/cli/{verb}.py" for verb in COMMANDS}
    assert {path for path in listed if path.endswith(".py")} == present - empty - verbs
    assert all((ROOT / path).is_file() for path in listed)


def test_architecture_draws_the_real_layers():
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    assert "\n".join(contracts[0]["layers"]) in read("docs/architecture.md")


def test_calibration_lists_every_recipe():
    listed = {cells[0].strip("`"): cells[1:] for cells in rows(sections(prose(read("docs/calibration.md")))["Recipes"])}
    for name in resources.recipe_names():
        recipe = resources.load_recipe(name)
        assert listed.pop(name) == [recipe.task.replace("-", " "), str(recipe.samples), str(recipe.min_samples), recipe.selection]
    assert not listed


def test_readme_snippet_runs(tmp_path):
    """The Python example as it stands, in a process of its own."""
    for module in ("torch", "onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(module)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "EDGEKIT_CACHE": str(tmp_path / "cache")}
    snippet = blocks(read("README.md"), "python")[0]
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny.static_wi8_ai8.onnx").is_file()
    assert "n=400" in done.stdout
