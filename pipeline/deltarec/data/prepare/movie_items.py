# SPDX-License-Identifier: Apache-2.0
"""The item table of movies: one row each, with the columns that texts are made of."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ARTICLES = "(The|A|An|Le|La|Les|Il|Lo|El|Los|Das|Der|Die)"
COLUMNS = {
    "year": pa.int64(),
    "genres": pa.list_(pa.string()),
    "director": pa.string(),
    "actors": pa.string(),
    "plot": pa.string(),
}
"""What not every source knows."""


def missing_texts(movies: pd.DataFrame) -> list[str]:
    """A note on the columns that a source of movies does not have, if there are such."""
    missing = [name for name in COLUMNS if name not in movies]
    told = f"the source has no {', '.join(missing)}: null in items/, texts are of the rest"
    return [told] if missing else []


def write_items(target: Path, movies: pd.DataFrame) -> None:
    """Write `items/`: the index of `movies`, title, year, genres (a list), director, actors, plot.

    `Matrix, The (1999)` becomes `The Matrix`. What the source does not know is null: a column that
    it has not, all of it.
    """
    titles = movies["title"].str.replace(r"\s*\(\d{4}\)\s*$", "", regex=True)
    pattern = rf"^(.*), {ARTICLES}(?= \(|$)"
    columns = {
        str(movies.index.name): pa.array(movies.index.to_numpy(), pa.int64()),
        "title": pa.array(titles.str.replace(pattern, r"\2 \1", regex=True)),
    }
    for name, kind in COLUMNS.items():
        if name not in movies:
            columns[name] = pa.nulls(len(movies), kind)
            continue
        known = movies[name].where(movies[name] != "N/A", None)
        known = known.str.split("|") if name == "genres" else known
        columns[name] = pa.array(known, kind, from_pandas=True)
    file = target / "items" / "part-00000.parquet"
    file.parent.mkdir()
    pq.write_table(pa.table(columns), file, compression="zstd", write_page_checksum=True)
