"""The report for programs: one JSON document with a published schema, ``docs/schemas/report-2.schema.json``."""

from __future__ import annotations

import re
from typing import Any

from toolkit.evidence import Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def render(report: Report) -> str:
    """Writes the report as JSON."""
    return report.model_dump_json(by_alias=True, indent=2) + "\n"


def parse(text: str) -> Report:
    """Reads what :func:`render` wrote.

    Raises:
        pydantic.ValidationError: It is not JSON, or not a report of this schema version.
    """
    return Report.model_validate_json(text)


def schema() -> dict[str, Any]:
    """Describes the document as JSON Schema 2020-12.

    Every field is required, since a report spells out absent values as ``null``.
    """
    document = Report.model_json_schema(by_alias=True)
    kinds = [document, *document["$defs"].values()]
    for kind in kinds:
        if "properties" in kind:
            kind["required"] = list(kind["properties"])
            _describe(kind)
    return {"$schema": DIALECT, **document, "title": "Edgekit report, schema 2"}


def _describe(kind: dict[str, Any]) -> None:
    """Moves what a docstring says about attributes to the properties themselves."""
    summary, _, attributes = kind.get("description", "").partition("\n\nAttributes:\n")
    kind["description"] = " ".join(summary.split())
    for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE):
        alias = "schema" if name == "schema_version" else name
        kind["properties"][alias]["description"] = " ".join(text.replace("``", "").split())
