# SPDX-License-Identifier: Apache-2.0
"""The example of a controller, on a few steps; each answer is what the tool's schema says."""

import importlib.util
import json
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from deltarec.cli import main
from deltarec.verbs import VERBS
from tests.conftest import ROOT


def example() -> Any:
    spec = importlib.util.spec_from_file_location("controller", ROOT / "docs/controller.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_finds_the_better_rate_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    called: list[str] = []

    def call(name: str, **arguments: Any) -> dict[str, Any]:
        if name in ("train", "evaluate", "predict"):
            arguments["threads"] = 1
        code = main(["call", json.dumps({"name": name, "arguments": arguments})])
        out = capsys.readouterr().out
        assert code == 0 and out.count("\n") == 1
        kind = resolve_name(VERBS[name].answer)
        TypeAdapter(kind).validate_json(out, strict=True)
        answer = json.loads(out)
        assert answer.keys() <= kind.__annotations__.keys()
        called.append(name)
        return answer

    found = example().control(call, ROOT / "data/adult", tmp_path / "out", steps=40)
    rates = sorted(found["tried"])
    assert len(rates) >= 4 and rates[0] == 0.005 / 4, "it went on from the first three"
    assert found["chosen"] > 0.005, "40 steps are few for a small rate"
    assert found["tried"][found["chosen"]] == max(found["tried"].values()) > 0.7
    assert abs(found["test"] - found["tried"][found["chosen"]]) < 0.05
    assert called.count("train") == len(rates)
    assert called[:2] == ["prepare", "plan"] and called[-2:] == ["evaluate", "predict"]
    scores = pq.read_table(found["predictions"])
    assert len(scores) == 16_281 and scores.column_names[0] == "income"
