# SPDX-License-Identifier: Apache-2.0
"""Finding Parquet files: folders, globs, partitions, local or on an object store."""

import fnmatch
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

ARROW_SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs")
"""Schemes that Arrow reads itself; every other one goes through fsspec."""
FOOTER_BYTES = 65_536
"""What is read of a file's end at first; a longer footer takes a second read."""
READ_BYTES = 1 << 24

Damage = dict[str, str]
"""Damaged files: path to what is wrong."""
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What Arrow raises over damaged bytes."""


@dataclass(frozen=True)
class ParquetFile:
    """One file: where it is, and its footer."""

    filesystem: fs.FileSystem
    path: str
    metadata: pq.FileMetaData
    num_bytes: int

    @cached_property
    def schema(self) -> pa.Schema:
        return self.metadata.schema.to_arrow_schema()

    @property
    def row_groups(self) -> list[int]:
        """Rows of each row group."""
        return [self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups)]

    def open(self) -> pq.ParquetFile:
        """The file, whose pages are checked against their checksums where they have any.

        Raises:
            ValueError: it is gone, or no longer the file that it was.
        """
        try:
            source = self._source()
            num_bytes = source.size()
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read: {one_line(error)}") from error
        if num_bytes != self.num_bytes:
            raise ValueError(
                f"{self.path}: it has changed since the job began, from {self.num_bytes} bytes to "
                f"{num_bytes}; write new data beside the old, and start the job again"
            )
        return pq.ParquetFile(source, metadata=self.metadata, page_checksum_verification=True)

    def require_bytes(self) -> None:
        """Tell a storage that fails from a file that is damaged: read the file's raw bytes.

        Raises:
            ValueError: they cannot be read.
        """
        try:
            with self._source() as source:
                while source.read(READ_BYTES):
                    pass
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read: {one_line(error)}") from error

    def _source(self) -> pa.NativeFile:
        local = isinstance(self.filesystem, fs.LocalFileSystem)
        return pa.memory_map(self.path) if local else self.filesystem.open_input_file(self.path)


def find(
    source: str,
    patterns: Sequence[str],
    damaged: Damage | None = None,
    mend: str = "mend or remove the file, or set data.on_bad_file to skip",
    may_be_empty: bool = False,
) -> list[ParquetFile]:
    """The Parquet files under `source` that the patterns name, in the order of pattern, then path.

    Args:
        source: a folder or a single file: a local path, or a URL (`s3://`, `gs://`, `hdfs://`,
            whatever fsspec knows).
        patterns: paths relative to `source`: files, folders (everything below, partitions such as
            `date=2026-11-01` too), or globs of either. `.` is the source itself. Names that begin
            with `_` or `.` are skipped inside folders.
        damaged: where files are noted that are not readable Parquet; without it they stop.
        mend: what to tell a user whom such a file stops.
        may_be_empty: whether there may be no file, or none with a row.

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
        if not matches and not may_be_empty:
            raise ValueError(f"no file matches '{pattern}' under {source}")
        paths += [path for path in matches if path not in paths]
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(partial(_read_footer, filesystem), paths))
    files = [file for file in found if isinstance(file, ParquetFile)]
    bad = {path: what for path, what in zip(paths, found, strict=True) if isinstance(what, str)}
    if bad and damaged is None:
        path, what = next(iter(bad.items()))
        raise ValueError(f"{path}: {what}; {mend}")
    if damaged is not None:
        damaged.update(bad)
    if not any(file.metadata.num_rows for file in files) and (bad or not may_be_empty):
        skipped = f"; {len(bad)} damaged files are skipped" if bad else ""
        raise ValueError(
            f"the dataset is empty: {', '.join(patterns)} under {source} has no rows{skipped}"
        )
    return files


def listing(source: str, patterns: Sequence[str]) -> list[str]:
    """Paths relative to `source` of all files that the patterns name, hidden ones too, sorted.

    What is not there is not listed: it may come.

    Raises:
        ValueError: the storage cannot be listed.
    """
    filesystem, root = _open_filesystem(source)
    try:
        found = {p for pattern in patterns for p in _match(filesystem, root, pattern, hidden=True)}
    except OSError as error:
        raise ValueError(f"{source} cannot be listed: {one_line(error)}") from error
    return sorted(path[len(root.rstrip("/")) :].strip("/") for path in found)


def digest(files: Sequence[ParquetFile]) -> str:
    """Tells one list of files from another, by paths and sizes."""
    named = [(file.path, file.num_bytes, file.row_groups) for file in files]
    return sha256(json.dumps(named).encode()).hexdigest()


def one_line(error: Exception) -> str:
    """An error of Arrow's, whose messages may have several lines."""
    return " ".join(str(error).split())


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


def _match(filesystem: fs.FileSystem, root: str, pattern: str, hidden: bool = False) -> list[str]:
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
        shown = hidden or not any(part[0] in "._" for part in inside)
        if item.type == fs.FileType.File and shown and _begins(inside, wanted):
            matched.append(item.path)
    return sorted(matched)


def _begins(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the first parts of a path match the globs, one for one."""
    return len(parts) >= len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _read_footer(filesystem: fs.FileSystem, path: str) -> ParquetFile | str:
    """The file, or what is wrong with it.

    Raises:
        ValueError: the storage does not give the bytes, which says nothing of the file.
    """
    try:
        with filesystem.open_input_file(path) as stream:
            num_bytes = stream.size()
            footer = _tail(stream, FOOTER_BYTES)
            length = int.from_bytes(footer[-8:-4], "little") + 8
            if FOOTER_BYTES < length <= num_bytes:
                footer = _tail(stream, length)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {one_line(error)}") from error
    try:
        metadata = pq.read_metadata(pa.BufferReader(footer))
        file = ParquetFile(filesystem, path, metadata, num_bytes)
        assert file.schema.names is not None  # here, where an error is still the file's
    except UNREADABLE as error:
        return f"not a readable Parquet file: {one_line(error)}"
    if min(file.row_groups, default=0) < 0 or sum(file.row_groups) != metadata.num_rows:
        return "not a readable Parquet file: its footer contradicts itself on the number of rows"
    return file


def _tail(stream: pa.NativeFile, num_bytes: int) -> bytes:
    kept = min(num_bytes, stream.size())
    return stream.read_at(kept, stream.size() - kept)
