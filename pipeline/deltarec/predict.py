# SPDX-License-Identifier: Apache-2.0
"""Scores of a checkpoint for the rows of Parquet files: key columns and one score a task, out.

The rows are cut, in the order of the files, into *parts*, and each part into batches. Where the
cuts are follows from the input alone. A rank scores whole parts and writes each as one file, so
nothing is gathered, and memory holds one part's keys and scores. A batch has the same rows in the
same places, padded to the same size, whichever rank scores it; so its scores are the same bit for
bit on any number of ranks. Two things can round otherwise: matrix products on another number of
threads, and row-wise tables that pool lists of ids, whose partial sums are added between ranks.

A part gets its name when it is whole and on the disk, so a job that was killed goes on after the
parts that are there. `_SUCCESS` is written last.
"""

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from hashlib import sha256
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import nn
from typing_extensions import TypedDict

from deltarec.assembly import build_model
from deltarec.checkpoint import TrainState, load_model
from deltarec.data.files import ParquetFile, digest
from deltarec.data.prefetch import prefetched
from deltarec.data.scoring import Input
from deltarec.distributed import is_main, rank, world_size
from deltarec.job import Job
from deltarec.models.pairs import PairNetwork
from deltarec.models.ranking import predictions
from deltarec.progress import Progress

MANIFEST = "_predict.json"
SUCCESS = "_SUCCESS"
INVALID = b"deltarec.invalid"
"""Key of a part's footer: how many values each policy mended, as JSON."""


class Predicted(TypedDict):
    """Scores that were written."""

    step: int
    """Of the checkpoint."""
    rows: int
    parts: int
    """Files."""
    rows_scored: int
    """Not counting those that were there."""
    seconds: float
    invalid: dict[str, int]
    """Values that a policy mended, by `FEATURE.POLICY`."""
    output: str


def predict(
    job: Job, source: Input, checkpoint: Path, folder: Path, device: torch.device
) -> Predicted | None:
    """Score all rows of the input that have no scores in the folder yet; a collective.

    Args:
        job: what the checkpoint was trained by.
        source: the rows.
        checkpoint: what `checkpoint.find` gave.
        folder: where to write.
        device: of this rank.

    Returns:
        What was written, on the main rank; None on the others.

    Raises:
        ValueError: the input, the checkpoint or what the folder holds is not as needed.
    """
    started = time.monotonic()
    torch.use_deterministic_algorithms(job.train.deterministic)
    model = build_model(job, device).model
    state = load_model(checkpoint, model)
    model.eval()
    frozen = [t.frozen for t in job.embedding.resolved().values() if t.frozen is not None]
    beside = {
        "vectors": [file for table in frozen for file in table.files()],
        "events": job.data.files("events") if job.model.graph is not None else [],
    }
    output = Output(folder, source, state, beside)
    answer: list[Any] = [output.prepare() if is_main() else None]
    dist.broadcast_object_list(answer)
    missing: list[int] = answer[0]
    whole: Any = model.module
    graph = nullcontext()
    if isinstance(whole.network, PairNetwork):
        graph = whole.network.encoded_graph(whole.tables, device)
    with torch.no_grad(), graph:
        _score(job, model, source, missing, output, device)
    dist.barrier()
    if not is_main():
        return None
    return {
        "step": state.step,
        "rows": source.num_rows,
        "parts": source.num_parts,
        "rows_scored": sum(len(source.part(part)) for part in missing),
        "seconds": round(time.monotonic() - started, 3),
        "invalid": output.finish(),
        "output": str(folder),
    }


