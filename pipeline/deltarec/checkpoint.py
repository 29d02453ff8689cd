# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a job's whole state, on any number of processes.

A checkpoint is a folder `step_…` written by `torch.distributed.checkpoint`, with a `state.json`
beside the tensors. It is written under another name and renamed when every rank has written its
part; then the files `latest` and `best`, which hold the name of a folder, are replaced in one step.
So whatever they name is whole, whenever the job is killed.

While training goes on, `save` returns at once: tables are copied between the next steps, as they
were (`snapshot.py`), and the copy is written in a thread.

What draws random numbers in training is keyed by what it draws for (dropout by sample, shuffling by
stream). The generators' states are saved nevertheless, for layers that draw from them.
"""

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torchrec.distributed.types import ShardedTensor

from deltarec import changed_rows, checksums, stored_tensors
from deltarec.changed_rows import BASE, ChangedRows, chain
from deltarec.config import Config
from deltarec.data.batch import Position
from deltarec.distributed import is_main, rank, world_size
from deltarec.embeddings.collections import without_frozen
from deltarec.optimizers import StepOptimizer
from deltarec.snapshot import Snapshot, Snapshots
from deltarec.supervision import NotFinite, Watchdog

COPYING_SHARE = 0.25
"""Of the time that training takes, how much may go into copying tables for a checkpoint."""
CHECKED_AT_ONCE = 1 << 20
"""Numbers of a tensor that are looked at together for one that is not finite."""


class CheckpointConfig(Config):
    """When checkpoints are written, and which are kept."""

    every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints; without it they are written at evaluations and at the end."""
    keep: int = Field(default=2, gt=0)
    """The newest so many are kept, and the best, and whatever these are restored from."""
    full_every: int = Field(default=1, gt=0)
    """Each so-many-th checkpoint is whole. Of the tables, those between hold only the rows that
    training has looked up since the one before, and need all back to the whole one."""
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
    evaluation_due: bool = False
    """Whether the job was told to end before the evaluation that follows this step."""
    best_value: float | None = None
    """The best value so far of the metric that stops early."""
    evaluations_since_best: int = 0
    data: dict[str, int | str | None] = field(default_factory=dict)
    """What the position stands in: the identity of the training data's reader."""
    events: dict[str, int | str | None] = field(default_factory=dict)
    """Likewise of the events that a graph was made of."""
    skipped_rows: int = 0
    skipped_files: list[str] = field(default_factory=list)
    invalid: dict[str, int] = field(default_factory=dict)
    """Values mended by each policy, by `FEATURE.POLICY`."""
    partitions: list[str] = field(default_factory=list)
    """Of a stream, those trained on, in that order."""
    partition: str | None = None
    """Of a stream, the one that the position is in."""
    scored: bool = False
    """Whether that one, or the next one, has been scored."""


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        folder: `RUN/checkpoints`.
        model: with TorchRec's state dict.
        optimizer: dense and fused ones together.
        config: how many are kept, and whether training waits.
        watchdog: is told of every piece that is written or read.
        beside: further tensors, equal on all ranks, that are saved and loaded in place.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: StepOptimizer,
        config: CheckpointConfig,
        watchdog: Watchdog,
        beside: dict[str, Tensor] | None = None,
    ) -> None:
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.watchdog = watchdog
        self.beside = beside or {}
        group = dist.new_group(backend="gloo")  # the writing thread's own
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self.snapshots = Snapshots(model)
        self._changed = ChangedRows(model) if config.full_every > 1 else None
        self._base: str | None = None
        """Of the main rank, the checkpoint that the tables' marks say what has changed since."""
        self._increments: int | None = None
        """How many there are since the last whole checkpoint; None before the first."""
        self._copying: _Copying | None = None
        self._writing: _Thread | None = None

    def save(self, state: TrainState, best: bool = False, training_goes_on: bool = True) -> None:
        """Write a checkpoint; it becomes the latest, and the best if so told.

        Args:
            state: what stands beside the tensors.
            best: whether it is the best one so far.
            training_goes_on: then `after_step` must be called after each step that follows;
                otherwise it is written at once, without the memory of a copy.

        Raises:
            NotFinite: the checkpoint before this one was not, so it is no state to go on from and
                has not been written; or this one, if training does not go on.
            ValueError: the checkpoint before this one could not be written.
        """
        self.wait()
        tensors = self._tensors()
        what = _What(state, best)
        if self._changed is not None:
            if self._increments is not None and self._increments + 1 < self.config.full_every:
                tensors = self._changed.increment(tensors)
                what = _What(state, best, self._base)
                self._increments += 1
            else:
                self._increments = 0
            self._changed.clear()
        if self.config.asynchronous and training_goes_on:
            snapshot = self.snapshots.take(tensors)
            self._copying = _Copying(snapshot, what, since=time.perf_counter())
        else:
            self._begin_to_write(lambda: tensors, what)
            self.wait()

    def after_step(self) -> None:
        """Copy a little for the checkpoint under way, if there is one that is not yet copied."""
        copying = self._copying
        if copying is None:
            return
        trained = time.perf_counter() - copying.since
        if copying.snapshot.copy_for(COPYING_SHARE * trained):
            self._copied(copying)
        copying.since = time.perf_counter()

    @property
    def is_copying(self) -> bool:
        """Whether a checkpoint of this rank is being copied, after each step."""
        return self._copying is not None

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint of this rank is being written in the background."""
        return self._writing is not None and self._writing.is_alive

    def wait(self) -> None:
        """Wait until the checkpoint under way is written; an error in writing it is raised here."""
        if self._copying is not None:
            self._copied(self._copying)
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.wait()

    def load(self, pointer: str | None = "latest") -> TrainState:
        """Load model and optimiser in place.

        Args:
            pointer: `latest` or `best`; None: see `chosen`.

        Raises:
            ValueError: there is no such checkpoint, it is damaged, or it is of another model.
        """
        self.wait()
        source = chosen(self.folder, pointer)
        self.optimizer.init_state()
        tensors = self._tensors()
        state = _read(source, tensors, self.watchdog)
        self.model.load_state_dict(tensors["model"])
        if "random" in tensors:
            _set_random_states(tensors["random"])
        self.optimizer.set_batches(state.step)
        if self._changed is not None:
            self._changed.clear()
        self._base, self._increments = source.name, len(chain(source)) - 1
        return state

    def find(self, pointer: str) -> Path | None:
        """The folder that a pointer names, if there is one."""
        return find(self.folder, pointer)

    def _tensors(self) -> dict[str, Any]:
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.combined.state_dict()["state"],
            "random": _random_states(),
        }
        further = {"gradients": self.optimizer.pending_gradients(), "beside": self.beside}
        # An empty section would be stored as an object, which loading has no business to unpickle.
        return tensors | {name: section for name, section in further.items() if section}

    def _write(self, tensors: dict[str, Any], what: "_What") -> None:
        name = f"step_{what.state.step:09d}"
        partial = self.folder / f"{name}.partial"
        self._require_finite(tensors, what.state.step)
        try:
            self._on_main(lambda: self._make_room(partial))
            mine = stored_tensors.write(tensors, partial, self._group, self.watchdog)
            sums = checksums.of_all_ranks(mine, self._group)
            self._on_main(lambda: self._publish(partial, name, what, sums))
        except ValueError as error:
            if is_main():
                shutil.rmtree(partial, ignore_errors=True)
            latest = self.find("latest")
            stands = f"{latest} is intact" if latest else "there is none before it"
            raise ValueError(
                f"{self.folder}: the checkpoint of step {what.state.step} cannot be written: "
                f"{error}; {stands}"
            ) from error

    def _require_finite(self, tensors: dict[str, Any], step: int) -> None:
        """Find out whether all parameters are finite, on all ranks.

        The last update may have overflowed, though the loss before it was finite.

        Raises:
            NotFinite: one is not.
        """
        found: list[str | None] = [None] * world_size()
        dist.all_gather_object(found, _not_finite(tensors, self.watchdog.beat), group=self._group)
        for name in filter(None, found):
            raise NotFinite(f"'{name}' is not finite after step {step}")

    def _copied(self, copying: "_Copying") -> None:
        complete = lambda: copying.snapshot.complete(self.watchdog.beat)  # noqa: E731
        self._copying = None
        self._begin_to_write(complete, copying.what)

    def _begin_to_write(self, tensors: Callable[[], dict[str, Any]], what: "_What") -> None:
        self._writing = _Thread(lambda: self._write(tensors(), what), self.watchdog)

    def _on_main(self, function: Callable[[], None]) -> None:
        """Run on the main rank while the others wait; its failure is a ValueError on all."""
        failure: list[str | None] = [None]
        if is_main():
            try:
                function()
            except (OSError, ValueError) as error:
                failure = [str(error)]
        dist.broadcast_object_list(failure, group=self._group)
        if failure[0] is not None:
            raise ValueError(failure[0])

    def _make_room(self, partial: Path) -> None:
        """An empty folder to write into; what a killed job left half written is removed."""
        for left in self.folder.glob("step_*.partial"):
            shutil.rmtree(left)
        partial.mkdir(parents=True)

    def _publish(self, partial: Path, name: str, what: "_What", sums: dict[str, int]) -> None:
        texts = {"state.json": json.dumps(asdict(what.state))}
        if what.base is not None:
            texts[BASE] = what.base + "\n"
        for file, text in texts.items():
            stored_tensors.write_text(partial / file, text)
        sums = sums | {file: checksums.of_file(partial / file) for file in texts}
        stored_tensors.write_text(partial / checksums.FILE, json.dumps(sums))
        stored_tensors.sync_folder(partial)
        target = self.folder / name
        if target.exists():  # `latest` may name it, so it cannot be replaced
            others = (self.folder / f"{name}_{times:03d}" for times in itertools.count(2))
            target = next(other for other in others if not other.exists())
        partial.rename(target)
        stored_tensors.sync_folder(self.folder)
        for pointer in ("latest", "best") if what.best else ("latest",):
            stored_tensors.write_text(self.folder / pointer, target.name + "\n")
        self._base = target.name
        self._remove_old()

    def _remove_old(self) -> None:
        whole = sorted(path for path in self.folder.glob("step_*") if not path.suffix)
        kept = {*whole[-self.config.keep :], self.find("latest"), self.find("best")}
        needed = {needed for folder in kept if folder is not None for needed in chain(folder)}
        for folder in reversed(whole):  # what is restored from others goes before them
            if folder not in needed:
                shutil.rmtree(folder)


def find(folder: Path, pointer: str) -> Path | None:
    """The checkpoint in `RUN/checkpoints` that `latest` or `best` names, if there is one.

    Without a file `latest` it is the newest: a job may be killed before it writes that file.

    Raises:
        ValueError: the file names something else.
    """
    file = folder / pointer
    whole = sorted(path for path in folder.glob("step_*") if not path.suffix)
    if not file.is_file():
        return whole[-1] if whole and pointer == "latest" else None
    name = file.read_bytes().decode(errors="replace").strip()
    if folder / name not in whole:
        known = ", ".join(path.name for path in whole) or "there is none"
        raise ValueError(f"{file}: names '{name}', which is no checkpoint; write in one of {known}")
    return folder / name


def chosen(folder: Path, pointer: str | None) -> Path:
    """The checkpoint in `RUN/checkpoints` that is asked for.

    Args:
        folder: of the checkpoints.
        pointer: `latest` or `best`; None: the best where there is one, the latest otherwise.

    Raises:
        ValueError: there is none, or the file of that name names something else.
    """
    pointers = [pointer] if pointer else ["best", "latest"]
    for name in pointers:
        found = find(folder, name)
        if found is not None:
            return found
    raise ValueError(f"{folder}: there is no {pointers[-1]} checkpoint")


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


def _read(source: Path, tensors: dict[str, Any], watchdog: Watchdog | None = None) -> TrainState:
    """Fill the tensors in place; returns what stands beside them.

    Frozen tables stay what their files have made them. The random states are taken out if they are
    not those of this number of processes.
    """
    folders = chain(source)
    for folder in folders:
        checksums.verify(folder, watchdog)
    state = _read_state(source / "state.json")
    stored = changed_rows.sizes(folders)
    if not all(f"random.{name}" in stored for name in tensors.get("random", {})):
        del tensors["random"]
    wanted = tensors | {"model": without_frozen(tensors["model"])}
    _check_names_and_sizes(source, stored, wanted)
    changed_rows.read(_flat(wanted), folders, watchdog)
    return state


def _flat(tensors: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries of tensors as one, by the names that they are stored under."""
    found = {}
    for key, value in tensors.items():
        inside = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        found |= {f"{prefix}{key}": value} if inside is None else inside
    return found


