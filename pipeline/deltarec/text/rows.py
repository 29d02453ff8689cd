# SPDX-License-Identifier: Apache-2.0
"""Rows with text: items or users, one row each, in Parquet files with string columns."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from deltarec.config import Config
from deltarec.data.files import find


class TextRows(Config):
    """Items or users, one row each."""

    source: str
    """Parquet file, or folder of them: a local path or a URL."""
    key: str
    """Integer column of the item's or the user's id."""

    def read(self, columns: Iterable[str]) -> pa.Table:
        """The key and the given columns, of all files, in their order.

        Raises:
            ValueError: a column is missing or of a type that is no text, or an id is null or there
                twice.
        """
        table = read_columns(self.source, [self.key, *columns])
        for name in table.column_names:
            found = table.schema.field(name).type
            if name != self.key and not _is_text(found):
                needed = "a string, a number or a list of strings"
                raise ValueError(f"{self.source}: column '{name}' is {found}; it must be {needed}")
        check_ids(table, self.key, self.source, unique=True)
        return table


def check_ids(table: pa.Table, column: str, source: str, unique: bool) -> None:
    """Refuse a column that does not name each row's item or user.

    Raises:
        ValueError: it is no integer, a row has none, or two have the same where each is unique.
    """
    found = table.schema.field(column).type
    if not pa.types.is_integer(found):
        raise ValueError(f"{source}: column '{column}' is {found}; it must be an integer")
    if table[column].null_count:
        raise ValueError(f"{source}: column '{column}' has nulls; each row needs an id")
    if not unique:
        return
    counts = pc.value_counts(table[column])  # pyright: ignore[reportAttributeAccessIssue]
    twice = counts.filter(pc.greater(counts.field("counts"), 1))  # pyright: ignore
    if len(twice):
        first = twice.field("values")[0]
        raise ValueError(f"{source}: {column} {first} is in {twice[0]['counts']} rows")


def read_columns(source: str, columns: Iterable[str]) -> pa.Table:
    """Columns of all Parquet files of a source, each column once.

    Raises:
        ValueError: there is no such file or column.
    """
    wanted = list(dict.fromkeys(columns))
    tables = []
    for file in find(source, ["."], mend="mend or remove the file"):
        missing = [name for name in wanted if name not in file.schema.names]
        if missing:
            known = ", ".join(file.schema.names)
            raise ValueError(f"{file.path}: column '{missing[0]}' is missing; the file has {known}")
        tables.append(file.open().read(columns=wanted).select(wanted))
    return pa.concat_tables(tables)


def as_text(values: pa.ChunkedArray) -> list[str | None]:
    """A column's values as text; a list's parts are joined by commas, blank text is null."""
    texts = []
    for value in values.to_pylist():
        if isinstance(value, list):
            value = ", ".join(str(part) for part in value if part is not None)
        text = None if value is None else str(value).strip()
        texts.append(text or None)
    return texts


def _is_text(arrow_type: pa.DataType) -> bool:
    if pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type):
        arrow_type = arrow_type.value_type
    string = pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type)
    return string or pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type)
