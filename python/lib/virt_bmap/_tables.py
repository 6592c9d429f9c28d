"""Rows as tables."""

from __future__ import annotations

from typing import Any

from ._native import Rows, escape

#: The fields that are names from a guest.
NAMES = frozenset({"device", "path", "old_path"})


def frame(rows: Rows[Any]) -> Any:
    """Makes a ``pandas.DataFrame`` of rows. Its texts must be UTF-8, so names are escaped."""
    import pandas

    columns: dict[str, list[Any]] = {field: [] for field in rows.fields}
    for row in rows:
        for field, value in zip(columns, row, strict=True):
            is_name = field in NAMES and value is not None
            columns[field].append(escape(value) if is_name else value)
    return pandas.DataFrame(columns)
