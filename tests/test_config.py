# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from deltarec.config import (
    Config,
    OneOf,
    dump,
    in_one_line,
    load,
    override,
    parse_override,
    validate,
)
from deltarec.embeddings.policies import HashedRows
from deltarec.job import Job
from deltarec.optimizers import SGD, Adam
from deltarec.text.encode import EncodeJob
from deltarec.text.tokenise import TokeniseJob
from tests.conftest import ROOT
from tests.small_job import AROUND, CONFIG, small_job


class Circle(Config):
    name: Literal["circle"]
    radius: float = Field(default=1.0, gt=0)


class Polygon(Config):
    name: Literal["polygon"]
    corners: list[int] = []  # noqa: RUF012


class Drawing(Config):
    """A type with every kind of field."""

    title: str
    width: int = 10
    shapes: list[Annotated[Config, OneOf({"circle": Circle, "polygon": Polygon})]] = []  # noqa: RUF012
    colours: dict[str, str] = {}  # noqa: RUF012
    frame: Annotated[Config, OneOf({"circle": Circle, "polygon": Polygon})] | None = None


def drawing(tmp_path: Path, text: str, *overrides: str) -> Drawing:
    path = tmp_path / "drawing.yaml"
    path.write_text(text)
    return load(Drawing, path, overrides)


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message, without the file's name."""
    with pytest.raises(ValueError) as caught:
        drawing(tmp_path, text, *overrides)
    return str(caught.value).removeprefix(f"{tmp_path / 'drawing.yaml'}: ")


def test_a_base_is_merged_key_by_key(tmp_path: Path):
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases/first.yaml").write_text(
        "title: first\nwidth: 1\ncolours: {a: red, b: blue}\nshapes: [{name: circle}]"
    )
    (tmp_path / "bases/second.yaml").write_text("base: first.yaml\nwidth: 2\ncolours: {b: green}")
    found = drawing(tmp_path, "base: bases/second.yaml\ntitle: third\nshapes: []")
    assert (found.title, found.width, found.shapes) == ("third", 2, [])
    assert found.colours == {"a": "red", "b": "green"}


def test_a_base_may_be_replaced_by_another_kind_of_value(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("title: a\nframe: {name: circle, radius: 2}")
    assert drawing(tmp_path, "base: base.yaml\nframe: null").frame is None


def test_null_removes_a_section_of_the_base():
    job = load(Job, ROOT / "configs/ml1m_hamur.yaml")
    assert list(job.tasks) == ["like"]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("drawing.yaml", r"its 'base' leads back to itself"),
        ("other.yaml", r"other.yaml: there is no such configuration file"),
        ("[a, b]", r"there is no such configuration file"),
    ],
)
def test_a_base_that_is_none(tmp_path: Path, base: str, message: str):
    assert re.search(message, refused(tmp_path, f"base: {base}\ntitle: a"))


def test_overrides(tmp_path: Path):
    text = "title: a\nshapes: [{name: circle}, {name: polygon, corners: [1, 2, 3]}]"
    found = drawing(
        tmp_path,
        text,
        "width=3",
        "shapes.0.radius=1e-3",
        "shapes[1].corners.2=7",
        "colours.sky=blue",
        "colours={sea: green}",
        "frame.name=circle",
        "frame.radius=2",
        "title=x=y",
    )
    assert found.width == 3 and found.title == "x=y"
    assert found.shapes == [
        Circle(name="circle", radius=0.001),
        Polygon(name="polygon", corners=[1, 2, 7]),
    ]
    assert found.colours == {"sky": "blue", "sea": "green"}
    assert found.frame == Circle(name="circle", radius=2.0)
    assert drawing(tmp_path, text, "shapes=[{name: circle}]").shapes == [Circle(name="circle")]
    assert drawing(tmp_path, text, "width=1", "width=2").width == 2
    framed = f"{text}\nframe: {{name: circle}}\ncolours: {{sea: green}}"
    assert drawing(tmp_path, framed, "frame=null", "colours=null") == drawing(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("width", "--set width: expected path.to.key=value"),
        ("=3", "--set =3: expected path.to.key=value"),
        ("width=[1", "--set width=[1: not a YAML value: "),
        ("shapes.3.radius=1", "--set shapes.3.radius=1: "),
        ("shapes.first.radius=1", "--set shapes.first.radius=1: "),
        ("title.x=3", "title: got {'x': 3}: input should be a valid string"),
        ("widht=3", "unknown key 'widht': did you mean 'width'?"),
        ("width=wide", "width: got 'wide': input should be a valid integer"),
        ("title=${nowhere}", "title: Interpolation key 'nowhere' not found"),
    ],
)
def test_a_wrong_override(tmp_path: Path, override: str, message: str):
    found = refused(tmp_path, "title: a\nshapes: [{name: circle}]", override)
    assert found.startswith(message) and "\n" not in found


