# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a job's whole state, on any number of processes.

A checkpoint is a folder written by `torch.distributed.checkpoint` with a `state.json` beside the
tensors. `latest` and `best` are files that hold the name of a folder; they are replaced in one step
once the folder is whole.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from deltarec.data.batch import Position
from deltarec.distributed import is_main
from deltarec.optimizers import StepOptimizer


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
    """

    def __init__(self, folder: Path, model: nn.Module, optimizer: StepOptimizer) -> None:
        self.folder = folder
        self.model = model
        self.optimizer = optimizer

    def save(self, state: TrainState, best: bool = False) -> Path:
        """Write a checkpoint; it becomes the latest, and the best if so told."""
        target = self.folder / f"step_{state.step:09d}"
        if not target.exists():
            partial = target.with_suffix(".partial")
            if is_main():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            dist.barrier()
            dcp.save(self._tensors(), checkpoint_id=partial)
            if is_main():
                (partial / "state.json").write_text(json.dumps(asdict(state)))
                partial.rename(target)
        if is_main():
            for pointer in ("latest", "best") if best else ("latest",):
                self._point(pointer, target.name)
            self._remove_old()
        dist.barrier()
        return target

    def load(self, pointer: str = "latest") -> TrainState:
        """Load model and optimiser in place.

        Args:
            pointer: `latest` or `best`.

        Raises:
            ValueError: there is no such checkpoint.
        """
        source = self.find(pointer)
        if source is None:
            raise ValueError(f"{self.folder}: there is no {pointer} checkpoint")
        self.optimizer.init_state()
        tensors = self._tensors()
        dcp.load(tensors, checkpoint_id=source)
        self.model.load_state_dict(tensors["model"])
        stored = json.loads((source / "state.json").read_text())
        state = replace(TrainState(**stored), position=Position(**stored["position"]))
        self.optimizer.set_batches(state.step)
        return state

    def find(self, pointer: str) -> Path | None:
        """The folder that a pointer names, if there is one."""
        file = self.folder / pointer
        return self.folder / file.read_text().strip() if file.is_file() else None

    def _tensors(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.combined.state_dict()["state"],
        }

    def _point(self, pointer: str, name: str) -> None:
        partial = self.folder / f"{pointer}.partial"
        partial.write_text(name + "\n")
        partial.replace(self.folder / pointer)

    def _remove_old(self) -> None:
        kept = {self.find("latest"), self.find("best")}
        for folder in self.folder.glob("step_*"):
            if folder not in kept:
                shutil.rmtree(folder)
