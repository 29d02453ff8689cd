# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

from deltarec.metrics.evaluation import Result, Values

LISTS = ("sampled", "own", "popular")
"""Of pairwise tasks, what names of metrics begin with whose candidates are not all items."""


def overall(result: Result) -> Result:
    """The values over all samples alone."""
    return {task: {"all": values["all"], "scenario": {}} for task, values in result.items()}


def render(result: Result) -> str:
    """Draw the result of an evaluation as aligned plain text, one line a task and scenario.

    Pairwise tasks that rank several lists have a line for each. What is undefined is `-`; what the
    task does not measure is blank. Tasks without any sample are named below, if there are others.
    """
    empty = [task for task, measured in result.items() if not measured["all"]["n"]]
    shown = {t: m for t, m in result.items() if t not in empty or len(empty) == len(result)}
    rows = [
        ([task, scenario, candidates], values)
        for task, measured in shown.items()
        for scenario, whole in [("all", measured["all"]), *measured["scenario"].items()]
        for candidates, values in _by_list(whole)
    ]
    columns = list(dict.fromkeys(name for _, values in rows for name in values if name != "n"))
    columns.append("n")
    lines = [["task", "scenario", "candidates", *columns]]
    lines += [[*names, *_cells(values, columns)] for names, values in rows]
    if not any(names[2] for names, _ in rows):
        lines = [[*line[:2], *line[3:]] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [_line(line, widths, len(line) - len(columns)) for line in lines]
    if empty and len(empty) < len(result):
        text.append(f"no samples: {', '.join(empty)}")
    return "\n".join(text)


def _by_list(values: Values) -> Iterator[tuple[str, Values]]:
    """The values by the candidates that they are of; n stands in the first line."""
    found: dict[str, Values] = {}
    for name, value in values.items():
        prefix, _, rest = name.partition("_")
        if prefix in LISTS:
            found.setdefault(prefix, {})[rest] = value
        elif name != "n":
            found.setdefault("all items", {})[name] = value
    if set(found) <= {"all items"}:
        found = {"": found.get("all items", {})}
    for number, (candidates, own) in enumerate(found.items()):
        yield candidates, own if number else own | {"n": values["n"]}


def _cells(values: Values, columns: list[str]) -> list[str]:
    return [_cell(values[name]) if name in values else "" for name in columns]


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.6f}"


def _line(cells: list[str], widths: list[int], num_names: int) -> str:
    """Names to the left, numbers to the right."""
    padded = [
        cell.ljust(width) if place < num_names else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()
