# SPDX-License-Identifier: Apache-2.0
"""Prompts, scorers and networks with a tiny language model, against plain readings of the text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from deltarec.assembly import check
from deltarec.data.batch import Batch, Position
from deltarec.data.reader import Reader
from deltarec.embeddings.collections import Embedded, EmbeddingTables, embedded
from deltarec.embeddings.frozen import read_rows
from deltarec.job import Job
from deltarec.models.losses import TaskLosses
from deltarec.models.network import Network
from deltarec.run_folder import RunFolder
from deltarec.text.language_model import LanguageModel, LanguageModelConfig
from deltarec.text.prompt import Prompt, parse
from deltarec.trainer import Trainer, _Batches
from tests.language_job import (
    LOSSES,
    PROMPT,
    TITLES,
    WIDTH,
    aligned_job,
    language_job,
    vector_job,
    write_language_data,
)
from tests.models.test_every_combination import with_padding

SCORERS: dict[str, dict[str, Any]] = {
    "yes_no": {"prompt": "Saw {seen} like <user>{title}? "},
    "pooled_state": {"prompt": PROMPT, "hidden": [4]},
    "text_towers": {"user": "{seen}<user>", "item": "<item>{title}", "dim": 4},
}


class Sample(NamedTuple):
    """A batch with padding, and its vectors of random tables, those of tokens being true."""

    job: Job
    batch: Batch
    outputs: list[Any]

    @property
    def found(self) -> Embedded:
        return embedded(self.job.data_schema, self.outputs, self.batch)

    def dims(self) -> dict[str, int]:
        tables, schema = self.job.embedding.resolved(), self.job.data_schema
        return {name: tables[schema.table(name)].dim for name in schema.sparse}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_language_data(folder)
    return folder


def sample_of(job: Job) -> Sample:
    reader = Reader(job.data.files("train"), job.data_schema, job.data.reader, 12, seed=0)
    batches = reader.read(Position(), 1)
    batch = with_padding(next(batches))
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(0)
    tables = EmbeddingTables(job.data_schema, job.embedding.resolved()).to_empty(device="cpu")
    for name, weight in tables.named_parameters():
        torch.nn.init.normal_(weight, std=0.5)
        for title, table in job.embedding.resolved().items():
            if table.frozen and f".{title}." in name:
                weight.data.zero_()
                for ids, rows in read_rows(title, table.frozen, table.rows, table.dim):
                    weight.data[ids] = rows
    with torch.no_grad():
        return Sample(job, batch, tables(batch))


@pytest.fixture(scope="module")
def sample(folder: Path) -> Iterator[Sample]:
    yield sample_of(aligned_job(folder))


def model_of(folder: Path, kind: str = "encoder", **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    pooling: Any = "mean" if kind == "encoder" else "last"
    config = LanguageModelConfig(model=str(folder / kind), pooling=pooling, **options)
    return LanguageModel(config, causal=kind == "decoder").eval()


def network_of(sample: Sample) -> Network:
    """The network of the sample's job, with updates that are not zero."""
    torch.manual_seed(0)
    network = Network(
        sample.job.model, sample.job.data_schema, sample.job.embedding.resolved(), seed=0
    )
    for name, parameter in network.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def item_of(batch: Batch) -> list[int]:
    return batch.ids("item").tolist()


def texts_of(batch: Batch) -> list[tuple[str, str]]:
    """Of each sample the titles of what it has seen, and its own."""
    cut = [title[:WIDTH] for title in TITLES]
    items = zip(item_of(batch), seen_of(batch), strict=True)
    return [("".join(cut[i] for i in seen), cut[item]) for item, seen in items]


def seen_of(batch: Batch) -> list[list[int]]:
    assert batch.unpooled is not None
    return [x.tolist() for x in batch.unpooled["seen"].to_dense()]


def test_pieces():
    found = [(p.kind, p.value) for p in parse("a {b}<c> d 3 < 4")]
    assert found == [("words", "a "), ("text", "b"), ("soft", "c"), ("words", " d 3 < 4")]
    with pytest.raises(ValueError, match="has neither"):
        parse("no feature")


