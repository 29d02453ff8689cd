# SPDX-License-Identifier: Apache-2.0
"""Tensors in a folder, by `torch.distributed.checkpoint`: written whole, read without trust.

Loading executes no code from the files: tensors are read as plain tensors, and the index that
`torch.distributed.checkpoint` pickles is read by an unpickler that knows its few types only.
"""

import os
import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItem

from deltarec.supervision import Watchdog

PIECE_BYTES = 16 << 20
"""Largest piece handed to the operating system at once, so that progress can be seen."""


def write(
    tensors: dict[str, Any], folder: Path, group: dist.ProcessGroup, watchdog: Watchdog
) -> dict[str, int]:
    """Write every rank's part; a collective of the group. All is on the disk when it returns.

    Returns:
        CRC32 of each file that this rank has written, by name.

    Raises:
        ValueError: a rank could not write, on all ranks.
    """
    writer = FileSystemWriter(folder)
    writer.fs = files = _WatchedFiles(watchdog)
    try:
        dcp.save(tensors, storage_writer=writer, planner=_NoClones(), process_group=group)
    except dcp.api.CheckpointException as error:
        raise ValueError(_first_failure(error)) from error
    return {name.removesuffix(".tmp"): value for name, value in files.checksums.items()}


def read(tensors: dict[str, Any], folder: Path, watchdog: Watchdog | None = None) -> None:
    """Fill tensors, which may be sharded in any way, by name; a collective of all ranks.

    Raises:
        ValueError: the folder holds no such tensors, or is damaged.
    """
    reader = _SafeReader(folder)
    if watchdog is not None:
        reader.fs = _WatchedFiles(watchdog)
    try:
        dcp.load(tensors, storage_reader=reader)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{folder}: this checkpoint cannot be read: {error}") from error
    except dcp.api.CheckpointException as error:
        message = f"{folder}: this checkpoint cannot be read: {_first_failure(error)}"
        raise ValueError(message) from error


def sizes(folder: Path) -> dict[str, torch.Size]:
    """The size of every tensor in a folder, by name.

    Raises:
        ValueError: the folder's index cannot be read, or holds other things than tensors.
    """
    try:
        stored = _SafeReader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{folder}: this checkpoint's index cannot be read: {error}") from error
    found = {}
    for name, item in stored.items():
        # Anything else is unpickled by `torch.distributed.checkpoint`, which would execute it.
        if not isinstance(item, TensorStorageMetadata):
            raise ValueError(f"{folder}: '{name}' is not a tensor, so it is not loaded")
        found[name] = item.size
    return found


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, after files were made, renamed or replaced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small file, replacing an old one in one step; it is on the disk afterwards."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def _first_failure(error: dcp.api.CheckpointException) -> str:
    rank, (cause, _) = next(iter(error.failures.items()))
    return f"rank {rank}: {cause}"


class _NoClones(DefaultSavePlanner):
    """Hands over tables as they are.

    The writer clones each tensor that is part of a larger storage, as tables are that share one,
    and keeps all clones until the last is written: the memory of all tables once more.
    """

    def resolve_data(self, write_item: WriteItem) -> Any:
        data = super().resolve_data(write_item)
        if isinstance(data, Tensor) and data.is_cpu and data.is_contiguous():
            return torch.from_numpy(data.detach().numpy())  # the same memory, a storage of its own
        return data


class _WatchedFiles(FileSystem):
    """Tells the watchdog of every piece that is read or written, and keeps checksums."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog = watchdog
        self.checksums: dict[str, int] = {}
        """CRC32 of each file written, by name."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as stream:
            self.watchdog.beat()
            file = _WatchedFile(stream, self.watchdog)
            yield file
        if "w" in mode:
            self.checksums[Path(path).name] = file.checksum


class _WatchedFile:
    """A file that is written in pieces."""

    def __init__(self, stream: Any, watchdog: Watchdog) -> None:
        self.stream = stream
        self.watchdog = watchdog
        self.checksum = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            self.checksum = zlib.crc32(piece, self.checksum)
            self.stream.write(piece)
            self.watchdog.beat()
        return len(view)

    def read(self, size: int = -1) -> bytes:
        self.watchdog.beat()
        return self.stream.read(size)

    def readinto(self, buffer: Any) -> int:
        self.watchdog.beat()
        return self.stream.readinto(buffer)


class _SafeReader(FileSystemReader):
    """Reads the index with an unpickler that admits no types but the index's own."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _IndexUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    NAMES = (
        ("torch.distributed.checkpoint.metadata", "Metadata"),
        ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
        ("torch.distributed.checkpoint.metadata", "StorageMeta"),
        ("torch.distributed.checkpoint.metadata", "TensorProperties"),
        ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("pathlib", "PosixPath"),
    )

    def find_class(self, module: str, name: str) -> Any:
        is_type_of_tensor = module == "torch" and isinstance(
            getattr(torch, name, None), torch.dtype
        )
        if is_type_of_tensor or (module, name) in self.NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its index asks for {module}.{name}, which no index needs")