@dataclass(frozen=True)
class _What:
    """What a checkpoint is, besides its tensors."""

    state: TrainState
    best: bool
    base: str | None = None
    """The one that it holds the changes since; none if it is whole."""


@dataclass
class _Copying:
    """A checkpoint whose tables are being copied."""

    snapshot: Snapshot
    what: _What
    since: float
    """When training went on after the last piece, in seconds of `time.perf_counter`."""


class _Thread:
    """Runs a function in a thread under watch, and hands its error to whoever waits."""

    def __init__(self, function: Callable[[], None], watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), name="checkpoint")
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self, function: Callable[[], None]) -> None:
        try:
            with self._watchdog.watch("writing a checkpoint"):
                function()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        while self._thread.is_alive():
            self._thread.join(timeout=0.1)
            self._watchdog.beat()  # the thread is watched itself
        if self._error is not None:
            raise self._error


def _read_state(file: Path) -> TrainState:
    try:
        stored = json.loads(file.read_text())
        return replace(TrainState(**stored), position=Position(**stored["position"]))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: this checkpoint cannot be read: {error}") from error


def _not_finite(tensors: dict[str, Any], beat: Callable[[], None]) -> str | None:
    """The name of a parameter, or a table, of which this rank has values that are not finite."""
    for name, value in changed_rows.values(tensors, "model"):
        sharded = isinstance(value, ShardedTensor)
        for part in [s.tensor for s in value.local_shards()] if sharded else [value]:
            if part.is_floating_point():
                for piece in part.detach().flatten().split(CHECKED_AT_ONCE):
                    # Ten times as fast: a sum is finite only if all of it is.
                    if not piece.sum().isfinite() and not piece.isfinite().all():
                        return name
                    beat()
    return None


def _random_states() -> dict[str, Tensor]:
    """The states of this rank's generators, uint8."""
    place = f"{rank()}_of_{world_size()}"
    states = {f"cpu_{place}": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"cuda_{place}"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    for name, state in states.items():
        if name.startswith("cuda_"):
            torch.cuda.set_rng_state(state)
        else:
            torch.set_rng_state(state)


def _check_names_and_sizes(
    source: Path, stored: dict[str, torch.Size], tensors: dict[str, Any]
) -> None:
    sections = [(name, tensors.get(name, {})) for name in ("model", "gradients", "beside")]
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
            if tuple(stored[key]) != tuple(value.size()):
                of_table = isinstance(value, ShardedTensor)
                cut = "; of a table they depend on column_block and precision" if of_table else ""
                raise ValueError(
                    f"{source}: '{key}' is {tuple(stored[key])} in this checkpoint, "
                    f"{tuple(value.size())} in the model: it is of another model{cut}"
                )