def test_prompts_are_the_texts(folder: Path, sample: Sample):
    """Token by token what the tokenizer makes of the same text; soft tokens are the MLP's."""
    model = model_of(folder)
    text = "Saw {seen} by <user> now {title}!"
    prompt = Prompt(text, model, sample.job.data_schema, sample.dims())
    made = prompt(model, sample.found, sample.batch.index)
    soft = prompt.soft["user"](sample.found.pooled["user"])
    for row, (seen, title) in enumerate(texts_of(sample.batch)):
        wanted = model.tokenizer(f"Saw {seen} by ", add_special_tokens=False)["input_ids"]
        end = model.tokenizer(f" now {title}!", add_special_tokens=False)
        wanted = [1, *wanted, -2, *end["input_ids"], 2]
        assert made.tokens[row, : len(wanted)].tolist() == wanted
        assert (made.tokens[row, len(wanted) :] == -1).all()
        assert made.mask[row].sum() == len(wanted)
        place = wanted.index(-2)
        torch.testing.assert_close(made.embeddings[row, place], soft[row])
        torch.testing.assert_close(made.embeddings[row, 1], model.vocabulary[wanted[1]])
        letters = len(seen) + len(title)
        assert made.of_features[row, : len(wanted)].sum() == letters
    with pytest.raises(ValueError, match=r"may have 82 tokens, the model admits 64; lower"):
        Prompt("{seen}" * 3 + "{title}", model, sample.job.data_schema, sample.dims())


def test_yes_no_is_the_models_own_probability(folder: Path, sample: Sample):
    """As the causal model itself reads the text: the softmax over its two answers' logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = language_job(
        folder, "decoder", model__score={"name": "yes_no", "prompt": "{seen} {title}? "}
    )
    network = Network(job.model, job.data_schema, job.embedding.resolved(), seed=0).eval()
    assert network.scorer is not None and network.language_model is not None
    logits = network.scorer.scorer(network.language_model, sample.found, sample.batch.index)
    theirs = AutoModelForCausalLM.from_pretrained(folder / "decoder").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "decoder")
    answers = [tokenizer.convert_tokens_to_ids(letter) for letter in "YN"]
    for row, (seen, title) in enumerate(texts_of(sample.batch)):
        tokens = tokenizer(f"{seen} {title}? ", add_special_tokens=False)
        with torch.no_grad():
            found = theirs(torch.tensor([[1, *tokens["input_ids"]]])).logits[0, -1, answers]
        torch.testing.assert_close(logits[row].sigmoid(), found.softmax(0)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_reach_everything_that_is_trained(
    folder: Path, sample: Sample, one_process: Any, name: str
):
    """The average has its share; padding and the rest of the batch change no sample."""
    job = language_job(
        folder,
        "decoder" if name == "yes_no" else "encoder",
        model__score={"name": name, "task": "buy", "share": 0.25, **SCORERS[name]},
    )
    mine = Sample(job, *sample[1:])
    network = network_of(mine)
    scored, network.scorer = network.scorer, None
    logits = network(mine.batch, mine.outputs)
    network.scorer = scored
    columns = network(mine.batch, mine.outputs)
    assert scored is not None and network.language_model is not None
    score = scored.scorer(network.language_model, mine.found, mine.batch.index)
    torch.testing.assert_close(columns[:, 0], logits[:, 0])
    torch.testing.assert_close(columns[:, 1], 0.75 * logits[:, 1] + 0.25 * score)
    TaskLosses(job.tasks, network.heads.losses)(columns, mine.batch).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.ndim < 2 or parameter.grad.any(), key


@pytest.mark.parametrize("trained", [True, False])
def test_a_scorer_belongs_to_its_task(folder: Path, one_process: Any, trained: bool):
    """It has that task's gradient as it is; what is not trained has none."""
    job = language_job(
        folder,
        model__score={"name": "pooled_state", "task": "buy", "prompt": "{seen} {title}"},
        model__language_model__trained=trained,
        balance={"name": "mgda"},
    )
    trainer = Trainer(job, RunFolder(folder / f"run_{trained}"), torch.device("cpu"))
    network = trainer.model.module.network
    batches = _Batches(trainer.reader.read(Position(), 1), trainer.assignments)
    trainer._train_step(batches)
    batches.close()
    assert trainer.model.module.boundary is not None
    shared = {id(p) for p in trainer.model.module.boundary.shared}
    for part in (network.scorer, network.language_model):
        for parameter in part.parameters():
            assert id(parameter) not in shared
            assert (parameter.grad is None) == (not parameter.requires_grad)
    assert any(parameter.requires_grad for parameter in network.scorer.parameters())


