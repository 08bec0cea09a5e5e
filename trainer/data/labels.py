"""Reads data.labels: a CSV or Parquet file that gives each image its label, and optionally its group and its side."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.dataset import DataError
from trainer.formatting import one_line
from trainer.storage import NotFound, Store

SIDES = {
    "": "",
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Values of the column `split` -> the side."""
COLUMNS = ("key", "label", "group", "split")
"""The columns that are read. The first two are required; other columns are ignored."""


class Label(NamedTuple):
    """What the file says about an image."""

    name: str
    """Name of its class."""
    group: str
    """Empty without a group."""
    side: str
    """training, validation, test, or empty."""


class Labels(NamedTuple):
    """A labels file."""

    of: dict[str, Label]
    """Key -> label."""
    grouped: bool
    """Whether the file has the column `group`."""


def read_labels(store: Store, key: str) -> Labels:
    """Reads the file `key` of `store`. A repeated row counts once.

    Raises DataError if the file is missing, is neither CSV (UTF-8) nor Parquet, lacks a column, or has an empty key or label, an
    unknown side or two different rows for one key; StoreError.
    """
    where = f"data.labels = {store.url}/{key}"
    try:
        return store.read_again(lambda: _labels(store.get(key), where), NotFound, DataError)
    except NotFound:
        raise DataError(f"{where} does not exist. Fix: correct the path.") from None


def _labels(content: bytes, where: str) -> Labels:
    columns, rows = _parquet(content, where) if content[:4] == b"PAR1" else _csv(content, where)
    if missing := [name for name in COLUMNS[:2] if name not in columns]:
        found = ", ".join(map(repr, columns[:8])) or "none"
        raise DataError(f"{where} has no column {' and no column '.join(map(repr, missing))} (found: {found}). Fix: add it.")
    labels: dict[str, Label] = {}
    for number, row in enumerate(rows, start=1):
        values = {name: "" if row[name] is None else str(row[name]).strip() for name in COLUMNS if name in columns}
        if empty := [name for name in COLUMNS[:2] if not values[name]]:
            raise DataError(f"{where} has no {empty[0]} in row {number}. Fix: fill it in or delete the row.")
        side = values.get("split", "")
        if side.lower() not in SIDES:
            raise DataError(f"{where} has split = {side!r} in row {number}. Fix: use training, validation, test or leave it empty.")
        label = Label(values["label"], values.get("group", ""), SIDES[side.lower()])
        if (before := labels.setdefault(values["key"], label)) != label:
            what, one, other = next(each for each in zip(COLUMNS[1:], before, label, strict=True) if each[1] != each[2])
            raise DataError(
                f"{where} has the key {values['key']!r} twice, with {what} = {one!r} and {other!r} (row {number}). "
                "Fix: delete the wrong row."
            )
    if not labels:
        raise DataError(f"{where} has no rows. Fix: add a row for each image.")
    return Labels(labels, "group" in columns)


Rows = tuple[Sequence[str], Iterable[Mapping[str, Any]]]
"""The names of all columns, and the rows with at least those of COLUMNS that exist."""


def _csv(content: bytes, where: str) -> Rows:
    try:
        if b"\0" in content:
            raise ValueError("it contains zero bytes")
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        header, *lines = [row for row in csv.reader(text, strict=True) if row] or [[]]
        header = [name.strip() for name in header]
        for number, row in enumerate(lines, start=1):
            if len(row) != len(header):
                raise ValueError(f"row {number} has {len(row)} cells, the header {len(header)}")
    except (csv.Error, ValueError) as error:
        raise DataError(f"{where} is neither CSV in UTF-8 nor Parquet ({one_line(error)}). Fix: correct the file.") from None
    return header, (dict(zip(header, row, strict=True)) for row in lines)


def _parquet(content: bytes, where: str) -> Rows:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names
        return names, file.read([name for name in COLUMNS if name in names]).to_pylist()
    except Exception as error:  # a file of any content
        raise DataError(f"{where} is not a valid Parquet file ({one_line(error)}). Fix: correct it.") from None
