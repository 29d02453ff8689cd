# SPDX-License-Identifier: Apache-2.0
"""`deltarec text augment`: what a language model knows of items and users, as a feature table.

Each row of a table becomes a prompt (`template.py`), with the user's events before a cut
(`history.py`) if the template wants them. Answers come from JSONL files, from the journal of
earlier runs, or from a server; the latter go into the journal as they come, so that a job that ends
in whatever way goes on where it was. The output is a Parquet file with the key and one string
column for each part of the answers, null where there is none; `report.json` names each failure.

An answer's place in the journal is the hash of the request (model, messages, options) and of the
template's name, version and content: rows of equal text are asked about once.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator
from typing_extensions import TypedDict

from deltarec.config import Config
from deltarec.progress import Progress
from deltarec.text.chat import Chat, NoAnswerError, Reply, Server, ServerError
from deltarec.text.history import History, HistoryConfig
from deltarec.text.journal import Journal
from deltarec.text.made_tables import replace_file, write_table
from deltarec.text.rows import TextRows, as_text
from deltarec.text.template import Budget, Renderer, Template, load_template

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
    """Whether to pay again for answers in the journal that are malformed or cut off."""

    @model_validator(mode="after")
    def _consistent(self) -> "AugmentJob":
        template = load_template(self.template)
        if (template.event is not None) != (self.history is not None):
            raise ValueError("history: goes together with {history} of the template")
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


@dataclass
class Outcome:
    """What has become of the rows."""

    values: dict[int, dict[str, str]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)


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
    outcome = Outcome()
    progress = Progress("augment", len(prompts), every=LOG_EVERY)
    try:
        _collect(job, prompts, imports, journal, outcome, progress)
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


def _collect(
    job: AugmentJob,
    prompts: Prompts,
    imports: dict[int, dict[str, Any]],
    journal: Journal,
    outcome: Outcome,
    progress: Progress,
) -> None:
    """Find each row's answer, asking for what is not known."""
    server = job.server
    chat = Chat(server) if server else None
    waiting: dict[str, list[int]] = {}
    running: dict[Future[Reply], tuple[str, dict[str, Any]]] = {}
    unanswered = 0

    def take(id: int, text: str | None, problem: str | None, model: str, way: str) -> None:
        outcome.counts[way] += 1
        try:
            if problem is not None or text is None:
                raise ValueError(problem)
            outcome.values[id] = job.answers.parse(text)
            outcome.models[model] += 1
        except ValueError as error:
            outcome.failures[id] = str(error)
        _tell(progress, outcome)

    def finish(future: Future[Reply]) -> None:
        nonlocal unanswered
        key, body = running.pop(future)
        ids = waiting.pop(key)
        try:
            reply = future.result()
        except NoAnswerError as error:
            unanswered += 1
            for id in ids:
                outcome.failures[id] = str(error)
                _tell(progress, outcome)
            assert server is not None
            if unanswered >= server.give_up_after:
                raise ServerError(
                    f"{server.address}: no answer to {unanswered} requests in a row, to the last: "
                    f"{error}; the same command goes on"
                ) from None
            return
        unanswered = 0
        outcome.counts["requests"] += 1
        outcome.counts.update(reply.usage)
        for id in ids:
            take(id, reply.text, reply.problem, body["model"], "asked")

    threads = ThreadPoolExecutor(server.parallel if server else 1)
    try:
        for prompt in prompts.each():
            if not isinstance(prompt, Prompt):
                outcome.failures[prompt[0]] = prompt[1]
                _tell(progress, outcome)
            elif prompt.id in imports:
                line = imports[prompt.id]
                if line["prompt"] != prompt.text:
                    raise ValueError(
                        f"imports: the prompt of id {prompt.id} is not the one that template "
                        f"{prompts.template.name} makes of its row; write prompts by --prompts"
                    )
                take(prompt.id, line["answer"], None, line["model"], "imported")
            elif server is None or chat is None:
                outcome.failures[prompt.id] = "no import has it, and there is no server to ask"
                _tell(progress, outcome)
            else:
                body = server.body(prompt.messages)
                key = _key(body, prompts.template)
                if key in waiting:
                    waiting[key].append(prompt.id)
                elif key in journal and not _again(job, journal[key]):
                    line = journal[key]
                    take(prompt.id, line["answer"], line["problem"], line["model"], "cached")
                else:
                    waiting[key] = [prompt.id]
                    ask = threads.submit(_ask, chat, journal, body, key, prompts.template)
                    running[ask] = key, body
                while len(running) >= 2 * server.parallel:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        finish(future)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                finish(future)
    finally:
        if chat is not None:
            chat.stop()
        threads.shutdown(cancel_futures=True)  # answers under way still reach the journal


def _ask(chat: Chat, journal: Journal, body: dict[str, Any], key: str, template: Template) -> Reply:
    reply = chat.ask(body, key)
    journal.append(
        {
            "key": key,
            "model": body["model"],
            "template": template.name,
            "template_version": template.version,
            "messages": body["messages"],
            "answer": reply.text,
            "problem": reply.problem,
            "usage": reply.usage,
        }
    )
    return reply


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


def _key(body: dict[str, Any], template: Template) -> str:
    content = json.dumps([body, template.identity], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


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


def _tell(progress: Progress, outcome: Outcome) -> None:
    done = len(outcome.values) + len(outcome.failures)
    note = f"{len(outcome.values)} answered, {len(outcome.failures)} failed"
    progress.update(1, note if done % LOG_EVERY == 0 else "")


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


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_flat(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
