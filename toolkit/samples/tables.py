"""Tables of texts and their classes: ``.csv``, ``.tsv``, ``.jsonl`` and ``.parquet``."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import InputRejected, MissingExtra
from toolkit.factory import first_line
from toolkit.mistakes import nearest

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
Table = dict[str, list[Any]]


def read(file: Path, columns: Sequence[str]) -> Table:
    """Reads some columns of a table.

    Args:
        file: The table. Text is UTF-8; ``.csv`` and ``.tsv`` have names in their first line.
        columns: Names of the columns.

    Returns:
        The values of each column, as many as there are rows.

    Raises:
        InputRejected: The table cannot be read, or lacks a column or a value.
        MissingExtra: Parquet needs pyarrow.
    """
    try:
        table = _parquet(file, columns) if file.suffix == ".parquet" else _lines(file, columns)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, ValueError) as error:
        raise InputRejected(
            f"is not a readable table: {first_line(error)}", where=str(file), hint="save it anew, as UTF-8 text or Parquet"
        ) from error
    for name, values in table.items():
        row = next((row for row, value in enumerate(values) if value is None or value == ""), None)
        if row is not None:
            raise InputRejected(f"column {name!r} is empty in row {row + 1}", where=str(file), hint="fill it in, or remove the row")
    if not any(table.values()):
        raise InputRejected("has no rows", where=str(file), hint="give at least one sample")
    return table


def check_columns(known: Sequence[str], columns: Sequence[str], where: str) -> None:
    """Makes sure that a table has the columns that are asked for.

    Raises:
        InputRejected: One is missing.
    """
    for name in columns:
        if name not in known:
            hint = f"{nearest(name, list(known))}; data.text and data.label name the columns"
            raise InputRejected(f"has no column {name!r}, found {', '.join(map(repr, known))}", where=where, hint=hint)


def _lines(file: Path, columns: Sequence[str]) -> Table:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in stream if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is not an object")
            known = list(dict.fromkeys(name for row in rows for name in row))
        else:
            reader = csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
            known, rows = list(reader.fieldnames or ()), list(reader)
    check_columns(known, columns, str(file))
    return {name: [row.get(name) for row in rows] for name in columns}


def _parquet(file: Path, columns: Sequence[str]) -> Table:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("reading .parquet needs pyarrow", where=str(file), hint='pip install "edgekit[finetune]"') from error
    opened = parquet.ParquetFile(file)
    check_columns(opened.schema_arrow.names, columns, str(file))
    return dict(opened.read(columns=list(columns)).to_pydict())
