# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a job's whole state, on any number of processes.

A checkpoint is a folder `step_…` written by `torch.distributed.checkpoint`, with a `state.json`
beside the tensors. It is written under another name and renamed when every rank has written its
part; then the files `latest` and `best`, which hold the name of a folder, are replaced in one step.
So whatever they name is whole, whenever the job is killed.

Writing happens in a thread: `save` copies the tensors of this rank and returns. TorchRec updates
tables in place, on CPU too, so the copy is what makes the checkpoint one moment's.

Loading executes no code from the files: tensors are read as plain tensors, and the index that
`torch.distributed.checkpoint` pickles is read by an unpickler that knows its few types only.
"""

import json
import pickle
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import Field
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torchrec.distributed.types import Shard, ShardedTensor

from deltarec.config import Config
from deltarec.data.batch import Position
from deltarec.distributed import is_main
from deltarec.optimizers import StepOptimizer


class CheckpointConfig(Config):
    """When checkpoints are written, and which are kept."""

    every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints; without it they are written at evaluations and at the end."""
    keep: int = Field(default=2, gt=0)
    """The newest so many are kept, and the best."""
    asynchronous: bool = True
    """Whether training goes on while a checkpoint is written."""


@dataclass(frozen=True)
class TrainState:
    """What a job knows besides its tensors."""

    step: int = 0
    """Batches trained."""
    samples: int = 0
    """Samples trained."""
    seconds: float = 0.0
    """Time spent training, over all sessions."""
    position: Position = field(default_factory=Position)
    best_value: float | None = None
    """The best value so far of the metric that stops early."""
    evaluations_since_best: int = 0


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        folder: `RUN/checkpoints`.
        model: with TorchRec's state dict.
        optimizer: dense and fused ones together.
        config: how many are kept, and whether training waits.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: StepOptimizer,
        config: CheckpointConfig,
    ) -> None:
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.config = config
        group = dist.new_group(backend="gloo")  # the writing thread's own
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._writing: _Thread | None = None

    def save(self, state: TrainState, best: bool = False) -> None:
        """Write a checkpoint; it becomes the latest, and the best if so told."""
        self.wait()
        tensors = _copy(self._tensors()) if self.config.asynchronous else self._tensors()
        self._writing = _Thread(lambda: self._write(tensors, state, best))
        if not self.config.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint under way is written; an error in writing it is raised here."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.wait()

    def load(self, pointer: str = "latest") -> TrainState:
        """Load model and optimiser in place.

        Args:
            pointer: `latest` or `best`.

        Raises:
            ValueError: there is no such checkpoint, it is damaged, or it is of another model.
        """
        self.wait()
        source = self.find(pointer)
        if source is None:
            raise ValueError(f"{self.folder}: there is no {pointer} checkpoint")
        self.optimizer.init_state()
        tensors = self._tensors()
        state = _read(source, tensors)
        self.model.load_state_dict(tensors["model"])
        self.optimizer.set_batches(state.step)
        return state

    def find(self, pointer: str) -> Path | None:
        """The folder that a pointer names, if there is one."""
        return find(self.folder, pointer)

    def _tensors(self) -> dict[str, Any]:
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.combined.state_dict()["state"],
        }
        gradients = self.optimizer.pending_gradients()
        # An empty section would be stored as an object, which loading has no business to unpickle.
        return {**tensors, "gradients": gradients} if gradients else tensors

    def _write(self, tensors: dict[str, Any], state: TrainState, best: bool) -> None:
        target = self.folder / f"step_{state.step:09d}"
        partial = target.with_suffix(".partial")
        if is_main():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier(group=self._group)
        dcp.save(tensors, checkpoint_id=partial, process_group=self._group)
        if is_main():
            (partial / "state.json").write_text(json.dumps(asdict(state)))
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            for pointer in ("latest", "best") if best else ("latest",):
                self._point(pointer, target.name)
            self._remove_old()

    def _point(self, pointer: str, name: str) -> None:
        partial = self.folder / f"{pointer}.partial"
        partial.write_text(name + "\n")
        partial.replace(self.folder / pointer)

    def _remove_old(self) -> None:
        whole = sorted(path for path in self.folder.glob("step_*") if not path.suffix)
        kept = {*whole[-self.config.keep :], self.find("latest"), self.find("best")}
        for folder in whole:
            if folder not in kept:
                shutil.rmtree(folder)


