# SPDX-License-Identifier: Apache-2.0
"""Compares variants over seeds: means, deviations, and differences to a baseline.

Runs of one seed see the same samples in the same order, so they pair: a difference is the mean of
the differences seed by seed, and its p is of the two-sided paired t-test (Student, 1908). Few seeds
make a weak test, so a difference is also given in deviations: divided by the root mean square of
the two standard deviations over seeds. Many variants against one baseline find something by chance:
a variant counts as significant if p stays below 0.05 after Holm's correction (1979).
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any, NamedTuple, NotRequired

from typing_extensions import TypedDict

ALPHA = 0.05
"""Level of significance, of all comparisons with the baseline together."""
MAX_COLUMNS = 12
"""Scenarios of a task that table.md has columns for; table.csv has all."""


class Key(NamedTuple):
    """What is measured: a metric of a task over a scenario or `all`; costs have neither."""

    task: str
    scenario: str
    metric: str


COSTS = [
    Key("", "", name)
    for name in ("seconds", "samples_per_second", "steps", "embedding_bytes", "peak_memory_bytes")
]
Run = Mapping[Key, float | None]
"""What one run has measured; None is undefined."""


@dataclass(frozen=True)
class Cell:
    """One measure of one variant over its seeds.

    Args:
        n: runs in which it is defined.
        mean: of them; None if n is 0.
        deviation: standard deviation (n - 1); None if n is below 2.
        pairs: seeds that the baseline has too.
        difference: mean difference to the baseline over the pairs; None without any.
        deviations: the difference in deviations of the two; None where they have none.
        p: of the paired t-test; None below 2 pairs, or where all differences are equal.
    """

    n: int
    mean: float | None
    deviation: float | None
    pairs: int = 0
    difference: float | None = None
    deviations: float | None = None
    p: float | None = None


class Compared(TypedDict):
    """Variants beside each other."""

    name: str
    split: str
    """That was measured: test, valid or stream."""
    metric: str
    """TASK/METRIC that decides what is significant."""
    variants: dict[str, "ComparedVariant"]


class Swept(Compared):
    """What a sweep has found."""

    folder: str


class ComparedVariant(TypedDict):
    """A variant over its seeds."""

    baseline: str | None
    seeds: list[int]
    significant: bool
    """Whether its difference to the baseline is not chance."""
    test: NotRequired[dict[str, dict[str, dict[str, Cell]]]]
    """By task, scenario or `all`, and metric; under the name of the split."""
    valid: NotRequired[dict[str, dict[str, dict[str, Cell]]]]
    stream: NotRequired[dict[str, dict[str, dict[str, Cell]]]]
    costs: dict[str, Cell]
    unfinished: dict[str, str]
    """Why a run has no result, by seed."""


def flatten(result: Mapping[str, Any], split: str) -> Run:
    """What result.json says of a split, and what the run has cost."""
    costs = {**result, "embedding_bytes": sum(result["embedding_bytes"].values())}
    found: dict[Key, float | None] = {key: costs[key.metric] for key in COSTS}
    for task, measured in result[split].items():
        for scenario, metrics in [("all", measured["all"]), *measured["scenario"].items()]:
            for name, value in metrics.items():
                if name != "n":
                    found[Key(task, scenario, name)] = value
    return found


def cell(values: Mapping[int, float], baseline: Mapping[int, float] | None = None) -> Cell:
    """Summarise a measure.

    Args:
        values: by seed.
        baseline: the same measure of the baseline by seed, if there is one to compare with.
    """
    own = Cell(len(values), _mean(list(values.values())), _deviation(list(values.values())))
    seeds = [seed for seed in values if baseline and seed in baseline]
    if not baseline or not seeds:
        return own
    from scipy.stats import ttest_rel  # a second, which training need not wait

    here, there = [values[seed] for seed in seeds], [baseline[seed] for seed in seeds]
    differences = [a - b for a, b in zip(here, there, strict=True)]
    difference = fmean(differences)
    spread = [_deviation(here), _deviation(there)]
    unit = math.sqrt(fmean(s**2 for s in spread)) if None not in spread else 0.0  # pyright: ignore
    varies = len(seeds) > 1 and max(differences) > min(differences)
    return Cell(
        own.n,
        own.mean,
        own.deviation,
        pairs=len(seeds),
        difference=difference,
        deviations=difference / unit if unit else None,
        p=float(ttest_rel(here, there).pvalue) if varies else None,  # pyright: ignore
    )


def holm(p: Mapping[str, float]) -> set[str]:
    """The hypotheses that Holm's step-down procedure rejects at ALPHA."""
    rejected: set[str] = set()
    for number, name in enumerate(sorted(p, key=lambda name: p[name])):
        if p[name] > ALPHA / (len(p) - number):
            break
        rejected.add(name)
    return rejected


