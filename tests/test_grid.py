# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from deltarec.grid import Variant, baselines, variants

BASE = Path("job.yaml")
HEADS, SCENARIO = "model.heads.name=[shared_bottom, mmoe]", "model.scenario.name=[none, towers]"


def grid(*axes: str, named: tuple[str, ...] = (), common: tuple[str, ...] = ()) -> list[Variant]:
    return variants(BASE, common, axes, named)


def labels(*axes: str, named: tuple[str, ...] = ()) -> list[str]:
    return [variant.label for variant in grid(*axes, named=named)]


def test_the_product_and_what_stands_beside_it():
    found = grid(HEADS, SCENARIO, named=("int8: embedding.precision=int8",), common=("a=1",))
    assert [variant.label for variant in found] == [
        "heads=shared_bottom,scenario=none",
        "heads=shared_bottom,scenario=towers",
        "heads=mmoe,scenario=none",
        "heads=mmoe,scenario=towers",
        "int8",
    ]
    assert found[2].overrides == ("a=1", "model.heads.name=mmoe", "model.scenario.name=none")
    assert found[2].config == BASE and found[2].point == {"heads": "mmoe", "scenario": "none"}
    assert found[4].overrides == ("a=1", "embedding.precision=int8") and found[4].point == {}


def test_a_named_variant_may_be_a_file_overrides_both_or_the_base():
    texts = ("a:", "b: other.yaml", "c: other.yaml x=1 'y=[1, 2]'", "d: x={name: a, b: 1}")
    with pytest.raises(ValueError, match="expected one file at most, got a, b: 1}"):
        grid(named=texts)
    found = grid(named=(*texts[:3], "d: 'x={name: a, b: 1}'"))
    assert [(v.label, str(v.config), v.overrides) for v in found] == [
        ("a", "job.yaml", ()),
        ("b", "other.yaml", ()),
        ("c", "other.yaml", ("x=1", "y=[1, 2]")),
        ("d", "job.yaml", ("x={name: a, b: 1}",)),
    ]


def test_labels_are_as_short_as_can_be():
    assert labels("train.epochs=[1]", "a.lr=[1e-3]", "b.lr=[0.1]") == [
        "epochs=1,a.lr=0.001,b.lr=0.1"
    ]
    assert labels("model.trunk.hidden=[[64, 32], []]") == ["hidden=[64, 32]", "hidden=[]"]
    assert labels("model.heads=[{name: ple, levels: 2}, {name: mmoe}]") == [
        "heads=ple",
        "heads=mmoe",
    ]
    same = labels("model.heads=[{name: ple, levels: 1}, {name: ple, levels: 2}]")
    assert same == ["heads={name: ple, levels: 1}", "heads={name: ple, levels: 2}"]


def test_folders_are_fit_for_a_file_system():
    assert grid(named=("größer (2), 4/8 bits:",))[0].folder == "größer_2_,_4_8_bits"


@pytest.mark.parametrize(
    ("axes", "named", "message"),
    [
        ((), (), "nothing to compare: give --grid path.to.key=[…] or --variant 'LABEL: …'"),
        (("a.b",), (), "--grid a.b: expected path.to.key=value"),
        (("a.b=1",), (), "--grid a.b=1: expected path.to.key=[value, value, …]"),
        (("a.b=[]",), (), "--grid a.b=[]: expected path.to.key=[value, value, …]"),
        (("a.b=[1]", "a.b=[2]"), (), "--grid a.b=[2]: there is an axis a.b already"),
        (("train.seed=[1]",), (), "--grid train.seed=[1]: seeds are not variants; give --seeds N"),
        ((), ("x: train.seed=1",), "--variant x: train.seed=1: seeds are not variants"),
        ((), ("a=1",), "--variant a=1: expected 'LABEL: path.to.key=value …'"),
        ((), ("x: 'a=1",), "--variant x: 'a=1: no closing quotation"),
        (("a=[1, 1]",), (), "two variants would share the folder 'a=1': 'a=1' and 'a=1'; give"),
        ((), ("a b:", "A_B:"), "two variants would share the folder 'A_B': 'a b' and 'A_B'; give"),
        ((), ("..:",), "'..' cannot be a folder's name; give the variant another label"),
        ((f"a=[{'x' * 250}]",), (), "cannot be a folder's name; give the variant another label"),
    ],
)
def test_what_is_no_variant(axes: tuple[str, ...], named: tuple[str, ...], message: str):
    with pytest.raises(ValueError) as caught:
        grid(*axes, named=named)
    assert message in str(caught.value)


def test_the_baseline_is_the_first_one_or_a_label():
    found = grid(HEADS, named=("x:",))
    assert set(baselines(found, None).values()) == {"heads=shared_bottom"}
    assert set(baselines(found, "x").values()) == {"x"}


@pytest.mark.parametrize("key", ["model.heads.name", "heads"])
def test_a_baseline_by_axis_keeps_the_other_axes(key: str):
    found = grid(HEADS, SCENARIO, named=("x:",))
    assert baselines(found, f"{key}=mmoe") == {
        "heads=shared_bottom,scenario=none": "heads=mmoe,scenario=none",
        "heads=shared_bottom,scenario=towers": "heads=mmoe,scenario=towers",
        "heads=mmoe,scenario=none": "heads=mmoe,scenario=none",
        "heads=mmoe,scenario=towers": "heads=mmoe,scenario=towers",
        "x": None,
    }
    whole = baselines(found, f"scenario=towers {key}=mmoe")
    assert set(whole.values()) == {"heads=mmoe,scenario=towers"}


@pytest.mark.parametrize("text", ["y", "heads=ple", "trunk=mlp", "heads=mmoe,trunk=mlp"])
def test_a_baseline_that_is_none(text: str):
    with pytest.raises(ValueError, match=f"--baseline {text}: .* is no variant; there are heads="):
        baselines(grid(HEADS), text)
