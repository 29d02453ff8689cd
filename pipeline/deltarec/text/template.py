# SPDX-License-Identifier: Apache-2.0
"""Text and prompts made of columns, by templates that have a name and a version.

A template's name and version go into the keys of caches and into the footers of the files that are
made with it, with a hash of the whole template: two texts that differ for one version are found.

A text has a budget of tokens. What is too long is cut in this order, and nothing else is: each
column to its own limit, at its end, between words; then the history, its oldest events first. A
text that does not fit even without history is refused.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter

from pydantic import Field, PositiveInt, model_validator

from deltarec.config import Config, fingerprint, load

HISTORY = "history"
"""The field of a template where the events of the user stand."""
BYTES_PER_TOKEN = 4


class Template(Config):
    """How the columns of a row become a text. Fields stand in braces: `{title} ({year})`."""

    name: str
    version: int = Field(gt=0)
    """To be raised whenever anything of the template changes."""
    text: str
    """The text, of columns of the row, and `{history}`."""
    system: str | None = None
    """What a chat model is told beforehand; without fields."""
    event: str | None = None
    """The text of one event of `{history}`, of columns of the events and of the items."""
    separator: str = "\n"
    """Between two events."""
    missing: str = "unknown"
    """Stands for a null or an empty text."""
    limits: dict[str, PositiveInt] = {}  # noqa: RUF012
    """Most tokens of a column; the rest is cut from its end, between words."""

    @model_validator(mode="after")
    def _consistent(self) -> "Template":
        fields = self.fields
        if (HISTORY in fields) != (self.event is not None):
            raise ValueError(f"template {self.name}: '{{{HISTORY}}}' and 'event' go together")
        unknown = self.limits.keys() - set(fields) - set(self.event_fields)
        if unknown:
            raise ValueError(f"template {self.name}: limits: there is no field '{min(unknown)}'")
        return self

    @property
    def fields(self) -> list[str]:
        """Of the text, each once."""
        return _fields(self.text, self.name)

    @property
    def columns(self) -> list[str]:
        """The fields that are columns of the row."""
        return [field for field in self.fields if field != HISTORY]

    @property
    def event_fields(self) -> list[str]:
        return _fields(self.event or "", self.name)

    @property
    def identity(self) -> dict[str, str | int]:
        """Name, version and hash, as caches and files have them."""
        return {"name": self.name, "version": self.version, "sha256": fingerprint(self)}


def load_template(given: Template | str) -> Template:
    """The template itself, or the one in a YAML file.

    Raises:
        ValueError: the file is not there or is no template.
    """
    return given if isinstance(given, Template) else load(Template, Path(given))


class Budget(Config):
    """How long a text may be."""

    tokens: int = Field(default=512, gt=0)
    tokenizer: str | None = None
    """Folder of the tokenizer that counts; without one, four bytes of UTF-8 count as a token."""

    @property
    def counter(self) -> Callable[[str], int]:
        """The number of tokens of a text."""
        if self.tokenizer is None:
            return lambda text: -(-len(text.encode()) // BYTES_PER_TOKEN)
        from deltarec.text.encoder import load_tokenizer

        tokenizer = load_tokenizer(self.tokenizer)
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True)
class Text:
    """A text, and how many of the user's events it has."""

    text: str
    events: int = 0


class Renderer:
    """Makes texts by a template, within a budget.

    Args:
        template: the template.
        budget: of the whole text, the system's included.
    """

    def __init__(self, template: Template, budget: Budget) -> None:
        self.template = template
        self.budget = budget
        self._count = budget.counter

    def render(
        self,
        values: Mapping[str, str | None],
        events: Sequence[Mapping[str, str | None]] = (),
    ) -> Text:
        """The text of a row.

        Args:
            values: of the template's columns.
            events: of the user, oldest first, each with its fields.

        Raises:
            ValueError: even without history it is longer than the budget.
        """
        template = self.template
        known = {name: self._limited(name, values[name]) for name in template.columns}
        lines = [
            (template.event or "").format_map({k: self._limited(k, v) for k, v in e.items()})
            for e in events
        ]

        def text_of(kept: int) -> str:
            latest = template.separator.join(lines[len(lines) - kept :])
            history = {HISTORY: latest if kept else template.missing}
            return template.text.format_map(known | history)

        def fits(kept: int) -> bool:
            return self._fixed_tokens + self._count(text_of(kept)) <= self.budget.tokens

        if not fits(0):
            needed = self._fixed_tokens + self._count(text_of(0))
            raise ValueError(
                f"the text has {needed} tokens without history, the budget is "
                f"{self.budget.tokens}; set limits of the template's columns"
            )
        kept = _most(len(lines), fits)
        return Text(text_of(kept), kept)

    @cached_property
    def _fixed_tokens(self) -> int:
        return self._count(self.template.system) if self.template.system else 0

    def _limited(self, field: str, value: str | None) -> str:
        if value is None:
            return self.template.missing
        limit = self.template.limits.get(field)
        if limit is None or self._count(value) <= limit:
            return value
        ends = [word.end() for word in re.finditer(r"\S+", value)]
        kept = _most(len(ends), lambda words: self._count(value[: ends[words - 1]]) <= limit)
        return value[: ends[kept - 1]] if kept else self.template.missing


def _most(upper: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `upper` that fits; 0 always does."""
    if fits(upper):
        return upper
    low, high = 0, upper
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fields(text: str, name: str) -> list[str]:
    try:
        found = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"template {name}: {error}; write {{{{ for a brace") from None
    fields = []
    for _, field, form, conversion in found:
        if field is None:
            continue
        if not field.isidentifier() or form or conversion:
            raise ValueError(
                f"template {name}: '{{{field}}}' is not a column's name; write {{{{ for a brace"
            )
        fields.append(field)
    return list(dict.fromkeys(fields))
