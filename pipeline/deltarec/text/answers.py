# SPDX-License-Identifier: Apache-2.0
"""What becomes of a language model's answers: columns of a table, or a failure that is named."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, model_validator

from deltarec.config import Config
from deltarec.progress import Progress

LOG_EVERY = 100


class Answers(Config):
    """What becomes of an answer."""

    kind: Literal["text", "json"] = "text"
    """The whole answer as one column; or a JSON object, with a column for each of its `columns`."""
    columns: list[str] = Field(default=["answer"], min_length=1)
    """Names of the output's columns; of a `text` answer one."""

    @model_validator(mode="after")
    def _consistent(self) -> "Answers":
        if self.kind == "text" and len(self.columns) > 1:
            raise ValueError(f"columns: a text answer is one column, got {self.columns}")
        return self

    def parse(self, text: str) -> dict[str, str]:
        """The values of the columns.

        Raises:
            ValueError: the answer is not of the kind.
        """
        text = text.strip()
        if not text:
            raise ValueError("malformed answer: it is empty")
        if self.kind == "text":
            return {self.columns[0]: text}
        fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
        try:
            found = json.loads(fenced[1] if fenced else text)
        except ValueError as error:
            raise ValueError(f"malformed answer: not JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError("malformed answer: not a JSON object")
        absent = [name for name in self.columns if found.get(name) in (None, "", [])]
        if absent:
            raise ValueError(f"malformed answer: it has no '{absent[0]}'")
        return {name: _flat(found[name]) for name in self.columns}


@dataclass
class Outcome:
    """What has become of the rows."""

    answers: Answers
    progress: Progress
    values: dict[int, dict[str, str]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def take(self, id: int, text: str | None, problem: str | None, model: str, way: str) -> None:
        """A row has an answer, which was imported, cached or asked; or one with a problem."""
        self.counts[way] += 1
        try:
            if problem is not None or text is None:
                raise ValueError(problem)
            self.values[id] = self.answers.parse(text)
            self.models[model] += 1
        except ValueError as error:
            self.failures[id] = str(error)
        self._tell()

    def fail(self, id: int, why: str) -> None:
        """A row has no answer."""
        self.failures[id] = why
        self._tell()

    def _tell(self) -> None:
        done = len(self.values) + len(self.failures)
        note = f"{len(self.values)} answered, {len(self.failures)} failed"
        self.progress.update(1, note if done % LOG_EVERY == 0 else "")


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_flat(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
