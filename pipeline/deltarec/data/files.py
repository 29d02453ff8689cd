# SPDX-License-Identifier: Apache-2.0
"""Finding Parquet files: folders, globs, partitions, local or on an object store."""

import fnmatch
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

ARROW_SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs")
"""Schemes that Arrow reads itself; every other one goes through fsspec."""


@dataclass(frozen=True)
class ParquetFile:
    """One file: where it is, and its footer."""

    filesystem: fs.FileSystem
    path: str
    metadata: pq.FileMetaData

    @cached_property
    def schema(self) -> pa.Schema:
        return self.metadata.schema.to_arrow_schema()

    @property
    def row_groups(self) -> list[int]:
        """Rows of each row group."""
        return [self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups)]

    def open(self) -> pq.ParquetFile:
        local = isinstance(self.filesystem, fs.LocalFileSystem)
        source = pa.memory_map(self.path) if local else self.filesystem.open_input_file(self.path)
        return pq.ParquetFile(source, metadata=self.metadata)


def find(source: str, patterns: Sequence[str]) -> list[ParquetFile]:
    """The Parquet files under `source` that the patterns name, in the order of pattern, then path.

    Args:
        source: a folder or a single file: a local path, or a URL (`s3://`, `gs://`, `hdfs://`,
            whatever fsspec knows).
        patterns: paths relative to `source`: files, folders (everything below, partitions such as
            `date=2026-11-01` too), or globs of either. `.` is the source itself. Names that begin
            with `_` or `.` are skipped inside folders.

    Raises:
        ValueError: a pattern matches nothing, a file is not Parquet, or there is no row at all.
    """
    filesystem, root = _open_filesystem(source)
    paths: list[str] = []
    for pattern in patterns:
        try:
            matches = _match(filesystem, root, pattern)
        except OSError as error:
            raise ValueError(f"'{pattern}' under {source} cannot be listed: {error}") from error
        if not matches:
            raise ValueError(f"no file matches '{pattern}' under {source}")
        paths += [path for path in matches if path not in paths]
    with ThreadPoolExecutor(16) as threads:
        files = list(threads.map(lambda path: _read_footer(filesystem, path), paths))
    if not any(file.metadata.num_rows for file in files):
        raise ValueError(f"the dataset is empty: {', '.join(patterns)} under {source} has no rows")
    return files


def _open_filesystem(source: str) -> tuple[fs.FileSystem, str]:
    scheme = source.partition("://")[0] if "://" in source else ""
    try:
        if scheme in ARROW_SCHEMES:
            return fs.FileSystem.from_uri(source)
        if scheme:
            filesystem, path = fsspec.core.url_to_fs(source)
            return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
    except (ImportError, ValueError, OSError, pa.ArrowException) as error:
        raise ValueError(f"{source}: cannot open this address: {error}") from error
    return fs.LocalFileSystem(), source


def _match(filesystem: fs.FileSystem, root: str, pattern: str) -> list[str]:
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    globs = [i for i, part in enumerate(parts) if any(c in part for c in "*?[")]
    fixed, wanted = (parts[: globs[0]], parts[globs[0] :]) if globs else (parts, [])
    info = filesystem.get_file_info("/".join([root.rstrip("/") or "/", *fixed]))
    if info.type == fs.FileType.File:
        return [] if wanted else [info.path]
    if info.type == fs.FileType.NotFound:
        return []
    matched = []
    for item in filesystem.get_file_info(fs.FileSelector(info.path, recursive=True)):
        inside = item.path[len(info.path) :].strip("/").split("/")
        hidden = any(part[0] in "._" for part in inside)
        if item.type == fs.FileType.File and not hidden and _begins(inside, wanted):
            matched.append(item.path)
    return sorted(matched)


def _begins(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the first parts of a path match the globs, one for one."""
    return len(parts) >= len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _read_footer(filesystem: fs.FileSystem, path: str) -> ParquetFile:
    try:
        with filesystem.open_input_file(path) as stream:
            return ParquetFile(filesystem, path, pq.read_metadata(stream))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
