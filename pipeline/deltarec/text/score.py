# SPDX-License-Identifier: Apache-2.0
"""`deltarec text score`: what a frozen causal language model says of samples, as a column more.

Each sample becomes a prompt (`template.py`), of its own columns and of those that it looks up by
id. Its score is the difference of two logits after the prompt, `s_yes − s_no`, whose sigmoid is the
probability of yes among the two (Bao et al., TALLRec, RecSys 2023, arXiv 2305.00447).

`OUTPUT/` has the samples in their order with all their columns, in *parts* of so many rows, each of
which gets its name when it is on the disk: a job that was killed goes on after those that are
there. A part's samples of one prompt are scored once, and which prompts are scored together follows
from the part alone, so a resumed job writes what an undisturbed one writes, bit for bit. A model
that is tuned inside a job scores by `deltarec predict`.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from pydantic import Field, model_validator
from typing_extensions import TypedDict

from deltarec.config import Config
from deltarec.data.files import ParquetFile, find
from deltarec.models.yes_no import answer_tokens
from deltarec.progress import Progress
from deltarec.text.encoder import digest_of_model
from deltarec.text.language_model import LanguageModel, LanguageModelConfig
from deltarec.text.made_tables import begin_folder, write_table
from deltarec.text.rows import TextRows, as_text
from deltarec.text.template import Budget, Renderer, Template, load_template


class CausalModel(Config):
    """A frozen causal language model and its two answers."""

    model: str
    """Folder of a transformers model."""
    yes: str = "Yes"
    """The first token of each answer counts."""
    no: str = "No"
    max_tokens: int = Field(default=512, gt=0)
    """Of a prompt; longer ones are refused, so set limits of the template's columns."""
    batch_size: int = Field(default=16, gt=0)
    """Prompts that are scored at a time."""
    compute: Literal["fp32", "bf16"] = "fp32"


class ScoreJob(Config):
    """One YAML file of `deltarec text score`."""

    samples: str
    """Parquet file, or folder of them."""
    texts: dict[str, TextRows] = {}  # noqa: RUF012
    """What samples look up: by the column of the samples that has its key."""
    template: Template | str
    """The prompt, or a YAML file that has it; it ends where the answer begins."""
    scorer: CausalModel
    """Who is asked."""
    column: str = "score"
    """Name of the new column, float32."""
    output: str
    """Folder to write."""
    rows_per_part: int = Field(default=16384, gt=0)
    """What a job that is killed loses at most; equal prompts of a part are asked once."""

    @model_validator(mode="after")
    def _consistent(self) -> "ScoreJob":
        template = load_template(self.template)
        if template.event is not None or template.system is not None:
            raise ValueError(f"template {template.name}: history and system are for text augment")
        return self


class Scored(TypedDict):
    """What `text score` has done."""

    rows: int
    scored: int
    """Not counting what was there."""
    prompts: int
    """That were asked."""
    parts: int
    output: str


def score(job: ScoreJob) -> Scored:
    """Score all samples that have no score in the output yet.

    Raises:
        ValueError: the job, its files, the model or what the output holds is not as needed.
    """
    template = load_template(job.template)
    files = find(job.samples, ["."], mend="mend or remove the file")
    prompts = _Prompts(job, template, files[0].schema)
    scorer = _Scorer(job.scorer)
    folder = Path(job.output)
    identity = {
        "template": template.identity,
        "scorer": scorer.identity,
        "rows_per_part": job.rows_per_part,
        "column": job.column,
        "texts": prompts.digest,
        "samples": [[file.path, file.num_bytes] for file in files],
    }
    begin_folder(folder, "_score.json", identity, "scores")
    progress = Progress("score", sum(sum(file.row_groups) for file in files))
    rows = scored = asked = parts = 0
    for parts, table in enumerate(_parts(files, job.rows_per_part), start=1):
        path = folder / f"part-{parts - 1:05}.parquet"
        if not path.is_file():
            texts = prompts.of(table)
            values = pa.array(scorer.score(texts), pa.float32())
            write_table(table.append_column(job.column, values), path, identity)
            scored += len(table)
            asked += len(set(texts))
        rows += len(table)
        progress.update(len(table), f"{asked} prompts")
    progress.close()
    return {
        "rows": rows,
        "scored": scored,
        "prompts": asked,
        "parts": parts,
        "output": job.output,
    }