def find(folder: Path, pointer: str) -> Path | None:
    """The checkpoint in `RUN/checkpoints` that `latest` or `best` names, if there is one."""
    file = folder / pointer
    return folder / file.read_text().strip() if file.is_file() else None


def load_model(source: Path, model: nn.Module) -> TrainState:
    """Load the model alone, in place, without its optimisers.

    Args:
        source: what `find` gave.
        model: with TorchRec's state dict.

    Raises:
        ValueError: the checkpoint is damaged, or it is of another model.
    """
    tensors = {"model": model.state_dict()}
    state = _read(source, tensors)
    model.load_state_dict(tensors["model"])
    return state


def _read(source: Path, tensors: dict[str, Any]) -> TrainState:
    """Fill the tensors in place; returns what stands beside them."""
    reader = _SafeReader(source)
    try:
        stored = json.loads((source / "state.json").read_text())
        _check_names_and_sizes(source, reader.read_metadata(), tensors)
        dcp.load(tensors, storage_reader=reader)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, json.JSONDecodeError) as e:
        raise ValueError(f"{source}: this checkpoint cannot be read: {e}") from e
    except dcp.api.CheckpointException as error:
        _, failure = next(iter(error.failures.items()))
        raise ValueError(f"{source}: this checkpoint cannot be read: {failure[0]}") from error
    return replace(TrainState(**stored), position=Position(**stored["position"]))


class _Thread:
    """Runs a function in a thread and hands its error to whoever waits."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), name="checkpoint")
        self._thread.start()

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


class _SafeReader(FileSystemReader):
    """Reads the index with an unpickler that admits no types but the index's own."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _IndexUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    MODULES = (
        "torch.distributed.checkpoint.metadata",
        "torch.distributed.checkpoint.filesystem",
        "torch.distributed._shard.metadata",
        "torch.distributed._shard.sharded_tensor.metadata",
        "torch.serialization",
    )
    NAMES = (
        ("torch", "Size"),
        ("torch._C", "device"),
        ("torch", "device"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("torch.distributed.remote_device", "_remote_device"),
    )

    def find_class(self, module: str, name: str) -> Any:
        is_type_of_tensor = module == "torch" and isinstance(
            getattr(torch, name, None), torch.dtype
        )
        if is_type_of_tensor or (module, name) in self.NAMES:
            return super().find_class(module, name)
        if module in self.MODULES and "." not in name:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its index asks for {module}.{name}, which no index needs")


def _check_names_and_sizes(source: Path, metadata: Metadata, tensors: dict[str, Any]) -> None:
    stored = metadata.state_dict_metadata
    sections = [("model", tensors["model"]), ("gradients", tensors.get("gradients", {}))]
    sections += [
        (f"optimizer.{name}", state) for name, state in tensors.get("optimizer", {}).items()
    ]
    for section, values in sections:
        for name, value in values.items():
            key = f"{section}.{name}"
            if key not in stored:
                raise ValueError(
                    f"{source}: this checkpoint has no '{key}': it is of another model"
                )
            size = tuple(getattr(stored[key], "size", ()))
            if size != tuple(value.size()):
                raise ValueError(
                    f"{source}: '{key}' is {size} in this checkpoint, {tuple(value.size())} in the "
                    "model; row-wise state depends on the column cut (column_block)"
                )


def _copy(value: Any) -> Any:
    """A copy of this rank's tensors, on the CPU, in the same structure."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, ShardedTensor):
        shards = [Shard(_copy(shard.tensor), shard.metadata) for shard in value.local_shards()]
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, value.metadata(), process_group=value._process_group
        )
    return torch.empty_like(value, device="cpu").copy_(value.detach())
