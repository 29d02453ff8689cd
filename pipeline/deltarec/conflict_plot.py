# SPDX-License-Identifier: Apache-2.0
"""The picture of how the tasks of a run got on; needs matplotlib, of the extra `plot`."""

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from deltarec.comparison_plot import can_draw

NAME = "conflict.png"
MISSING = f"{NAME} is left out: pip install 'deltarec[plot]'"
PANELS = {
    "gradient_cosine/": "cosine of the gradients: below zero the tasks are in conflict",
    "gradient_norm/": "norm of the gradient",
    "weight/": "weight",
}
WINDOW = 25
"""Logged steps around a point of a smoothed line, or a tenth of all if these are few."""
DASHES = ["-", "--", "-.", ":"]
"""So that lines that coincide are all seen."""

Series = dict[str, list[tuple[int, float]]]


def conflicts(folder: Path) -> Series:
    """What metrics.jsonl says of the training steps' cosines, norms and weights: (step, value)."""
    found: Series = {}
    with (folder / "metrics.jsonl").open() as lines:
        for line in lines:
            record = json.loads(line)
            if record["split"] != "train":
                continue
            for name, value in record.items():
                if name.startswith(tuple(PANELS)):
                    found.setdefault(name, []).append((record["step"], value))
    return found


def draw_conflicts(folder: Path, say: Callable[[str], None]) -> None:
    """Write conflict.png into a run folder, if its balancing method has seen gradients by task."""
    found = conflicts(folder)
    if not any(name.startswith("gradient_cosine/") for name in found):
        return
    if not can_draw():
        say(MISSING)
        return
    panels = {prefix: title for prefix, title in PANELS.items() if _names(found, prefix)}
    figure_module = importlib.import_module("matplotlib.figure")  # without pyplot's global state
    size = (9, 2.6 * len(panels) + 0.4)
    figure = figure_module.Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    logged = max(len(points) for points in found.values())
    window = max(1, min(WINDOW, logged // 10))
    for (prefix, title), panel in zip(panels.items(), axes, strict=True):
        for number, name in enumerate(_names(found, prefix)):
            steps, values = zip(*found[name], strict=True)
            label = name.removeprefix(prefix).replace("/", " and ")
            dash = DASHES[number % len(DASHES)]
            smooth = _smooth(values, window)
            (line,) = panel.plot(steps, smooth, label=label, linewidth=1.5, linestyle=dash)
            if window > 1:
                panel.plot(steps, values, color=line.get_color(), alpha=0.3, linewidth=0.8)
        panel.set_title(title, fontsize="medium")
        if prefix == "gradient_norm/":
            panel.set_yscale("log")
        panel.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        panel.grid(alpha=0.3)
    axes[0].axhline(0, color="black", linewidth=0.8)
    of = f"; bold: the mean over {window} logged steps" if window > 1 else ""
    axes[-1].set_xlabel(f"step{of}")
    partial = folder / f"partial-{NAME}"
    figure.savefig(partial)
    partial.replace(folder / NAME)


def _names(found: Series, prefix: str) -> list[str]:
    return [name for name in found if name.startswith(prefix)]


def _smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of the values around each."""
    half = window // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
