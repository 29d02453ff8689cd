# SPDX-License-Identifier: Apache-2.0
"""`deltarec prepare`."""

import argparse
import json
from pathlib import Path

from deltarec.verbs.verb import Answer, Parser, Verb, add_overrides


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="say, movielens-1m, or own-events for a log of your own; any other word lists all",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder of the raw data; - for synth")
    parser.add_argument(
        "target", metavar="TARGET", help="folder to write; a new one, or this dataset's own"
    )
    add_overrides(parser)


def _run(options: argparse.Namespace) -> Answer:
    from omegaconf import OmegaConf

    from deltarec.config import override, validate
    from deltarec.data.prepare import DATASETS
    from deltarec.data.prepare.dataset import prepare

    if options.dataset not in DATASETS:
        raise ValueError(f"dataset '{options.dataset}' is not known: one of {', '.join(DATASETS)}")
    values = OmegaConf.to_container(override({"dataset": options.dataset}, options.set))
    dataset = validate(DATASETS[options.dataset], values, source="--set")
    target = Path(options.target)
    prepare(dataset, Path(options.source), target)
    summary = json.loads((target / "dataset.json").read_text())
    known = {key: summary[key] for key in ("rows", "table_sizes", "notes")}
    return Answer({"target": str(target), **known}, f"prepared {options.dataset} in {target}")


PREPARE = Verb(
    "Turns raw public data into Parquet.",
    _arguments,
    _run,
    "deltarec.data.prepare.dataset:Prepared",
)
