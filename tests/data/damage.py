# SPDX-License-Identifier: Apache-2.0
"""Ways to damage a Parquet file."""

from pathlib import Path

import pyarrow.parquet as pq


def damage_row_group(path: Path, group: int, column: str) -> None:
    """Overwrite some bytes of a column's values in a row group; its checksum tells."""
    row_group = pq.read_metadata(path).row_group(group)
    chunks = [row_group.column(i) for i in range(row_group.num_columns)]
    chunk = next(c for c in chunks if c.path_in_schema.split(".")[0] == column)
    end = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size
    content = bytearray(path.read_bytes())
    for place in range(end - 8, end):
        content[place] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path, kept: float) -> None:
    """Keep so large a part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
