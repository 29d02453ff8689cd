# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from deltarec.cli import main
from deltarec.text.encoder import load_tokenizer
from tests.text.tiny import save_tiny_encoder


def test_tokens_plus_one_then_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_tiny_encoder(tmp_path / "tiny")
    table = pa.table({"id": [7, 3, 5], "title": ["abc", None, "abcdefgh"]})
    pq.write_table(table, tmp_path / "items.parquet")
    job = {
        "rows": {"source": str(tmp_path / "items.parquet"), "key": "id"},
        "template": {"name": "t", "version": 1, "text": "{title}"},
        "tokenizer": str(tmp_path / "tiny"),
        "max_tokens": 4,
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert main(["text", "tokenise", "--config", str(tmp_path / "job.yaml"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["rows"], answer["empty"], answer["truncated"], answer["longest"]) == (3, 1, 1, 8)
    found = pq.read_table(tmp_path / "out/tokens")
    assert found["id"].to_pylist() == [7, 5]
    letters = load_tokenizer(str(tmp_path / "tiny"))
    wanted = [letters.convert_tokens_to_ids(letter) + 1 for letter in "abcd"]
    assert found["tokens"].to_pylist() == [[*wanted[:3], 0], wanted]
    job["template"]["text"], job["template"]["event"] = "{history}", "{a}"  # pyright: ignore
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert main(["text", "tokenise", "--config", str(tmp_path / "job.yaml")]) == 2
    assert "is for text augment" in capsys.readouterr().err
