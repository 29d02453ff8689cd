# SPDX-License-Identifier: Apache-2.0
"""UCI Adult: two tasks (income over 50,000 dollars; never married), four sectors as scenarios.

`marital_status` is the second label, `relationship` gives it away, and a shared trunk carries it
from task to task: both stay out, as does the raw income.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from deltarec.data.prepare.dataset import Dataset, require, write_split

ORIGIN = "https://archive.ics.uci.edu/dataset/2/adult (adult.data and adult.test)"
RAW_COLUMNS = [
    *["age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation"],
    *["relationship", "race", "sex", "capital_gain", "capital_loss", "hours_per_week"],
    *["native_country", "income"],
]
NUMBERS = ["age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week"]
STRINGS = ["workclass", "education", "occupation", "race", "sex", "native_country"]
SECTORS = {
    "Private": "private",
    "Federal-gov": "government",
    "Local-gov": "government",
    "State-gov": "government",
    "Self-emp-inc": "self_employed",
    "Self-emp-not-inc": "self_employed",
}


class Adult(Dataset):
    """UCI Adult; the test split is the original one, validation is a tenth of its train."""

    dataset: Literal["adult"] = "adult"
    seed: int = Field(default=2022, ge=0)
    """Seed of the split into train and validation."""

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        people = _read(source)
        table = people[NUMBERS].astype("int64").join(people[STRINGS].astype("str"))
        table["sector"] = table["workclass"].map(lambda name: SECTORS.get(name, "other"))
        table["income"] = people["label_income"].astype("int8")
        table["never_married"] = people["label_never_married"].astype("int8")
        train = np.flatnonzero(people["split"] == 0)
        train = train[np.random.default_rng(self.seed).permutation(len(train))]
        cut = int(0.9 * len(train))
        test = np.flatnonzero(people["split"] == 1)
        schema = _schema(table)
        for split, rows in [("train", train[:cut]), ("valid", train[cut:]), ("test", test)]:
            arrow = pa.Table.from_pandas(table.iloc[rows], schema=schema, preserve_index=False)
            write_split(target, split, len(rows), [arrow.replace_schema_metadata()])
        return {
            "table_sizes": {name: table[name].nunique() for name in [*STRINGS, "sector"]},
            "notes": ["marital_status, relationship and the raw income are left out: they leak"],
        }


def _read(source: Path) -> pd.DataFrame:
    """All people, with the labels and `split` (1: the original test split)."""
    if (source / "adult.parquet").is_file():
        return pd.read_parquet(source / "adult.parquet")
    files = [require(source / name, ORIGIN) for name in ("adult.data", "adult.test")]
    parts = [
        pd.read_csv(file, names=RAW_COLUMNS, comment="|", skipinitialspace=True).assign(split=split)
        for split, file in enumerate(files)
    ]
    people = pd.concat(parts, ignore_index=True)
    people["label_income"] = people["income"].str.startswith(">50K")
    people["label_never_married"] = people["marital_status"] == "Never-married"
    return people


def _schema(table: pd.DataFrame) -> pa.Schema:
    """Plain types: pandas would write its strings as large strings."""
    types = {"int64": pa.int64(), "int8": pa.int8()}
    return pa.schema([(name, types.get(str(table[name].dtype), pa.string())) for name in table])