class Output:
    """A folder of parts.

    Args:
        folder: seen by all ranks.
        source: the input.
        state: of the checkpoint, which it identifies.
        beside: by name, what files the scores depend on besides.
    """

    def __init__(
        self, folder: Path, source: Input, state: TrainState, beside: dict[str, list[ParquetFile]]
    ) -> None:
        self.folder = folder
        self.source = source
        self.manifest: dict[str, Any] = {
            "step": state.step,
            "checkpoint": sha256(json.dumps(asdict(state)).encode()).hexdigest(),
            "input": digest(source.files),
            "rows": source.num_rows,
            "keys": source.key_schema.names,
            "batch_size": source.batch_size,
            "rows_per_part": source.rows_per_part,
        }
        self.manifest |= {name: digest(files) for name, files in beside.items() if files}

    def prepare(self) -> list[int]:
        """Make the folder, or go on in it; returns the parts that are missing.

        Raises:
            ValueError: it holds something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            found = json.loads(manifest.read_text())
            differing = [key for key, value in self.manifest.items() if found.get(key) != value]
            if differing:
                raise ValueError(
                    f"{self.folder}: holds predictions of another {' and '.join(differing)}; "
                    "remove the folder, or name another by --output"
                )
        elif any(self.folder.iterdir()):
            raise ValueError(f"{self.folder}: is not empty; name another folder by --output")
        else:
            with _whole(self.folder / MANIFEST) as path:
                path.write_text(json.dumps(self.manifest, indent=2) + "\n")
        for left_over in self.folder.glob("_*.partial"):
            left_over.unlink()
        return [part for part in range(self.source.num_parts) if not self._path(part).is_file()]

    def write(self, part: int, table: pa.Table, invalid: Counter[str]) -> None:
        """Write a whole part."""
        table = table.replace_schema_metadata({INVALID: json.dumps(invalid)})
        with _whole(self._path(part)) as path:
            pq.write_table(table, path)

    def finish(self) -> dict[str, int]:
        """Count all rows and say that they are there; returns the values mended by each policy.

        Raises:
            ValueError: a part has another number of rows than it was written with.
        """
        invalid: Counter[str] = Counter()
        for part in range(self.source.num_parts):
            path = self._path(part)
            metadata = pq.read_metadata(path)
            if metadata.num_rows != len(self.source.part(part)):
                raise ValueError(
                    f"{path}: has {metadata.num_rows} rows instead of "
                    f"{len(self.source.part(part))}; remove it and run the same command again"
                )
            invalid.update(json.loads(metadata.metadata[INVALID]))
        with _whole(self.folder / SUCCESS) as path:
            counts = {"rows": self.source.num_rows, "parts": self.source.num_parts}
            path.write_text(json.dumps(counts) + "\n")
        return dict(sorted(invalid.items()))

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"


def _score(
    job: Job,
    model: nn.Module,
    source: Input,
    parts: list[int],
    output: Output,
    device: torch.device,
) -> None:
    """Score the given parts, dealt to the ranks in turn; every rank makes as many steps."""
    shares = [parts[other :: world_size()] for other in range(world_size())]
    spans = [chain.from_iterable(map(source.batches, share)) for share in shares]
    num_rows = [sum(map(len, step)) for step in zip_longest(*spans, fillvalue=())]
    progress = Progress("predict", source.num_rows, source.num_rows - sum(num_rows))
    mine = prefetched(source.read(shares[rank()]), depth=2)
    tables: list[pa.Table] = []
    invalid: Counter[str] = Counter()
    for count in num_rows:
        rows = next(mine, None)
        batch = source.empty() if rows is None else rows.batch
        batch = model.module.assignments.find(batch)  # pyright: ignore
        _, (_, logits) = model(batch.to(device))
        progress.update(count)
        if rows is None:
            continue
        scores = predictions(logits, job.tasks)[: len(rows.span)].cpu().numpy()
        source.check_finite(rows.span, scores)
        columns = [*rows.keys.columns, *map(pa.array, scores.T.copy())]
        tables.append(pa.Table.from_arrays(columns, schema=source.output_schema))
        invalid.update(rows.invalid)
        part = rows.span.start // source.rows_per_part
        if rows.span.stop == source.part(part).stop:
            output.write(part, pa.concat_tables(tables), invalid)
            tables, invalid = [], Counter()
    progress.close()


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A path to write to; at the end the file is on the disk, and renamed to the target.

    The path begins with `_`, which readers of Parquet folders skip, and is this process's own.
    """
    handle, name = tempfile.mkstemp(".partial", f"_{target.name}.", target.parent)
    os.fchmod(handle, 0o644)  # as files usually are; mkstemp's are private
    os.close(handle)
    path = Path(name)
    yield path
    _sync(path)
    path.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder has."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
