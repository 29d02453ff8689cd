# SPDX-License-Identifier: Apache-2.0
"""`deltarec text augment`: what a language model knows of items and users, as a feature table.

Each row of a table becomes a prompt (`template.py`), with the user's events before a cut
(`history.py`) if the template wants them. Answers come from JSONL files, from the journal of
earlier runs, or from a server; the latter go into the journal as they come, so that a job that ends
in whatever way goes on where it was. The output is a Parquet file with the key and one string
column for each part of the answers, null where there is none; `report.json` names each failure.

An answer's place in the journal is the hash of the request (model, messages, options but the length
of an answer) and of the template's name, version and content: rows of equal text are asked about
once. What is known is taken before anybody is asked, so that a server that fails costs no row.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import model_validator
from typing_extensions import TypedDict

from deltarec.config import Config
from deltarec.progress import Progress
from deltarec.text.answers import Answers, Outcome
from deltarec.text.chat import Server
from deltarec.text.history import History, HistoryConfig
from deltarec.text.journal import Journal
from deltarec.text.made_tables import replace_file, write_table
from deltarec.text.requests import Requests
from deltarec.text.rows import TextRows, as_text
from deltarec.text.template import Budget, Renderer, Template, load_template


class AugmentJob(Config):
    """One YAML file of `deltarec text augment`."""

    rows: TextRows
    """Items or users to ask about."""
    template: Template | str
    """The prompt, or a YAML file that has it."""
    output: str
    """Folder to write: features.parquet, report.json, and the journal if it has no place."""
    history: HistoryConfig | None = None
    """The users' events, if the template has `{history}`."""
    budget: Budget = Budget(tokens=2048)
    """Of a prompt."""
    answers: Answers = Answers()
    server: Server | None = None
    """Whom to ask for what is not known yet; nobody if not given."""
    imports: list[str] = []  # noqa: RUF012
    """JSONL files of answers made elsewhere, `{id, prompt, answer, model, template_version}` a
    line. A prompt must be the one that the template makes (see `--prompts`)."""
    journal: str | None = None
    """File of the answers that were paid for; several jobs may share it, one after the other."""
    ask_again: bool = False
    """Whether to ask, and pay, again where the journal has a malformed answer, one that is cut off,
    or a refusal."""

    @model_validator(mode="after")
    def _consistent(self) -> "AugmentJob":
        template = load_template(self.template)
        if (template.event is not None) != (self.history is not None):
            raise ValueError("history: goes together with {history} of the template")
        if self.history is not None:
            columns = [name for name in template.columns if name != self.rows.key]
            self.history.check_columns(template.name, columns)
        return self


@dataclass(frozen=True)
class Prompt:
    """What is asked about one row."""

    id: int
    messages: list[dict[str, str]]

    @property
    def text(self) -> str:
        """All messages, as an import must have them."""
        return "\n\n".join(message["content"] for message in self.messages)


class Augmented(TypedDict):
    """What `text augment` has done."""

    rows: int
    answered: int
    failed: int
    imported: int
    """Of the answers; likewise `cached` and `asked`."""
    cached: int
    asked: int
    requests: int
    prompt_tokens: int
    """Of what was asked; likewise `completion_tokens`."""
    completion_tokens: int
    events_dropped: int
    output: str
    report: str


class PromptsWritten(TypedDict):
    """What `text augment --prompts` has done."""

    prompts: int
    failed: int
    output: str


AugmentAnswer = Augmented | PromptsWritten
"""What the verb `text augment` answers, as it asks or only writes what it would ask."""


def augment(job: AugmentJob) -> Augmented:
    """Ask about all rows and write the table.

    Raises:
        ValueError: the job, its files or an import are not as needed; a prompt would know the
            future.
        ServerError: the server refuses everything.
    """
    prompts = Prompts(job)
    imports = _read_imports(job, prompts.template)
    folder = Path(job.output)
    journal = Journal(Path(job.journal) if job.journal else folder / "journal.jsonl")
    progress = Progress("augment", len(prompts))
    outcome = Outcome(job.answers, progress)
    try:
        unknown = _take_known(job, prompts, imports, journal, outcome)
        if job.server and unknown:
            with Requests(job.server, journal, prompts.template, outcome) as requests:
                for prompt in prompts.each():
                    if isinstance(prompt, Prompt) and prompt.id in unknown:
                        requests.ask(prompt.id, *_request(job.server, prompt, prompts.template))
                requests.finish()
    finally:
        journal.close()
        progress.close()
        summary = _write(job, prompts, outcome, folder)
    return summary