@pytest.mark.parametrize(
    ("overrides", "frame"),
    [
        (["frame.name=polygon"], Polygon(name="polygon")),
        (["frame={name: polygon}"], Polygon(name="polygon")),
        (["frame.name=circle"], Circle(name="circle", radius=2.0)),
        (["frame.corners=[1]", "frame.name=polygon"], Polygon(name="polygon", corners=[1])),
        (["frame.name=polygon", "frame.corners=[1]"], Polygon(name="polygon", corners=[1])),
        (["frame.name=polygon", "frame.name=circle"], Circle(name="circle")),
        (["frame={radius: 3}"], Circle(name="circle", radius=3.0)),
    ],
)
def test_another_member_begins_with_its_own_options(tmp_path, overrides: list[str], frame: Config):
    text = "title: a\nframe: {name: circle, radius: 2}"
    assert drawing(tmp_path, text, *overrides).frame == frame


def test_another_member_than_the_bases(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("title: a\nframe: {name: circle, radius: 2}")
    found = drawing(tmp_path, "base: base.yaml\nframe: {name: polygon}")
    assert found.frame == Polygon(name="polygon")


def test_another_policy_begins_with_its_own_options():
    tables = [f"embedding.tables.{name}.assignment.policy=hash" for name in ("user", "item")]
    job = load(Job, ROOT / "configs/ml_latest_autoassign.yaml", tables)
    assert job.embedding.tables["user"].assignment == HashedRows(policy="hash")


def test_a_choice_inside_a_list(tmp_path: Path):
    text = "title: a\nshapes: [{name: circle}, {name: circle, radius: 2}]"
    found = drawing(tmp_path, text, "shapes.1.name=polygon")
    assert found.shapes == [Circle(name="circle"), Polygon(name="polygon")]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
                    | st.text(st.characters(codec="utf-8", categories=("L", "N", "P"))),
                    lambda inner: st.lists(inner, max_size=3)))  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_a_value_in_one_line_reads_back(value: object):
    text = in_one_line(value)
    assert "\n" not in text
    assert parse_override(f"a.b={text}") == ("a.b", value)


