# SPDX-License-Identifier: Apache-2.0
"""UCI Census-Income, its test half: income over 50,000 dollars; never married. MMoE's pair.

`marital_stat` is the second label; `det_hh_fam_stat`, `det_hh_summ` and `tax_filer_stat` give it
away (the first alone with an AUC of 0.978). They stay out, as do the raw income, and the survey's
weights, which are no feature of a person. Published figures that use them compare with nothing
here.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from deltarec.data.prepare.dataset import Dataset, require, write_split

ORIGIN = "https://archive.ics.uci.edu/dataset/117/census+income+kdd (census-income.test)"
RAW_COLUMNS = [
    *["age", "class_worker", "det_ind_code", "det_occ_code", "education", "wage_per_hour"],
    *["hs_college", "marital_stat", "major_ind_code", "major_occ_code", "race", "hisp_origin"],
    *["sex", "union_member", "unemp_reason", "full_or_part_emp", "capital_gains"],
    *["capital_losses", "stock_dividends", "tax_filer_stat", "region_prev_res"],
    *["state_prev_res", "det_hh_fam_stat", "det_hh_summ", "instance_weight", "mig_chg_msa"],
    *["mig_chg_reg", "mig_move_reg", "mig_same", "mig_prev_sunbelt", "num_emp", "fam_under_18"],
    *["country_father", "country_mother", "country_self", "citizenship", "own_or_self"],
    *["vet_question", "vet_benefits", "weeks_worked", "year", "income_50k"],
]
LEAKS = ["marital_stat", "det_hh_fam_stat", "det_hh_summ", "tax_filer_stat", "income_50k"]
NUMBERS = ["wage_per_hour", "capital_gains", "capital_losses", "stock_dividends"]
"""Kept as they are; every other column becomes ids, in the order of its values."""
IDS = [c for c in RAW_COLUMNS if c not in (*LEAKS, *NUMBERS, "instance_weight")]


class CensusIncome(Dataset):
    """UCI Census-Income; a random 80/10/10 split."""

    dataset: Literal["census-income"] = "census-income"
    seed: int = Field(default=2022, ge=0)
    """Seed of the split."""

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        people = _read(source)
        columns: dict[str, Any] = {name: people[name].to_numpy(np.float32) for name in NUMBERS}
        sizes = {}
        for name in IDS:
            ids, values = pd.factorize(people[name].astype("object"), sort=True)
            columns[name], sizes[name] = ids.astype(np.int32), len(values)
        columns["income"] = people["label_income"].to_numpy(np.int8)
        columns["never_married"] = people["label_never_married"].to_numpy(np.int8)
        table = pa.table(columns)
        order = np.random.default_rng(self.seed).permutation(len(table))
        ends = [int(0.8 * len(table)), int(0.9 * len(table))]
        for split, rows in zip(("train", "valid", "test"), np.split(order, ends), strict=True):
            write_split(target, split, len(rows), [table.take(rows)])
        return {
            "table_sizes": sizes,
            "notes": [f"left out because they tell the labels: {', '.join(LEAKS)}"],
        }


def _read(source: Path) -> pd.DataFrame:
    """All people, with the labels."""
    if (source / "census_test.parquet").is_file():
        return pd.read_parquet(source / "census_test.parquet")
    file = require(source / "census-income.test", ORIGIN)
    people = pd.read_csv(file, names=RAW_COLUMNS, skipinitialspace=True)
    people["label_income"] = people["income_50k"] == "50000+."
    people["label_never_married"] = people["marital_stat"] == "Never married"
    return people
