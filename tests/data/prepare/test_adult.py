# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltarec.data.prepare import Adult
from deltarec.data.prepare.dataset import prepare

COLUMNS = {
    *["age", "workclass", "education", "education_num", "occupation", "race", "sex"],
    *["capital_gain", "capital_loss", "hours_per_week", "native_country", "fnlwgt"],
    *["sector", "income", "never_married"],
}
PERSON = (
    "{age}, {workclass}, 77516, Bachelors, 13, {marital}, Adm-clerical, Not-in-family, White, "
    "Male, 2174, 0, 40, United-States, {income}"
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The original's two files; ages tell the people apart."""
    workclasses = ["Private", "State-gov", "Self-emp-inc", "Never-worked", "?"]
    lines = [
        PERSON.format(
            age=age,
            workclass=workclasses[age % 5],
            marital="Never-married" if age % 2 else "Divorced",
            income=">50K" if age % 3 == 0 else "<=50K",
        )
        for age in range(30)
    ]
    (tmp_path / "adult.data").write_text("\n".join(lines[:20]) + "\n\n")
    test = "|1x3 Cross validator\n" + ".\n".join(lines[20:]) + ".\n\n"
    (tmp_path / "adult.test").write_text(test)
    return tmp_path


def test_original_files(raw: Path) -> None:
    prepare(Adult(), raw, raw / "out")
    train, valid, test = (pq.read_table(raw / "out" / s) for s in ("train", "valid", "test"))
    assert test["age"].to_pylist() == list(range(20, 30))
    assert len(valid) == 2
    assert sorted([*train["age"].to_pylist(), *valid["age"].to_pylist()]) == list(range(20))
    for row in pa.concat_tables([train, valid, test]).to_pylist():
        age = row["age"]
        sectors = ["private", "government", "self_employed", "other", "other"]
        assert row.keys() == COLUMNS
        assert row["sector"] == sectors[age % 5]
        assert (row["never_married"], row["income"]) == (age % 2, int(age % 3 == 0))


def test_another_seed_is_another_split_of_train(raw: Path) -> None:
    ages = []
    for seed in (1, 1, 2):
        prepare(Adult(seed=seed), raw, raw / f"out{len(ages)}")
        ages.append(pq.read_table(raw / f"out{len(ages)}" / "train")["age"].to_pylist())
    assert ages[0] == ages[1] != ages[2]


def test_real_data(data_root: Path, tmp_path: Path) -> None:
    if not (data_root / "adult" / "adult.parquet").is_file():
        pytest.skip(f"Adult is not at {data_root / 'adult'}; give its parent by --data-root")
    prepare(Adult(), data_root / "adult", tmp_path / "out")
    train, valid, test = (pq.read_table(tmp_path / "out" / s) for s in ("train", "valid", "test"))
    assert (len(train), len(valid), len(test)) == (29_304, 3_257, 16_281)
    assert set(train.column_names) == COLUMNS
    people = pa.concat_tables([train, valid]).to_pandas()
    assert people["income"].mean() == pytest.approx(0.24081, abs=1e-5)
    assert {type_ for type_ in map(str, train.schema.types)} == {"int64", "string", "int8"}
    assert people["sector"].value_counts().to_dict() == {
        "private": 22_696,
        "government": 4_351,
        "self_employed": 3_657,
        "other": 1_857,
    }
