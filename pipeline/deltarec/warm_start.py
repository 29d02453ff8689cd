# SPDX-License-Identifier: Apache-2.0
"""Starts a job from the weights of another one, whose model may differ in names and parts.

A tensor is known by its name in the checkpoint: a dense parameter by the module that holds it, a
table as `tables.NAME`, whichever way its features are pooled. Numbers of processes and shardings
may differ, sizes may not. Frozen tables come from their files.
"""

import re
from pathlib import Path
from typing import Any, Literal

from torch import nn

from deltarec import changed_rows
from deltarec.checkpoint import chosen
from deltarec.config import Config
from deltarec.embeddings.collections import without_frozen
from deltarec.optimizers import StepOptimizer
from deltarec.supervision import Watchdog


class WarmStartConfig(Config):
    """Weights of another run to begin with; a run that has a checkpoint resumes from that."""

    run: str
    """The other run's folder, or the folder of one checkpoint."""
    checkpoint: Literal["best", "latest"] | None = None
    """Which one of the run; the best where there is one, if not given."""
    names: dict[str, str] = {}  # noqa: RUF012
    """What begins with the key there begins with the value here, such as
    `{tables.article: tables.item}`; the longest key counts."""
    optimizer: bool = False
    """Whether the optimisers' states are loaded as well."""

    def folder(self) -> Path:
        """The checkpoint to load.

        Raises:
            ValueError: there is none.
        """
        given = Path(self.run)
        if (given / "state.json").is_file():
            if self.checkpoint is not None:
                raise ValueError(
                    f"train.warm_start.checkpoint: {given} is one checkpoint; name its run folder, "
                    f"or leave '{self.checkpoint}' out"
                )
            return given
        try:
            return chosen(given / "checkpoints", self.checkpoint)
        except ValueError as error:
            raise ValueError(f"train.warm_start.run: {error}") from None


def warm_start(
    config: WarmStartConfig, model: nn.Module, optimizer: StepOptimizer, watchdog: Watchdog
) -> str:
    """Load in place what the other run has; returns what was loaded and what was not.

    Raises:
        ValueError: there is no such checkpoint, a name to map is not in it, a size differs, or
            nothing fits.
    """
    source = config.folder()
    folders = changed_rows.chain(source)
    stored = changed_rows.sizes(folders)
    theirs = _renamed({_known_as(key): key for key in stored if _wanted(key, config)}, config)
    weights = model.state_dict()
    trained = without_frozen(weights)
    of_files = {_known_as(f"model.{name}") for name in weights.keys() - trained.keys()}
    tensors: dict[str, Any] = {f"model.{name}": value for name, value in trained.items()}
    if config.optimizer:
        optimizer.init_state()
        for name, state in optimizer.combined.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
    ours = {_known_as(key): value for key, value in tensors.items()}
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise ValueError(
            f"{source}: nothing in this checkpoint has a name of this model: it has "
            f"{_listed(theirs)}; this model has {_listed(ours)}; set train.warm_start.names"
        )
    differing = [
        f"{name} is {tuple(stored[theirs[name]])} there, {tuple(ours[name].size())} here"
        for name in shared
        if tuple(stored[theirs[name]]) != tuple(ours[name].size())
    ]
    if differing:
        raise ValueError(f"{source}: sizes differ: {'; '.join(differing)}")
    changed_rows.read({theirs[name]: ours[name] for name in shared}, folders, watchdog)
    model.load_state_dict(weights)
    return (
        f"warm start from {source}: {len(shared)} tensors loaded; "
        f"missing there: {_listed(ours.keys() - theirs.keys())}; "
        f"unexpected there: {_listed(theirs.keys() - ours.keys() - of_files)}"
        + (f"; from their files: {_listed(of_files)}" if of_files else "")
    )


def _wanted(key: str, config: WarmStartConfig) -> bool:
    return key.startswith("model.") or (config.optimizer and key.startswith("optimizer."))


def _known_as(key: str) -> str:
    """The name that a user knows: without its section, a table without its collection."""
    section, _, name = key.partition(".")
    table = re.fullmatch(
        r"tables\.(?:frozen_)?(?:pooled|weighted|unpooled\.\d+)\.\w+\.([^.]+)\.(weight|codes|step)"
        r"(?:(?:\.\1)?\.(.+))?",
        name,
    )
    if table:
        part = table[3] or table[2].removeprefix("weight")
        name = f"tables.{table[1]}" + (f".{part}" if part else "")
    return f"optimizer.{name}" if section == "optimizer" else name


def _renamed(theirs: dict[str, str], config: WarmStartConfig) -> dict[str, str]:
    """The stored keys, by the name that each has in this model."""
    renamed: dict[str, str] = {}
    used: set[str] = set()
    for name, key in theirs.items():
        state = "optimizer." if name.startswith("optimizer.") else ""
        plain = name.removeprefix(state)
        fitting = [old for old in config.names if f"{plain}.".startswith(f"{old}.")]
        if fitting:
            old = max(fitting, key=len)
            used.add(old)
            plain = config.names[old] + plain.removeprefix(old)
        if f"{state}{plain}" in renamed:
            raise ValueError(f"train.warm_start.names: two tensors would be called '{plain}'")
        renamed[f"{state}{plain}"] = key
    for old in config.names.keys() - used:
        raise ValueError(
            f"train.warm_start.names: nothing in the checkpoint begins with '{old}'; it has "
            f"{_listed(theirs)}"
        )
    return renamed


def _listed(names: Any, most: int = 20) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) or "nothing") + more
