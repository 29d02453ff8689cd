# SPDX-License-Identifier: Apache-2.0
"""`deltarec text`: features by language models, as ordinary Parquet tables."""

import argparse
from pathlib import Path

from deltarec.verbs.verb import Answer, Ended, Parser, Verb, add_configuration


def _augment_arguments(parser: Parser) -> None:
    add_configuration(parser)
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="write the prompts as JSONL and ask nobody"
    )


def _augment(options: argparse.Namespace) -> Answer:
    from deltarec.config import load
    from deltarec.supervision import TRY_AGAIN, sigterm_exits
    from deltarec.text.augment import AugmentJob, augment, write_prompts

    job = load(AugmentJob, options.config, options.set)
    if options.prompts:
        answer = write_prompts(job, options.prompts)
        text = f"{answer['prompts']:,} prompts: {options.prompts}"
    else:
        try:
            with sigterm_exits():
                answer = augment(job)
        except SystemExit:
            message = "told to end; what was answered is kept, and the same command goes on"
            raise Ended(message, TRY_AGAIN) from None
        text = (
            f"{answer['answered']:,} of {answer['rows']:,} rows answered: "
            f"{answer['imported']:,} imported, {answer['cached']:,} known, {answer['asked']:,} by "
            f"{answer['requests']:,} requests; {answer['failed']:,} failed\n"
            f"table: {answer['output']}\nfailures: {answer['report']}"
        )
    return Answer(answer, text, exit_code=1 if answer["failed"] else 0)


def _encode(options: argparse.Namespace) -> Answer:
    from deltarec.config import load
    from deltarec.text.encode import EncodeJob, encode

    answer = encode(load(EncodeJob, options.config, options.set))
    text = (
        f"{answer['rows'] - answer['empty']:,} of {answer['rows']:,} rows have vectors of "
        f"{answer['dim']} columns, {answer['encoded']:,} texts encoded now; {answer['empty']:,} "
        f"have no text, {answer['truncated']:,} were too long\nvectors: {answer['output']}"
    )
    return Answer(answer, text)


def _tokenise(options: argparse.Namespace) -> Answer:
    from deltarec.config import load
    from deltarec.text.tokenise import TokeniseJob, tokenise

    answer = tokenise(load(TokeniseJob, options.config, options.set))
    text = (
        f"{answer['rows'] - answer['empty']:,} of {answer['rows']:,} rows have tokens, at most "
        f"{answer['dim']}; {answer['truncated']:,} were too long, the longest of "
        f"{answer['longest']}\ntokens: {answer['output']}"
    )
    return Answer(answer, text)


def _score(options: argparse.Namespace) -> Answer:
    from deltarec.config import load
    from deltarec.text.score import ScoreJob, score

    answer = score(load(ScoreJob, options.config, options.set))
    text = (
        f"{answer['rows']:,} rows, {answer['scored']:,} of them scored now, by "
        f"{answer['prompts']:,} prompts\ntable: {answer['output']}"
    )
    return Answer(answer, text)


AUGMENT = Verb(
    "Asks a chat model about items or users, or imports.",
    _augment_arguments,
    _augment,
    "deltarec.text.augment:AugmentAnswer",
    "deltarec.text.augment:AugmentJob",
)
ENCODE = Verb(
    "Turns text into vectors by a frozen encoder.",
    add_configuration,
    _encode,
    "deltarec.text.encode:Encoded",
    "deltarec.text.encode:EncodeJob",
)
TOKENISE = Verb(
    "Turns text into tokens, for a model inside a job.",
    add_configuration,
    _tokenise,
    "deltarec.text.tokenise:Tokenised",
    "deltarec.text.tokenise:TokeniseJob",
)
SCORE = Verb(
    "Asks a causal model of samples: yes or no.",
    add_configuration,
    _score,
    "deltarec.text.score:Scored",
    "deltarec.text.score:ScoreJob",
)