def test_alignment_reaches_everything_that_is_trained(sample: Sample, one_process: Any):
    network = network_of(sample)
    columns, shares = network.aligned(sample.batch, sample.outputs)
    assert shares.shape == (3,) and shares.isfinite().all() and (shares > 0).all()
    (shares.sum() + columns.sum()).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.ndim < 2 or parameter.grad.any(), key
    again = network.aligned(sample.batch, sample.outputs)[1]
    assert torch.equal(again, shares), "the same samples, the same draws"


def test_checkpointing_and_bf16(folder: Path, sample: Sample):
    """Checkpointing changes no gradient; bf16 few digits; all weights may be trained."""
    found: dict[str, tuple[Tensor, list[Tensor]]] = {}
    for name, options in {
        "plain": {},
        "checkpointing": {"checkpointing": True},
        "bf16": {"compute": "bf16"},
        "whole": {"lora": None},
    }.items():
        model = model_of(folder, **{"lora": {"rank": 2}, **options} | _lora(options)).train()
        prompt = Prompt(PROMPT, model, sample.job.data_schema, sample.dims())
        made = prompt(model, sample.found, sample.batch.index)
        pooled = model.pool(model(made.embeddings, made.mask), made.mask)
        pooled.square().sum().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained)
        found[name] = pooled.detach(), [p.grad for p in trained]  # pyright: ignore
    torch.testing.assert_close(found["checkpointing"], found["plain"])
    torch.testing.assert_close(found["bf16"][0], found["plain"][0], rtol=0.1, atol=0.1)
    assert len(found["whole"][1]) > len(found["plain"][1]) == 8
    still = model_of(folder, trained=False)
    assert not any(p.requires_grad for p in still.parameters()) and still.state_dict()


def _lora(options: dict[str, Any]) -> dict[str, Any]:
    from deltarec.layers.lora import LoRAConfig

    return {"lora": None if "lora" in options else LoRAConfig(rank=2)}


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"model__align__prompt": "{price}"}, "there is no feature 'price' of ids"),
        ({"model__align__prompt": "{item}"}, "a text is an id or a sequence of a frozen table"),
        ({"model__align__prompt": "{title}<history>"}, "a soft token is one vector"),
        ({"model__align__prompt": None}, "give either 'prompt' or 'vectors'"),
        ({"model__align__losses": LOSSES[:1] * 2}, "one is there twice"),
        ({"model__language_model": None}, "goes together with a prompt"),
        ({"balance": {"name": "pcgrad"}}, "losses of alignment do not have"),
        ({"embedding__tables__title__precision": "int8"}, "rounds the tokens"),
        ({"model__score": {"name": "pooled_state", "prompt": "{title}", "task": "x"}},
         "score.task: no task 'x'"),
        ({"model__score": {"name": "yes_no", "prompt": "{title}"}}, "take 'last'"),
        ({"model__language_model__lora": {"targets": ["x"]}}, "no linear layer called x"),
    ],
)  # fmt: skip
def test_jobs_that_cannot_be(folder: Path, overrides: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        check(aligned_job(folder, **overrides))


def test_a_language_model_beside_adatask_is_updated_by_it(folder: Path):
    """Its own optimiser hands the update on."""
    sgd = {"name": "sgd", "lr": 0.01}
    job: dict[str, Any] = {
        "model__score": {"name": "pooled_state", "prompt": "{seen} {title}"},
        "balance": {"name": "adatask"},
        "features__scores": {"kind": "ids", "column": "tags", "table": "scores"},
        "embedding__optimizer": sgd,
        "embedding__tables__country__sharding": "table_wise",
        "train__optimizer__dense": sgd,
    }
    with pytest.raises(
        ValueError, match=r"language_model.dense.name: got 'adamw'; balance adatask"
    ):
        language_job(folder, **job)
    with pytest.raises(ValueError, match=r"language_model.every: got 2; balance adatask makes"):
        language_job(folder, **job, train__optimizer__language_model={"dense": sgd, "every": 2})
    check(language_job(folder, **job, train__optimizer__language_model={"dense": sgd}))


def test_masked_tokens_need_tokens(folder: Path):
    with pytest.raises(ValueError, match="masked_token hides tokens of a text"):
        vector_job(folder, model__align={"vectors": ["vector"], "losses": LOSSES[2:]})


def test_tokens_of_another_tokenizer_are_refused(folder: Path):
    check(aligned_job(folder))
    frozen = {"source": str(folder / "item_text"), "key": "id", "column": "vector"}
    table = {"rows": 100, "dim": 12, "frozen": frozen}
    with pytest.raises(ValueError, match=r"title is not of tokens of .*encoder; make it by"):
        check(aligned_job(folder, embedding__tables__title=table))
