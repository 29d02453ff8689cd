# SPDX-License-Identifier: Apache-2.0
"""The item table of movies: one row each, with the columns that texts are made of."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ARTICLES = "(The|A|An|Le|La|Les|Il|Lo|El|Los|Das|Der|Die)"


def write_items(target: Path, movies: pd.DataFrame) -> None:
    """Write `items/` with the index of `movies`, and of it what is there of:

    title (`Matrix, The (1999)` becomes `The Matrix`), year, genres (a list), director, actors, plot.
    What the source does not know is null.
    """
    titles = movies["title"].str.replace(r"\s*\(\d{4}\)\s*$", "", regex=True)
    pattern = rf"^(.*), {ARTICLES}(?= \(|$)"
    columns = {
        str(movies.index.name): pa.array(movies.index.to_numpy(), pa.int64()),
        "title": pa.array(titles.str.replace(pattern, r"\2 \1", regex=True)),
    }
    if "year" in movies:
        columns["year"] = pa.array(movies["year"], pa.int64(), from_pandas=True)
    if "genres" in movies:
        genres = movies["genres"].str.split("|")
        columns["genres"] = pa.array(genres, pa.list_(pa.string()), from_pandas=True)
    for name in ("director", "actors", "plot"):
        if name in movies:
            known = movies[name].where(movies[name] != "N/A", None)
            columns[name] = pa.array(known, pa.string(), from_pandas=True)
    file = target / "items" / "part-00000.parquet"
    file.parent.mkdir()
    pq.write_table(pa.table(columns), file, compression="zstd", write_page_checksum=True)
