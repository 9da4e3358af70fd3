"""A workflow's and a pipeline's shell steps, run literally as GitHub and GitLab would run them. Steps that use other actions are listed."""

from __future__ import annotations

import operator
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

OURS = re.compile(r"[\w-]+/edgekit@")


@dataclass
class Outcome:
    """What became of a job, and what it left behind."""

    status: str = "success"
    log: str = ""
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)


def github(workflow: Path, action: Path, workspace: Path, scratch: Path, environment: dict[str, str], event: dict[str, Any]) -> Outcome:
    """Runs the steps of a workflow's only job that use our action."""
    (job,) = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    context = {"github": {"token": "token", "repository": "owner/phone", "sha": "0", "workspace": str(workspace), "event": event}}
    environment = environment | {name: fill(value, context) for name, value in job.get("env", {}).items()}
    outcome = Outcome()
    for step in job["steps"]:
        if OURS.match(step["uses"]):
            _composite(yaml.safe_load(action.read_text(encoding="utf-8")), step["with"], context, workspace, scratch, environment, outcome)
        else:
            outcome.left_out[step["uses"]] = step.get("with", {})
    return outcome


def _composite(action, given, context, workspace, scratch, environment, outcome) -> None:
    unknown = set(given) - set(action["inputs"])
    assert not unknown, f"the action has no input {unknown}"
    defaults = {name: fill(one.get("default", ""), context) for name, one in action["inputs"].items()}
    context = {**context, "inputs": defaults | {name: fill(value, context) for name, value in given.items()}, "steps": {}}
    for step in action["runs"]["steps"]:
        if not condition(step.get("if", ""), context, ok=outcome.status == "success"):
            continue
        if "uses" in step:
            outcome.left_out[step["uses"]] = {name: fill(value, context) for name, value in step["with"].items()}
            continue
        outputs, code = _step(step, context, workspace, scratch, environment, outcome)
        context["steps"][step.get("id", step["name"])] = {"outputs": outputs}
        outcome.status = outcome.status if code == 0 else "failure"
    outcome.outputs = {name: fill(one["value"], context) for name, one in action["outputs"].items()}


def _step(step, context, workspace, scratch, environment, outcome) -> tuple[dict[str, str], int]:
    files = {name: scratch / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        file.write_text("", encoding="utf-8")
    script = scratch / "step.sh"
    script.write_text(step["run"], encoding="utf-8")
    own = {name: fill(value, context) for name, value in step.get("env", {}).items()}
    # The command line behind "shell: bash", from GitHub's reference of workflow syntax.
    code = _run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        workspace,
        environment | own | {n: str(f) for n, f in files.items()},
        outcome,
    )
    outcome.ran.append(step["name"])
    outcome.summary += files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")
    return dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text(encoding="utf-8").splitlines()), code


def gitlab(pipeline: Path, template: Path, workspace: Path, environment: dict[str, str], shell: str = "bash") -> Outcome:
    """Runs the only job of a pipeline that includes our template."""
    document = yaml.safe_load(pipeline.read_text(encoding="utf-8"))
    assert all(one["remote"].endswith(template.name) for one in document.pop("include"))
    (own,) = document.values()
    job = _merged(yaml.safe_load(template.read_text(encoding="utf-8"))[own.pop("extends")], own)
    variables = {name: str(value).replace("$CI_PROJECT_DIR", str(workspace)) for name, value in job["variables"].items()}
    strict = "set -eo pipefail" if shell == "bash" else "set -e"
    script = "\n".join([strict, *job["before_script"], *job["script"]])
    outcome = Outcome()
    code = _run([shell, "-c", script], workspace, environment | {"CI_PROJECT_DIR": str(workspace), **variables}, outcome)
    allowed = job["allow_failure"] and job["allow_failure"]["exit_codes"]
    outcome.status = "success" if code == 0 else "warning" if code == allowed else "failure"
    outcome.outputs = {"code": str(code)}
    outcome.left_out = {"artifacts": job["artifacts"]}
    return outcome


def _merged(base: dict, own: dict) -> dict:
    """Merges as ``extends`` does: tables key by key, anything else replaces."""
    both = {
        name: _merged(base[name], value) if isinstance(value, dict) and isinstance(base.get(name), dict) else value for name, value in own.items()
    }
    return {**base, **both}


def _run(command, workspace, environment, outcome) -> int:
    done = subprocess.run(
        command, cwd=workspace, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300
    )
    outcome.log += done.stdout
    return done.returncode


def fill(value: Any, context: dict[str, Any]) -> str:
    """Replaces the expressions in a value; YAML's booleans are words to an action."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"\$\{\{(.*?)\}\}", lambda match: _text(_Expression(match[1], context).value()), text)


def condition(text: str, context: dict[str, Any], *, ok: bool) -> bool:
    """Decides whether a step runs; without ``always()`` it runs only after successes."""
    return (ok or "always()" in text) and (not text or bool(_Expression(text, context).value()))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Expression:
    """GitHub's expressions as far as an action of ours uses them: names, texts, ``== != && || !`` and ``always()``."""

    def __init__(self, text: str, context: dict[str, Any]) -> None:
        self._tokens = re.findall(r"'[^']*'|==|!=|&&|\|\||!|always\(\)|[()]|[\w.-]+", text)
        assert "".join(self._tokens) == re.sub(r"\s+(?=(?:[^']*'[^']*')*[^']*$)", "", text), f"not understood: {text}"
        self._context = context

    def value(self) -> Any:
        found = self._either()
        assert not self._tokens, self._tokens
        return found

    def _either(self) -> Any:
        found = self._both()
        while self._next("||"):
            other = self._both()
            found = found or other
        return found

    def _both(self) -> Any:
        found = self._comparison()
        while self._next("&&"):
            other = self._comparison()
            found = found and other
        return found

    def _comparison(self) -> Any:
        found = self._atom()
        for sign, compare in (("==", operator.eq), ("!=", operator.ne)):
            if self._next(sign):
                return compare(_text(found), _text(self._atom()))
        return found

    def _atom(self) -> Any:
        token = self._tokens.pop(0)
        if token == "!":
            return not self._atom()
        if token == "(":
            found = self._either()
            assert self._next(")")
            return found
        if token.startswith("'"):
            return token[1:-1]
        return True if token == "always()" else self._look_up(token)

    def _look_up(self, name: str) -> Any:
        found: Any = self._context
        assert name.partition(".")[0] in found, f"unknown context in {name}"
        for part in name.split("."):
            found = found.get(part, "") if isinstance(found, dict) else ""
        return found

    def _next(self, token: str) -> bool:
        if self._tokens[:1] != [token]:
            return False
        self._tokens.pop(0)
        return True


def plain_environment() -> dict[str, str]:
    """The environment of this process, less what a CI server or a test run put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "CI_", "PYTEST_", "EDGEKIT_", "PYTHONPATH", "PIP_"))}
