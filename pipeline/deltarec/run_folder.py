# SPDX-License-Identifier: Apache-2.0
"""The folder a job writes into: configuration, plan, metrics, checkpoints, the result."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils.tensorboard.writer import SummaryWriter

from deltarec.distributed import is_main


class RunFolder:
    """`runs/NAME`. Every rank has one, the main rank alone writes.

    Args:
        path: the folder; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._board: SummaryWriter | None = None
        if is_main():
            path.mkdir(parents=True, exist_ok=True)
            self._board = SummaryWriter(str(path / "tensorboard"))

    @classmethod
    def create(cls, given: Path | None, job_name: str) -> "RunFolder":
        """The given folder, or a new one under `runs/` named by the job and the time."""
        names: list[Any] = [given or Path("runs", f"{job_name}-{datetime.now():%Y%m%d-%H%M%S}")]
        dist.broadcast_object_list(names)
        return cls(names[0])

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def write(self, name: str, text: str) -> None:
        """Write a text file, replacing an old one in one step."""
        if is_main():
            partial = self.path / f"{name}.partial"
            partial.write_text(text)
            partial.replace(self.path / name)

    def rewind(self, step: int, scored: bool = True) -> None:
        """Forget what was logged after a step: a job that resumes from there logs it again.

        Args:
            step: batches trained.
            scored: whether the partition that begins there has been scored.
        """
        file = self.path / "metrics.jsonl"
        if self._board is None or not file.is_file():
            return
        lines = [
            line
            for line in file.read_text().splitlines(keepends=True)
            if _stays(line, step, scored)
        ]
        self.write(file.name, "".join(lines))
        self._board.close()
        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def log(
        self, step: int, split: str, values: dict[str, Any], partition: str | None = None
    ) -> None:
        """Append values to metrics.jsonl and to TensorBoard.

        Args:
            step: batches trained.
            split: train, valid or test; of streams, partition, and stream for all so far.
            values: numbers by name, or nested mappings of them, down to task, scenario and metric.
            partition: that they are of.
        """
        if self._board is None:
            return
        with (self.path / "metrics.jsonl").open("a") as file:
            for task, scenario, metrics in _records(values):
                record = {"step": step, "split": split, "task": task, "scenario": scenario}
                record |= {"partition": partition} if partition else {}
                file.write(json.dumps({**record, **metrics}) + "\n")
                parts = [split, *filter(None, (task, scenario if scenario != "all" else None))]
                for name, value in metrics.items():
                    if isinstance(value, (int, float)):
                        self._board.add_scalar("/".join([*parts, name]), value, step)
        self._board.flush()

    def partitions(self) -> list[dict[str, Any]]:
        """What metrics.jsonl says of each partition that was scored, in order; on the main rank."""
        found: dict[str, dict[str, Any]] = {}
        file = self.path / "metrics.jsonl"
        for line in file.read_text().splitlines() if is_main() and file.is_file() else []:
            record = json.loads(line)
            if record.pop("split") != "partition":
                continue
            name, step, task, scenario = (
                record.pop(key) for key in ("partition", "step", "task", "scenario")
            )
            of = found.setdefault(name, {"partition": name, "step": step})
            if task is None:
                continue
            result = of.setdefault(task, {"all": {}, "scenario": {}})
            if scenario == "all":
                result["all"] = record
            else:
                result["scenario"][scenario] = record
        return list(found.values())

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _stays(line: str, step: int, scored: bool) -> bool:
    """Whether a line of metrics.jsonl is whole and of no later step; tests come at the end."""
    if not line.endswith("\n"):
        return False
    record = json.loads(line)
    if record["step"] == step and not scored and record["split"] in ("partition", "stream"):
        return False
    return record["step"] <= step and record["split"] != "test"


def _records(values: dict[str, Any]) -> list[tuple[str | None, str | None, dict[str, Any]]]:
    """Rows of metrics.jsonl: (task, scenario, metrics). Plain numbers stand without a task."""
    plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
    records: list[tuple[str | None, str | None, dict[str, Any]]] = []
    if plain:
        records.append((None, None, plain))
    for task, result in values.items():
        if isinstance(result, dict):
            records.append((task, "all", result["all"]))
            records += [(task, s, metrics) for s, metrics in result.get("scenario", {}).items()]
    return records