def test_an_override_leaves_its_tree_alone():
    tree = {"a": {"b": 1}}
    assert override(tree, ["a.b=2"]) == {"a": {"b": 2}}
    assert tree == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "title: required, but missing"),
        ("title: 3", "title: got 3: input should be a valid string"),
        ("title: a\nwidth: 1.5", "width: got 1.5: input should be a valid integer"),
        ("title: a\nwidth: '1'", "width: got '1': input should be a valid integer"),
        ("title: a\nwidth: true", "width: got True: input should be a valid integer"),
        ("title: a\ncolors: {}", "unknown key 'colors': did you mean 'colours'?"),
        (
            "title: a\nzzz: 1",
            "unknown key 'zzz': expected one of title, width, shapes, colours, frame",
        ),
        ("title: a\n1: 2", "unknown key '1': expected one of"),
        ("title: a\nframe: circle", "frame: got 'circle': expected a mapping"),
        ("title: a\nframe: {}", "frame: the key 'name' is missing: it chooses which one"),
        (
            "title: a\nframe: {name: square}",
            "frame: 'square' is not known: expected one of 'circle', 'polygon'",
        ),
        (
            "title: a\nframe: {name: circle, corners: []}",
            "frame: unknown key 'corners': expected one of name, radius",
        ),
        (
            "title: a\nshapes: [{name: circle}, {name: circle, radius: -1}]",
            "shapes.1.radius: got -1: input should be greater than 0",
        ),
        (
            "title: a\nframe: {name: circle, radius: .inf}",
            "frame.radius: got inf: input should be a finite number",
        ),
        ("title: a\nshapes: {name: circle}", "shapes: got {'name': 'circle'}: input should be a"),
        ("- title", "expected a mapping of sections at the top level"),
        ("3", "expected a mapping of sections at the top level"),
        ("title: a\ntitle: b", "not valid YAML: .* found duplicate key title"),
        ("title: a\nframe: {name: circle, name: polygon}", "not valid YAML: .* duplicate key name"),
        ("title: [", "not valid YAML: "),
        ("title:\n\t- a", "not valid YAML: "),
        ("null: a", "not valid YAML: "),
        ("title: ${there}", "title: Interpolation key 'there' not found"),
    ],
)
def test_a_wrong_file_gives_one_line(tmp_path: Path, text: str, message: str):
    found = refused(tmp_path, text)
    assert re.match(message if ".*" in message else re.escape(message), found), found
    assert "\n" not in found


def test_every_wrong_key_is_named(tmp_path: Path):
    found = refused(tmp_path, "width: a\ncolours: 3\nshapes: [{name: circle, x: 1, y: 2}]")
    path = tmp_path / "drawing.yaml"
    assert sorted(line.removeprefix(f"{path}: ") for line in found.splitlines()) == [
        "colours: got 3: expected a mapping",
        "shapes.0: unknown key 'x': expected one of name, radius; "
        "unknown key 'y': expected one of name, radius",
        "title: required, but missing",
        "width: got 'a': input should be a valid integer",
    ]


