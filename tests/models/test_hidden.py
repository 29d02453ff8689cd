# SPDX-License-Identifier: Apache-2.0
"""What is hidden can be seen nowhere: other rows of the tables in its place change nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deltarec.data.batch import Position
from deltarec.data.reader import Reader
from deltarec.embeddings.collections import EmbeddingTables
from deltarec.models.network import Network
from tests.language_job import LOSSES, aligned_job, vector_job, write_language_data
from tests.models.test_every_combination import with_padding
from tests.text_job import text_job

SHOWN = {
    "liked": {"kind": "ids", "column": "history", "table": "item", "pooling": "mean"},
    "again": {"kind": "id", "column": "item", "table": "tags", "on_invalid": "hash"},
    "bought": {"kind": "id", "column": "city", "table": "item"},
}
"""A list of the item's table, the item in another table, another id in the item's."""
ENCODERS = [{"name": "din", "hidden": [8]}, {"name": "tem4ctr", "hidden": [8]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_language_data(folder)
    return folder


@pytest.mark.parametrize("encoder", ENCODERS, ids=["din", "tem4ctr"])
def test_a_hidden_id_is_seen_nowhere(folder: Path, one_process: Any, encoder: dict[str, Any]):
    """Its vectors are in its feature, in its text, in histories, in lists and in other ids."""
    whole = text_job(folder).model_dump(mode="json", exclude_none=True)
    around = {"kind": "sequence", "table": "item", "aligned_with": "history"}
    features = {**whole["features"], **SHOWN, "around": around}
    job = text_job(folder, features=features, model__sequence=encoder)
    schema, specs = job.data_schema, job.embedding.resolved()
    batch = with_padding(
        next(Reader(job.data.files("train"), schema, job.data.reader, 200, 0).read(Position(), 1))
    )
    torch.manual_seed(0)
    tables = EmbeddingTables(schema, specs).to_empty(device="cpu")
    network = Network(job.model, schema, specs, seed=0).eval()
    for parameter in [*tables.parameters(), *network.parameters()]:
        torch.nn.init.normal_(parameter, std=0.5)
    items = batch.ids("item")
    hidden = (torch.arange(len(items)) % 2 == 0) & (items >= 0)

    def representations() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            seen = network._see(batch, tables(batch))
            return seen.representation, seen.hide({"item": hidden})

    plain, without = representations()
    assert torch.equal(without[~hidden], plain[~hidden])
    assert (without != plain)[hidden].any(1).all()
    rows = {name: batch.unpooled[name].to_dense() for name in ("history", "around")}  # pyright: ignore
    again = [i for i in hidden.nonzero()[:, 0].tolist() if (rows["history"][i] == items[i]).any()]
    shown = [i for i in hidden.nonzero()[:, 0].tolist() if (rows["around"][i] == items[i]).any()]
    as_other = (hidden & (batch.ids("bought") == items)).nonzero()[:, 0].tolist()
    assert again and shown and as_other
    for sample in {*again[:3], *shown[:3], *as_other[:2], int(hidden.nonzero()[0])}:
        before = {name: p.detach().clone() for name, p in tables.named_parameters()}
        for name, parameter in tables.named_parameters():
            table = name.split(".")[-2]
            if table in ("item", "item_text", "tags"):
                own = "again" if table == "tags" else "item"
                parameter.data[batch.ids(own)[sample]] += 1
        changed, still = representations()
        assert not torch.equal(changed[sample], plain[sample])
        torch.testing.assert_close(still[sample], without[sample], rtol=0, atol=0)
        for name, parameter in tables.named_parameters():
            parameter.data.copy_(before[name])


def test_what_the_prompt_or_the_scenario_shows_is_not_hidden(folder: Path):
    """A soft token is the vector itself: the text would have what is to be guessed."""

    def features(job: Any) -> list[str]:
        network = Network(job.model, job.data_schema, job.embedding.resolved(), seed=0)
        assert network.alignment is not None
        return network.alignment.features

    assert features(aligned_job(folder)) == ["user", "item", "city", "country"]
    align = {"prompt": "<user> saw {seen} and {title}", "losses": LOSSES}
    assert features(aligned_job(folder, model__align=align)) == ["item", "city", "country"]
    align = {"prompt": "<liked> saw {seen} and {title}", "losses": LOSSES}
    more = {**aligned_job(folder).model_dump(mode="json", exclude_none=True)["features"]}
    job = aligned_job(folder, features={**more, "liked": SHOWN["liked"]}, model__align=align)
    assert features(job) == ["user", "city", "country"]
    scenario = {"column": "country", "values": list(range(20))}
    assert features(vector_job(folder, scenario=scenario)) == ["user", "item", "city"]
    align = {"prompt": "<user><item><city><country>{seen}{title}", "losses": LOSSES}
    with pytest.raises(ValueError, match="no soft token of the prompt and no scenario shows"):
        features(aligned_job(folder, model__align=align))