def write_prompts(job: AugmentJob, path: Path) -> PromptsWritten:
    """Write all prompts as JSONL, for a model that is asked elsewhere; asks nobody."""
    prompts = Prompts(job)
    count = 0
    with path.open("w") as file:
        for prompt in prompts.each():
            if isinstance(prompt, Prompt):
                line = {
                    "id": prompt.id,
                    "prompt": prompt.text,
                    "messages": prompt.messages,
                    "template": prompts.template.name,
                    "template_version": prompts.template.version,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
    return {"prompts": count, "failed": len(prompts) - count, "output": str(path)}


class Prompts:
    """The prompts of a job's rows.

    Raises:
        ValueError: a column is missing, or an event is of the future.
    """

    def __init__(self, job: AugmentJob) -> None:
        self.template = template = load_template(job.template)
        table = job.rows.read(template.columns)
        self.keys: list[int] = table[job.rows.key].to_pylist()
        self._columns = {name: as_text(table[name]) for name in template.columns}
        self._renderer = Renderer(template, job.budget)
        self.history = None
        if job.history is not None:
            self.history = History(job.history, template.event_fields, self.keys)
            self.history.check_rows(job.rows)

    def __len__(self) -> int:
        return len(self.keys)

    def each(self) -> Iterator[Prompt | tuple[int, str]]:
        """The prompt of each row, or its id and why it has none."""
        system = self.template.system
        for row, key in enumerate(self.keys):
            values = {name: texts[row] for name, texts in self._columns.items()}
            events = self.history.of(key) if self.history else []
            try:
                text = self._renderer.render(values, events).text
            except ValueError as error:
                yield key, str(error)
                continue
            messages = [{"role": "system", "content": system}] if system else []
            yield Prompt(key, [*messages, {"role": "user", "content": text}])


def _take_known(
    job: AugmentJob,
    prompts: Prompts,
    imports: dict[int, dict[str, Any]],
    journal: Journal,
    outcome: Outcome,
) -> set[int]:
    """Take what imports and journal have; returns the rows that a server is to be asked about."""
    unknown: set[int] = set()
    for prompt in prompts.each():
        if not isinstance(prompt, Prompt):
            outcome.fail(*prompt)
        elif prompt.id in imports:
            line = imports[prompt.id]
            if line["prompt"] != prompt.text:
                raise ValueError(
                    f"imports: the prompt of id {prompt.id} is not the one that template "
                    f"{prompts.template.name} makes of its row; write prompts by --prompts"
                )
            outcome.take(prompt.id, line["answer"], None, line["model"], "imported")
        elif job.server is None:
            outcome.fail(prompt.id, "no import has it, and there is no server to ask")
        else:
            key, _ = _request(job.server, prompt, prompts.template)
            if key not in journal or _again(job, journal[key]):
                unknown.add(prompt.id)
            else:
                line = journal[key]
                outcome.take(prompt.id, line["answer"], line["problem"], line["model"], "cached")
    return unknown


def _again(job: AugmentJob, line: dict[str, Any]) -> bool:
    """Whether an answer in the journal is to be paid for once more."""
    if not job.ask_again:
        return False
    try:
        if line["problem"] is None:
            job.answers.parse(line["answer"])
    except ValueError:
        return True
    return line["problem"] is not None


def _request(server: Server, prompt: Prompt, template: Template) -> tuple[str, dict[str, Any]]:
    """What a row's answer is called in the journal, and what is sent to get it."""
    body = server.body(prompt.messages)
    named = {name: value for name, value in body.items() if name != "max_tokens"}
    content = json.dumps([named, template.identity], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest(), body


def _read_imports(job: AugmentJob, template: Template) -> dict[int, dict[str, Any]]:
    needed = {"id": int, "prompt": str, "answer": str, "model": str, "template_version": int}
    found: dict[int, dict[str, Any]] = {}
    for name in job.imports:
        if not Path(name).is_file():
            raise ValueError(f"imports: {name}: there is no such file")
        with open(name) as file:
            for number, text in enumerate(file, start=1):
                try:
                    line = json.loads(text)
                    wrong = [k for k, kind in needed.items() if not isinstance(line.get(k), kind)]
                except (ValueError, AttributeError):
                    raise ValueError(f"{name}:{number}: not a JSON object") from None
                if wrong:
                    kind = needed[wrong[0]].__name__
                    raise ValueError(f"{name}:{number}: '{wrong[0]}' must be there, of type {kind}")
                if line["template_version"] != template.version:
                    raise ValueError(
                        f"{name}:{number}: of template version {line['template_version']}, the "
                        f"job's is {template.version}"
                    )
                if line["id"] in found:
                    raise ValueError(f"{name}:{number}: a second answer for id {line['id']}")
                found[line["id"]] = line
    return found


def _write(job: AugmentJob, prompts: Prompts, outcome: Outcome, folder: Path) -> Augmented:
    """The feature table and the report, each replaced in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [outcome.values.get(key, {}) for key in prompts.keys]
    columns = {
        name: pa.array([r.get(name) for r in rows], pa.string()) for name in job.answers.columns
    }
    table = pa.table({job.rows.key: pa.array(prompts.keys, pa.int64()), **columns})
    made_with = {"template": prompts.template.identity, "models": dict(outcome.models)}
    output, report = folder / "features.parquet", folder / "report.json"
    write_table(table, output, made_with)
    counts = outcome.counts
    summary: Augmented = {
        "rows": len(prompts),
        "answered": len(outcome.values),
        "failed": len(prompts) - len(outcome.values),
        "imported": counts["imported"],
        "cached": counts["cached"],
        "asked": counts["asked"],
        "requests": counts["requests"],
        "prompt_tokens": counts["prompt_tokens"],
        "completion_tokens": counts["completion_tokens"],
        "events_dropped": prompts.history.dropped if prompts.history else 0,
        "output": str(output),
        "report": str(report),
    }
    unasked = "the job ended before it was done"
    failures = [
        {"id": key, "why": outcome.failures.get(key, unasked)}
        for key in prompts.keys
        if key not in outcome.values
    ]
    partial = folder / "report.partial"
    partial.write_text(json.dumps({**summary, **made_with, "failures": failures}, indent=2) + "\n")
    replace_file(partial, report)
    return summary