def test_a_file_that_is_none(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nope.yaml: there is no such configuration file"):
        load(Drawing, tmp_path / "nope.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"binary.yaml: not valid YAML: 'utf-8' codec"):
        load(Drawing, tmp_path / "binary.yaml")


def test_numbers_and_words_as_yaml_has_them(tmp_path: Path):
    text = "title: 'on'\nframe: {name: circle, radius: 1e-3}\ncolours: {a: 2026-11-01, b: 'null'}"
    found = drawing(tmp_path, text)
    assert found.frame == Circle(name="circle", radius=0.001)
    assert found.colours == {"a": "2026-11-01", "b": "null"}


@settings(max_examples=50, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(
            ["1e3", "1e-3", "1.5E7", "1_0e3", ".5e3", "0x1f", "010", "1:30", "1_000", "12", "-.inf",
             "nan", "null", "~", "yes", "off", "", " ", "a: b", "#", "- x", "2026-11-01",
             "${width}",
             "\\${width}", "a\\\\${b}", "???", "ü\n\t'\"", "{", "=", "<<"]
        )
        | st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Z"))),
        max_size=4,
    ),
    radius=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)  # fmt: skip
def test_what_is_dumped_loads_equal(tmp_path_factory, words: list[str], radius: float):
    found = Drawing(
        title="".join(words),
        frame=Circle(name="circle", radius=radius),
        colours={f"c{i}": word for i, word in enumerate(words)},
        shapes=[Polygon(name="polygon", corners=list(range(len(words))))],
    )
    path = tmp_path_factory.mktemp("dumped") / "drawing.yaml"
    path.write_text(dump(found), encoding="utf-8")
    assert load(Drawing, path) == found


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_loads(path: Path, tmp_path: Path):
    job = load(Job, path)
    (tmp_path / "dumped.yaml").write_text(dump(job))
    assert load(Job, tmp_path / "dumped.yaml") == job
    assert len(path.read_text().splitlines()) < 100


@pytest.mark.parametrize(
    ("name", "kind"), [("movies.yaml", EncodeJob), ("movie_tokens.yaml", TokeniseJob)]
)
def test_every_job_of_text_loads(name: str, kind: type[Config]):
    assert load(kind, ROOT / "configs/text" / name)
    assert len(list(ROOT.glob("configs/text/*.yaml"))) == 2, "a new one has its line here"


def test_the_small_job_loads_equal(tmp_path: Path):
    job = small_job(tmp_path, train__early_stopping={"task": "click*buy", "metric": "gauc"})
    (tmp_path / "dumped.yaml").write_text(dump(job))
    assert load(Job, tmp_path / "dumped.yaml") == job


ID = {"kind": "id"}
LIST = {"kind": "ids"}
WEIGHTED = {"kind": "ids", "weights": "w", "pooling": "sum"}
TABLE = {"rows": 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features__shop": ID},
            "features.shop: there is no table 'shop'; declare embedding.tables.shop "
            "or name another by 'table'",
        ),
        (
            {"features__shop": {**ID, "table": "mall"}},
            "features.shop: there is no table 'mall'; declare embedding.tables.mall "
            "or name another by 'table'",
        ),
        ({"features__user__default": 200}, "features.user.default: 200 is not below 200"),
        ({"features__history__default": -1}, "features.history.default: -1 is not below 100"),
        ({"embedding__tables__shop": TABLE}, "embedding.tables.shop: no feature uses this table"),
        (
            {"features__scores__pooling": "mean"},
            "features.scores.pooling: with weights, only sum is possible",
        ),
        (
            {"features__viewed": {**WEIGHTED, "table": "item"}},
            "features.viewed.weights: a sequence uses the single rows of table 'item', and such "
            "tables are not pooled with weights; give the feature a table of its own",
        ),
        (
            {"features__labels": {**LIST, "table": "tags", "pooling": "sum"}},
            "embedding.tables.tags: its features ['tags', 'labels'] are pooled in different ways; "
            "TorchRec pools a table in one way, so give them tables of their own",
        ),
        (
            {"train__optimizer__dense": {"name": "adam", "lr": 0.1, "betas": [1.0, 0.9]}},
            "train.optimizer.dense.betas.0: got 1.0: input should be less than 1",
        ),
        (
            {"features__labels": {**ID, "table": "scores"}},
            "embedding.tables.scores: its features ['scores', 'labels'] are pooled in different "
            "ways; TorchRec pools a table in one way, so give them tables of their own",
        ),
        ({"features__history__target": "shop"}, "features.history.target: no id feature 'shop'"),
        ({"features__history__target": "tags"}, "features.history.target: no id feature 'tags'"),
        ({"features__history__target": "price"}, "features.history.target: no id feature 'price'"),
        (
            {"features__history__target": "user"},
            "features.history.target: 'user' must use the same table, 'item'",
        ),
        (
            {"features__around": {**AROUND, "aligned_with": "tags"}},
            "features.around.aligned_with: no sequence 'tags' to align with: expected history",
        ),
        (
            {"features__around": {**AROUND, "aligned_with": "around"}},
            "features.around.aligned_with: no sequence 'around' to align with: expected history",
        ),
        (
            {"features__around": {**AROUND, "table": "user"}},
            "features.around.aligned_with: 'history' must use the same table, 'user'; set "
            "features.around.table",
        ),
        (
            {"features__around": {**AROUND, "target": "item"}},
            "features.around.target: leave it out, an aligned sequence has the target of 'history'",
        ),
        (
            {"tasks__click__given": "buy"},
            "tasks.click.given: 'buy' is not a binary task declared before",
        ),
        (
            {"tasks__buy__given": "buy"},
            "tasks.buy.given: 'buy' is not a binary task declared before",
        ),
        (
            {"tasks__click__kind": "regression"},
            "tasks.buy.given: 'click' is not a binary task declared before",
        ),
        (
            {"scenario": None},
            "model.scenario.name: 'towers' needs scenarios; set scenario.column and "
            "scenario.values, or the name to none",
        ),
        (
            {"balance": {"name": "dwa"}, "train__epochs": 2},
            "balance.period: dwa begins after 2 periods, which are epochs if not given, and "
            "train.epochs is 2; give steps",
        ),
        (
            {"scenario__default": "tv"},
            "scenario.default: 'tv' is not among scenario.values",
        ),
        (
            {"scenario__values": ["web", "web"]},
            "scenario.values: one is there twice among ['web', 'web']",
        ),
        (
            {"train__early_stopping": {}, "data__valid": []},
            "train.early_stopping needs validation data: set data.valid",
        ),
        (
            {"train__early_stopping": {"task": "like"}},
            "train.early_stopping.task: no task 'like'",
        ),
        (
            {"train__early_stopping": {"task": ["click", "like"]}},
            "train.early_stopping.task: no task 'like'",
        ),
        (
            {"train__early_stopping": {"task": []}},
            "train.early_stopping.task: an empty list; leave it out for the first",
        ),
        (
            {"tasks__buy*keep": {"label": "buy"}},
            "tasks.buy*keep: '*' stands in the names of joint tasks",
        ),
        (
            {"train__early_stopping": {"metric": "rmse"}},
            "train.early_stopping.metric: 'rmse' is not a metric of the binary task 'click': "
            "expected one of auc, gauc, logloss, normalised_entropy, calibration",
        ),
        (
            {"train__early_stopping": {"metric": "gauc"}, "data__user": None},
            "train.early_stopping.metric: 'gauc' is by user: set data.user",
        ),
        (
            {"features__type": ID, "embedding__tables__type": TABLE},
            "embedding.tables.type: PyTorch admits no module of the name 'type'; choose another, "
            "and let 'table' or 'column' of the feature say which it means",
        ),
        (
            {"features__items": {"kind": "sequence", "table": "item"}},
            "features.items: PyTorch admits no module of the name 'items'; choose another, "
            "and let 'table' or 'column' of the feature say which it means",
        ),
        ({"data__train": []}, "data.train: got []: list should have at least 1 item"),
        ({"features": {}}, "features: got {}: dictionary should have at least 1 item"),
        ({"tasks": {}}, "tasks: got {}: dictionary should have at least 1 item"),
        ({"train__seed": -1}, "train.seed: got -1: input should be greater than or equal to 0"),
        ({"train__seed": 2**32}, "train.seed: got 4294967296: input should be less than 42949672"),
        (
            {"features__city__transforms": [{"name": "vocabulary"}]},
            "features.city.transforms.0: a vocabulary needs either 'values' or 'file'",
        ),
        (
            {"features__city__transforms": [{"name": "bucketise", "boundaries": [2.0, 1.0]}]},
            "features.city.transforms.0: boundaries must ascend, got [2.0, 1.0]",
        ),
    ],
)
def test_an_impossible_combination_says_so(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ValueError) as caught:
        small_job(tmp_path, **changes)
    assert str(caught.value).startswith(f"small_job: {message}")
    assert "\n" not in str(caught.value)


