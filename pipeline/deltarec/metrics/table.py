# SPDX-License-Identifier: Apache-2.0
from deltarec.metrics.evaluation import Result, Values


def overall(result: Result) -> Result:
    """The values over all samples alone."""
    return {task: {"all": values["all"], "scenario": {}} for task, values in result.items()}


def render(result: Result) -> str:
    """Draw the result of an evaluation as aligned plain text, one line a task and scenario.

    What is undefined is `-`; what the task does not measure is blank. Tasks without any sample are
    named below, if there are others.
    """
    empty = [task for task, measured in result.items() if not measured["all"]["n"]]
    shown = {t: m for t, m in result.items() if t not in empty or len(empty) == len(result)}
    rows = [
        (task, scenario, values)
        for task, measured in shown.items()
        for scenario, values in [("all", measured["all"]), *measured["scenario"].items()]
    ]
    columns = list(dict.fromkeys(name for _, _, values in rows for name in values if name != "n"))
    columns.append("n")
    lines = [["task", "scenario", *columns]]
    lines += [[task, scenario, *_cells(values, columns)] for task, scenario, values in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [_line(line, widths) for line in lines]
    if empty and len(empty) < len(result):
        text.append(f"no samples: {', '.join(empty)}")
    return "\n".join(text)


def _cells(values: Values, columns: list[str]) -> list[str]:
    return [_cell(values[name]) if name in values else "" for name in columns]


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.6f}"


def _line(cells: list[str], widths: list[int]) -> str:
    """Names to the left, numbers to the right."""
    names = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join(names + numbers).rstrip()
