# SPDX-License-Identifier: Apache-2.0
"""The picture of a comparison; needs matplotlib, of the extra `plot`."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from deltarec.comparison import ALPHA, Comparison, Key

MISSING = "plot.png is left out: pip install 'deltarec[plot]'"
ROW_INCHES, PANEL_INCHES = 0.4, 4.2


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(comparison: Comparison, path: Path) -> None:
    """A panel for each task, a row for each variant: its seeds, their mean and deviation.

    A filled mark differs significantly from its baseline; a line stands at a common baseline.
    """
    figure_module = importlib.import_module("matplotlib.figure")  # without pyplot's global state
    labels, metric = comparison.labels, comparison.metric.metric
    tasks = [k.task for k in comparison.keys if (k.scenario, k.metric) == ("all", metric)]
    left = 0.4 + 0.085 * max(map(len, labels))
    size = (left + PANEL_INCHES * len(tasks), 1.5 + ROW_INCHES * len(labels))
    figure = figure_module.Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for task, panel in zip(tasks, panels, strict=True):
        _draw_task(comparison, Key(task, "all", metric), panel)
    shown = [label.replace("$", r"\$") for label in labels]  # no formula
    panels[0].set_yticks(range(len(labels)), shown)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.supxlabel(
        f"{comparison.split} data: seeds, mean ± standard deviation; filled where the difference "
        f"to the baseline has p < {ALPHA} (paired t-test, Holm)",
        fontsize="x-small",
        wrap=True,
    )
    partial = path.with_name(f"partial-{path.name}")
    figure.savefig(partial)
    partial.replace(path)


def _draw_task(comparison: Comparison, key: Key, panel: Any) -> None:
    significant = comparison.significant(key)
    compared = {label for label in comparison.baselines.values() if label is not None}
    for row, label in enumerate(comparison.labels):
        found = comparison.cell(label, key)
        if found.mean is None:
            continue
        seeds = list(comparison.values(label, key).values())
        colour = "dimgrey" if label in compared else "tab:blue"
        panel.plot(seeds, [row + 0.22] * len(seeds), "|", color=colour, alpha=0.7, markersize=6)
        panel.errorbar(
            found.mean,
            row,
            xerr=found.deviation,
            fmt="o",
            color=colour,
            markerfacecolor=colour if label in significant else "white",
            capsize=3,
        )
        if compared == {label}:
            panel.axvline(found.mean, color=colour, linestyle=":", linewidth=1)
    panel.set_title(f"{key.task}/{key.metric}", fontsize="medium")
    panel.grid(axis="x", alpha=0.3)
    panel.locator_params(axis="x", nbins=5)
    panel.tick_params(axis="x", labelsize="small")