class _Prompts:
    """The prompts of samples; `digest` is of all that they look up.

    Raises:
        ValueError: a field of the template is no column, or the new column is there already.
    """

    def __init__(self, job: ScoreJob, template: Template, schema: pa.Schema) -> None:
        if job.column in schema.names:
            raise ValueError(f"column: the samples have a column '{job.column}'; choose another")
        budget = Budget(tokens=job.scorer.max_tokens, tokenizer=job.scorer.model)
        self._renderer = Renderer(template, budget)
        self._own = [name for name in template.columns if name in schema.names]
        digest = hashlib.sha256()
        self._looked_up: dict[str, dict[int, dict[str, str | None]]] = {}
        missing = [name for name in template.columns if name not in schema.names]
        for column, rows in job.texts.items():
            if column not in schema.names:
                raise ValueError(f"texts.{column}: the samples have no such column")
            known = find(rows.source, ["."], mend="mend or remove the file")[0].schema.names
            wanted = [name for name in missing if name in known]
            missing = [name for name in missing if name not in known]
            table = rows.read(wanted)
            columns = [as_text(table[name]) for name in wanted]
            self._looked_up[column] = {
                key: {name: texts[row] for name, texts in zip(wanted, columns, strict=True)}
                for row, key in enumerate(table[rows.key].to_pylist())
            }
            digest.update(json.dumps([column, *self._looked_up[column].items()]).encode())
        self.digest = digest.hexdigest()
        if missing:
            raise ValueError(
                f"template {template.name}: '{missing[0]}' is no column of the samples nor of texts"
            )

    def of(self, samples: pa.Table) -> list[str]:
        """One for each row."""
        own = {name: as_text(samples[name]) for name in self._own}
        keys = {name: samples[name].to_pylist() for name in self._looked_up}
        texts = []
        for row in range(len(samples)):
            values = {name: column[row] for name, column in own.items()}
            for name, found in self._looked_up.items():
                key = keys[name][row]
                if key not in found:
                    raise ValueError(f"texts.{name}: there is no row of id {key}")
                values |= found[key]
            texts.append(self._renderer.render(values).text)
        return texts


class _Scorer:
    """Texts to scores, each text once."""

    def __init__(self, config: CausalModel) -> None:
        self.config = config
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        frozen = LanguageModelConfig(
            model=config.model, pooling="last", lora=None, trained=False, compute=config.compute
        )
        self.model = LanguageModel(frozen, causal=True).to(device).eval()
        self.answers = torch.tensor(answer_tokens(self.model, config.yes, config.no), device=device)

    @property
    def identity(self) -> dict[str, Any]:
        options = self.config.model_dump(mode="json", exclude={"batch_size"})
        return {**options, "sha256": digest_of_model(self.model.folder)}

    def score(self, texts: list[str]) -> list[float]:
        """One for each text."""
        new = list(dict.fromkeys(texts))
        found: dict[str, float] = {}
        before, _ = self.model.frame()
        tokens = {text: before + self.model.words(text) for text in new}
        new.sort(key=lambda text: len(tokens[text]))
        for start in range(0, len(new), self.config.batch_size):
            chosen = new[start : start + self.config.batch_size]
            found |= zip(chosen, self._ask([tokens[text] for text in chosen]), strict=True)
        return [found[text] for text in texts]

    @torch.no_grad()
    def _ask(self, tokens: list[list[int]]) -> list[float]:
        device, longest = self.answers.device, max(map(len, tokens))
        padded = torch.tensor([t + [0] * (longest - len(t)) for t in tokens], device=device)
        lengths = torch.tensor([len(t) for t in tokens], device=device)
        mask = torch.arange(longest, device=device) < lengths.unsqueeze(1)
        states = self.model.pool(self.model(self.model.embed(padded), mask), mask)
        logits = self.model.logits(states, self.answers)
        return (logits[:, 0] - logits[:, 1]).tolist()


def _parts(files: list[ParquetFile], rows_per_part: int) -> Iterator[pa.Table]:
    """The rows of each file in parts of so many, the last of a file perhaps smaller."""
    for file in files:
        with file.open() as parquet:
            for batch in parquet.iter_batches(rows_per_part):
                yield pa.Table.from_batches([batch])