@dataclass
class Comparison:
    """The finished runs of a sweep.

    Args:
        name: of the sweep.
        split: that was measured, test or valid.
        metric: the one that decides, over all scenarios.
        baselines: the labels of all variants in their order, and whom each is compared with.
        runs: by label and seed.
        unfinished: why a run has no result, by label and seed; what is said of all seeds of a
            variant stands under None.
    """

    name: str
    split: str
    metric: Key
    baselines: Mapping[str, str | None]
    runs: dict[str, dict[int, Run]] = field(default_factory=dict)
    unfinished: dict[str, dict[int | None, str]] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether a run that was begun has no result."""
        return any(seed is not None for why in self.unfinished.values() for seed in why)

    @property
    def labels(self) -> list[str]:
        """Variants with a finished run."""
        return [label for label in self.baselines if self.runs.get(label)]

    @property
    def keys(self) -> list[Key]:
        """Everything measured, in the order of the first run that has it."""
        runs = [run for label in self.labels for run in self.runs[label].values()]
        return list(dict.fromkeys(key for run in runs for key in run))

    def cell(self, label: str, key: Key) -> Cell:
        baseline = self.baselines[label]
        compared = baseline is not None and baseline != label
        return cell(self.values(label, key), self.values(baseline, key) if compared else None)

    def significant(self, key: Key) -> set[str]:
        """The variants whose difference to their baseline is not chance."""
        found = {label: self.cell(label, key).p for label in self.labels}
        return holm({label: p for label, p in found.items() if p is not None})

    def markdown(self) -> str:
        """table.md: the deciding metric and the costs; each task by scenario; what is missing."""
        parts = [f"# {self.name}", self._explanation()]
        if self.labels:
            parts += [_table(self._main_rows()), f"## {self.metric.metric} by task and scenario"]
            parts.append(_table(self._rows_by_scenario()))
        if any(self.unfinished.values()):
            parts += ["## Without a result", _table(self._unfinished_rows())]
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """table.csv: a line for each variant and measure, numbers in full."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["variant", *Key._fields, "baseline", *Cell.__dataclass_fields__])
        for label in self.labels:
            for key in self.keys:
                values = asdict(self.cell(label, key)).values()
                writer.writerow([label, *key, self.baselines[label] or "", *values])
        return text.getvalue()

    def plain(self) -> Compared:
        """All of it for sweep.json."""
        variants: dict[str, Any] = {}
        for label, baseline in self.baselines.items():
            tasks: dict[str, Any] = {}
            costs: dict[str, Any] = {}
            for key in self.keys if self.runs.get(label) else []:
                place = tasks.setdefault(key.task, {}).setdefault(key.scenario, {})
                (place if key.task else costs)[key.metric] = asdict(self.cell(label, key))
            tasks.pop("", None)
            variants[label] = {
                "baseline": baseline,
                "seeds": sorted(self.runs.get(label, {})),
                "significant": label in self.significant(self.metric),
                self.split: tasks,
                "costs": costs,
                "unfinished": {str(s or ""): why for s, why in self._unfinished(label).items()},
            }
        metric = f"{self.metric.task}/{self.metric.metric}"
        return {"name": self.name, "split": self.split, "metric": metric, "variants": variants}

    def values(self, label: str | None, key: Key) -> dict[int, float]:
        """A measure by seed, where it is defined."""
        runs = self.runs.get(label or "", {})
        found = {seed: run.get(key) for seed, run in sorted(runs.items())}
        return {seed: value for seed, value in found.items() if value is not None}

    def _unfinished(self, label: str) -> dict[int | None, str]:
        return self.unfinished.get(label, {})

    def _explanation(self) -> str:
        named = sorted({b for b in self.baselines.values() if b is not None})
        against = f"`{named[0]}`" if len(named) == 1 else "the baseline named in its row"
        return (
            f"`{self.metric.task}/{self.metric.metric}` on the {self.split} data: mean ± "
            f"standard deviation over n seeds. The difference is to {against}, seed by seed; in "
            f"deviations it is divided by the root mean square of both standard deviations. p is "
            f"of the paired t-test; * is p < {ALPHA} after Holm's correction for all comparisons "
            f"of the table."
        )

    def _main_rows(self) -> list[list[str]]:
        several = len({b for b in self.baselines.values() if b is not None}) > 1
        metric = f"{self.metric.task}/{self.metric.metric}"
        rows = [["variant", "n", metric, "difference", "in deviations", "p"]]
        rows[0] += ["baseline"] * several
        rows[0] += ["seconds", "samples/s", "steps", "embedding MB"]
        significant = self.significant(self.metric)
        for label in self.labels:
            own = self.cell(label, self.metric)
            is_one = label in self.baselines.values()
            difference = "baseline" if is_one else _number(own.difference, "+.4f")
            row = [label, str(own.n), _spread(own), difference]
            row += [_number(own.deviations, "+.1f"), _number(own.p, ".2g")]
            row[-1] += " *" * (label in significant)
            row += [self.baselines[label] or ""] * several
            seconds, speed, steps, size, _ = (self.cell(label, key).mean for key in COSTS)
            row += [_number(seconds, ".1f"), _number(speed, ",.0f"), _number(steps, ",.0f")]
            rows.append([*row, _number(None if size is None else size / 1e6, ",.2f")])
        return rows

    def _rows_by_scenario(self) -> list[list[str]]:
        keys = [key for key in self.keys if key.metric == self.metric.metric]
        count = {task: sum(key.task == task for key in keys) for task in {k.task for k in keys}}
        shown = [k for k in keys if k.scenario == "all" or count[k.task] <= MAX_COLUMNS + 1]
        names = [k.task if k.scenario == "all" else f"{k.task}, {k.scenario}" for k in shown]
        rows = [["variant", *names]]
        for label in self.labels:
            rows.append([label, *(_spread(self.cell(label, key)) for key in shown)])
        return rows

    def _unfinished_rows(self) -> list[list[str]]:
        rows = [["variant", "seed", "why"]]
        for label in self.baselines:
            for seed, why in self._unfinished(label).items():
                rows.append([label, "all" if seed is None else str(seed), " ".join(why.split())])
        return rows


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _spread(found: Cell) -> str:
    if found.deviation is None:
        return _number(found.mean, ".4f")
    return f"{found.mean:.4f} ± {found.deviation:.4f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, aligned so that it reads in a terminal too."""
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [escaped[0], rule, *escaped[1:]]
    padded = [[t.ljust(w) for t, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
