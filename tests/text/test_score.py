# SPDX-License-Identifier: Apache-2.0
"""`text score` with a tiny random causal model."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from deltarec.cli import main
from deltarec.config import validate
from deltarec.text.score import ScoreJob, score
from tests.text.tiny import save_tiny_decoder

ITEMS = [3, 5, 3, 7, 5]
AGES = [20, 20, 20, 31, 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    save_tiny_decoder(folder / "tiny")
    titles = pa.table({"id": [3, 5, 7], "title": ["three", "five", None]})
    pq.write_table(titles, folder / "items.parquet")
    samples = pa.table({"item": ITEMS, "age": AGES, "click": [1, 0, 1, 0, 1]})
    pq.write_table(samples, folder / "samples.parquet")
    return folder


def job(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    return {
        "samples": str(folder / "samples.parquet"),
        "texts": {"item": {"source": str(folder / "items.parquet"), "key": "id"}},
        "template": {"name": "ask", "version": 1, "text": "Age {age}. Like {title}? "},
        "scorer": {"model": str(folder / "tiny"), "batch_size": 2, "max_tokens": 40},
        "output": str(output),
        "rows_per_part": 2,
        **options,
    }


def run(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    return score(validate(ScoreJob, job(folder, output, **options), "test"))


def test_a_folder_holds_scores_of_one_input(folder: Path, tmp_path: Path):
    run(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="scores of another column; give a new folder"):
        run(folder, tmp_path / "out", column="opinion")
    renamed = pa.table({"id": [3, 5, 7], "title": ["three", "FIVE", None]})
    pq.write_table(renamed, tmp_path / "items.parquet")
    texts = {"item": {"source": str(tmp_path / "items.parquet"), "key": "id"}}
    with pytest.raises(ValueError, match="scores of another texts; give a new folder"):
        run(folder, tmp_path / "out", texts=texts)


def test_scores_are_the_models_and_survive_a_kill(folder: Path, tmp_path: Path, capsys: Any):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    answer = run(folder, tmp_path / "out")
    assert (answer["rows"], answer["scored"], answer["prompts"], answer["parts"]) == (5, 5, 5, 3)
    found = pq.read_table(tmp_path / "out")
    assert found.column_names == ["item", "age", "click", "score"]
    assert found["item"].to_pylist() == ITEMS
    theirs = AutoModelForCausalLM.from_pretrained(folder / "tiny").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    yes, no = (tokenizer.convert_tokens_to_ids(letter) for letter in "YN")
    titles = {3: "three", 5: "five", 7: "unknown"}
    for item, age, got in zip(ITEMS, AGES, found["score"].to_pylist(), strict=True):
        tokens = tokenizer(f"Age {age}. Like {titles[item]}? ", add_special_tokens=False)
        with torch.no_grad():
            logits = theirs(torch.tensor([[1, *tokens["input_ids"]]])).logits[0, -1]
        assert got == pytest.approx(float(logits[yes] - logits[no]), rel=1e-4, abs=1e-4)
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    (tmp_path / "out" / ".part-00001.parquet.partial").write_bytes(b"torn")
    parts[1].unlink()
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(job(folder, tmp_path / "out")))
    capsys.readouterr()
    assert main(["text", "score", "--config", str(config), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["scored"], again["prompts"]) == (2, 2)
    assert pq.read_table(tmp_path / "out").equals(found)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"column": "age"}, "have a column 'age'; choose another"),
        ({"template": {"name": "t", "version": 1, "text": "{plot}"}}, "'plot' is no column"),
        ({"template": {"name": "t", "version": 1, "text": "{title}", "system": "x"}}, "augment"),
        ({"texts": {"city": {"source": "x", "key": "id"}}}, "the samples have no such column"),
        ({"scorer": {"model": "", "yes": "Yes", "no": "Yet"}}, "do not differ in their first"),
        ({"scorer": {"model": "", "max_tokens": 9}}, "the budget is 9"),
    ],
)
def test_what_cannot_be(folder: Path, tmp_path: Path, options: dict[str, Any], message: str):
    if "scorer" in options:
        options["scorer"]["model"] = str(folder / "tiny")
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "out", **options)