def test_names_in_every_place_may_be_equal(tmp_path: Path):
    """A feature, a task, a table and a scenario are different things, whatever they are called."""
    job = small_job(
        tmp_path,
        features__click={"kind": "id", "column": "city", "table": "city"},
        features__scenario={"kind": "id", "column": "country", "table": "country"},
        tasks__price={"label": "buy"},
    )
    schema = job.data_schema
    assert (schema.column("click"), schema.label("click")) == ("city", "click")
    assert (schema.column("price"), schema.label("price")) == ("price", "buy")


def test_plain_data_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match=r"^here: got 3: expected a mapping$"):
        validate(Drawing, 3, "here")


def test_the_small_configuration_is_plain_yaml(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    assert load(Job, path, [f"data.source={tmp_path}"]) == small_job(tmp_path)


def test_a_section_without_a_name_changes_the_default_member(tmp_path: Path):
    job = small_job(tmp_path, train__optimizer={"dense": {"weight_decay": 0.1}})
    assert job.train.optimizer.dense == Adam(name="adam", lr=1e-3, weight_decay=0.1)
    job = small_job(tmp_path, train__optimizer={"dense": {"name": "sgd", "lr": 0.5}})
    assert job.train.optimizer.dense == SGD(name="sgd", lr=0.5)
