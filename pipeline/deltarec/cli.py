# SPDX-License-Identifier: Apache-2.0
"""The console command `deltarec`: parse, load, call.

Heavy imports stand inside the verbs, so that `--help` and usage errors answer at once.
"""

import argparse
import json
import os
import runpy
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from deltarec import __version__

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for a job that failed, 2 for bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    options.output = sys.stdout
    try:
        # Standard output is for the answer alone if a program is to read it.
        with redirect_stdout(sys.stderr) if options.json else nullcontext():
            return options.run(options, arguments)
    except ValueError as error:
        rank = os.environ.get("RANK")
        where = f"deltarec (rank {rank})" if rank not in (None, "0") else "deltarec"
        for line in str(error).splitlines():
            print(f"{where}: error: {line}", file=sys.stderr)
        return 2
    except ConnectionError as error:
        print(f"deltarec: rank {os.environ.get('RANK', 0)}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("deltarec: interrupted", file=sys.stderr)
        return 130


def _doctor(options: argparse.Namespace, arguments: list[str]) -> int:
    from deltarec.doctor import examine

    found = examine()
    if options.json:
        _answer(options, found, "")
    else:
        for name, value in found.items():
            if name not in ("problems", "mend"):
                print(f"{name:12} {value}")
        for problem in found["problems"]:
            print(f"problem: {problem}")
        print(f"to mend: {found['mend']}" if found["problems"] else "all is well")
    return 1 if found["problems"] else 0


def _prepare(options: argparse.Namespace, arguments: list[str]) -> int:
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
    _answer(options, {"target": str(target)}, f"prepared {options.dataset} in {target}")
    return 0


def _plan(options: argparse.Namespace, arguments: list[str]) -> int:
    from deltarec.distributed import silence_libraries
    from deltarec.embeddings.planning import GIB, Hardware
    from deltarec.plan import plan_job, render

    silence_libraries()

    memory = int(options.memory_gb * GIB)
    if options.cpu:
        hardware = Hardware.cpu(options.nodes, options.per_node, memory)
    else:
        bandwidths = (options.memory_gbps, options.intra_gbps, options.inter_gbps)
        hardware = Hardware("cuda", options.nodes, options.per_node, memory, *bandwidths)
    found = plan_job(_load(options), hardware)
    _answer(options, found, render(found, hardware))
    return 0


def _train(options: argparse.Namespace, arguments: list[str]) -> int:
    from deltarec.assembly import check

    job = _load(options)
    if options.watch and job.stream is None:
        raise ValueError("--watch: is for streams; add a section 'stream' to the configuration")
    check(job)
    if options.nproc is not None:
        job.data.reader.check(options.nproc)
        return _launch(options.nproc, arguments)
    from deltarec.distributed import is_main, process_group
    from deltarec.run_folder import RunFolder
    from deltarec.streaming import trainer_of
    from deltarec.summary import report
    from deltarec.supervision import TRY_AGAIN, Terminated

    with process_group(threads=options.threads) as device:
        run = RunFolder.create(options.run_dir, Path(options.config).stem)
        try:
            result = trainer_of(job, run, device, options.watch).fit()
        except Terminated as ended:
            if is_main():
                print(f"deltarec: {ended}; the same command resumes it", file=sys.stderr)
            return TRY_AGAIN
        if is_main():
            _answer(options, result, f"{report(result)}\nrun folder: {run.path}")
    return 0


def _sweep(options: argparse.Namespace, arguments: list[str]) -> int:
    from deltarec.distributed import launched, silence_libraries
    from deltarec.grid import baselines, variants
    from deltarec.sweep import Launcher, plan, run_sweep

    if launched():
        raise ValueError("deltarec sweep starts its runs itself: call it without a launcher")
    silence_libraries()
    folder = options.run_dir or Path("runs", f"sweep-{Path(options.config).stem}")
    found = variants(Path(options.config), options.set, options.grid, options.variant)
    compared = baselines(found, options.baseline)
    nproc = options.nproc or 1
    launcher = Launcher.here(options.jobs, nproc)
    planned = plan(found, options.seeds, folder, nproc, options.metric, options.skip_refused)
    comparison = run_sweep(planned, folder, compared, launcher, options.keep_checkpoints, print)
    answer = {**comparison.plain(), "folder": str(folder)}
    _answer(options, answer, f"\n{comparison.markdown()}\nsweep folder: {folder}")
    return 1 if comparison.failed else 0


def _evaluate(options: argparse.Namespace, arguments: list[str]) -> int:
    from deltarec.assembly import check
    from deltarec.config import load
    from deltarec.job import Job

    saved = options.run_dir / "config.yaml"
    job = load(Job, saved, options.set)
    if not getattr(job.data, options.split):
        raise ValueError(f"{saved}: data.{options.split} names no files")
    folder = options.run_dir / "checkpoints"
    pointer = options.checkpoint or ("best" if (folder / "best").is_file() else "latest")
    if not (folder / pointer).is_file():
        raise ValueError(f"{folder}: there is no {pointer} checkpoint")
    check(job)
    if options.nproc is not None:
        job.data.reader.check(options.nproc)
        return _launch(options.nproc, arguments)
    from deltarec.distributed import is_main, process_group
    from deltarec.metrics.table import render
    from deltarec.run_folder import RunFolder
    from deltarec.streaming import trainer_of

    with process_group(threads=options.threads) as device:
        trainer = trainer_of(job, RunFolder(options.run_dir), device)
        state = trainer.checkpoints.load(pointer)
        result = trainer.evaluator.evaluate(options.split)
        if is_main():
            answer = {"step": state.step, "split": options.split, "metrics": result}
            answer["skipped"] = trainer.skipped[options.split].summary()
            _answer(options, answer, f"{options.split}, step {state.step}\n{render(result)}")
    return 0


def _predict(options: argparse.Namespace, arguments: list[str]) -> int:
    from deltarec.checkpoint import find as find_checkpoint
    from deltarec.config import load
    from deltarec.data.files import find
    from deltarec.data.scoring import Input
    from deltarec.job import Job

    saved = options.run_dir / "config.yaml"
    job = load(Job, saved, options.set)
    patterns = options.files or (["."] if options.source else job.data.test)
    if not patterns:
        raise ValueError(f"{saved}: data.test names no files; name some by --source or --files")
    folder = options.run_dir / "checkpoints"
    pointers = [options.checkpoint] if options.checkpoint else ["best", "latest"]
    checkpoints = [found for found in (find_checkpoint(folder, p) for p in pointers) if found]
    if not checkpoints:
        raise ValueError(f"{folder}: there is no {pointers[-1]} checkpoint")
    mend = "mend it, or name the others by --files: every row gets a score"
    files = find(options.source or job.data.root(), patterns, mend=mend)
    source = Input(job.data_schema, files, options.keys, options.batch_size, options.rows_per_part)
    if options.nproc is not None:
        return _launch(options.nproc, arguments)
    from deltarec.distributed import is_main, process_group
    from deltarec.predict import predict

    output = options.folder or options.run_dir / "predictions"
    with process_group(threads=options.threads) as device:
        answer = predict(job, source, checkpoints[0], output, device)
        if is_main():
            _answer(
                options,
                answer,
                f"{answer['rows']:,} rows in {answer['parts']} files, step {answer['step']}\n"
                f"predictions: {output}",
            )
    return 0


def _text_augment(options: argparse.Namespace, arguments: list[str]) -> int:
    from deltarec.config import load
    from deltarec.text.augment import AugmentJob, augment, write_prompts

    job = load(AugmentJob, options.config, options.set)
    if options.prompts:
        answer = write_prompts(job, options.prompts)
        _answer(options, answer, f"{answer['prompts']:,} prompts: {options.prompts}")
        return 1 if answer["failed"] else 0
    answer = augment(job)
    _answer(
        options,
        answer,
        f"{answer['answered']:,} of {answer['rows']:,} rows answered: {answer['imported']:,} "
        f"imported, {answer['cached']:,} known, {answer['asked']:,} by {answer['requests']:,} "
        f"requests; {answer['failed']:,} failed\ntable: {answer['output']}\n"
        f"failures: {answer['report']}",
    )
    return 1 if answer["failed"] else 0


def _text_encode(options: argparse.Namespace, arguments: list[str]) -> int:
    from deltarec.config import load
    from deltarec.text.encode import EncodeJob, encode

    answer = encode(load(EncodeJob, options.config, options.set))
    _answer(
        options,
        answer,
        f"{answer['rows'] - answer['empty']:,} of {answer['rows']:,} rows have vectors of "
        f"{answer['dim']} columns, {answer['encoded']:,} of them new; {answer['empty']:,} have no "
        f"text, {answer['truncated']:,} were too long\nvectors: {answer['output']}",
    )
    return 0


def _text_tokenise(options: argparse.Namespace, arguments: list[str]) -> int:
    from deltarec.config import load
    from deltarec.text.tokenise import TokeniseJob, tokenise

    answer = tokenise(load(TokeniseJob, options.config, options.set))
    _answer(
        options,
        answer,
        f"{answer['rows'] - answer['empty']:,} of {answer['rows']:,} rows have tokens, at most "
        f"{answer['dim']}; {answer['truncated']:,} were too long, the longest of "
        f"{answer['longest']}\ntokens: {answer['output']}",
    )
    return 0


def _text_score(options: argparse.Namespace, arguments: list[str]) -> int:
    from deltarec.config import load
    from deltarec.text.score import ScoreJob, score

    answer = score(load(ScoreJob, options.config, options.set))
    _answer(
        options,
        answer,
        f"{answer['rows']:,} rows, {answer['scored']:,} of them scored now, by "
        f"{answer['prompts']:,} prompts\ntable: {answer['output']}",
    )
    return 0


def _bench(options: argparse.Namespace, arguments: list[str]) -> int:
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    if options.name not in names:
        raise ValueError(
            f"benchmark '{options.name}' is not known: one of {', '.join(names)} (in {BENCHMARKS})"
        )
    sys.argv = [options.name, *options.arguments]
    runpy.run_path(str(BENCHMARKS / f"{options.name}.py"), run_name="__main__")
    return 0


def _load(options: argparse.Namespace) -> Any:
    from deltarec.config import load
    from deltarec.job import Job

    return load(Job, options.config, options.set)


def _launch(num_processes: int, arguments: list[str]) -> int:
    """Run this very command as `num_processes` ranks on this machine."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from deltarec.distributed import launched
    from deltarec.supervision import TRY_AGAIN

    if launched():
        raise ValueError("--nproc: a launcher has started this process already; leave it out")
    place = arguments.index("--nproc") if "--nproc" in arguments else None
    if place is None:  # --nproc=N
        kept = [word for word in arguments if not word.startswith("--nproc=")]
    else:
        kept = arguments[:place] + arguments[place + 2 :]
    configuration = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="deltarec",  # needed by name alone: every launch has a store of its own
        max_restarts=0,
        monitor_interval=0.2,
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; ranks divide the cores later
    try:
        elastic_launch(configuration, sys.executable)("-m", "deltarec.cli", *kept)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = failure.signal_name()
            print(
                f"deltarec: rank {number} was ended by {name}; the same command resumes",
                file=sys.stderr,
            )
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException as ended:  # the ranks have got the signal too, and have saved
        print(f"deltarec: ended by {ended.sigval.name}; the same command resumes", file=sys.stderr)
        return TRY_AGAIN
    return 0


def _answer(options: argparse.Namespace, answer: dict[str, Any], text: str) -> None:
    print(json.dumps(answer) if options.json else text, file=options.output, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got '{text}'")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deltarec", description="Trains ranking models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, run: Any, text: str, among: Any = verbs) -> argparse.ArgumentParser:
        sub = among.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="answer as one JSON object")
        return sub

    def overrides(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="path.to.key=value",
            help="override one key of the configuration; repeatable",
        )

    def processes(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--nproc", type=_count, help="number of processes on this machine")
        sub.add_argument(
            "--threads",
            type=_count,
            help="of a process; on CPU, the cores divided by the processes if not given",
        )

    verb("doctor", _doctor, "Prints versions and says whether they fit together.")

    prepare = verb("prepare", _prepare, "Turns raw public data into Parquet.")
    prepare.add_argument(
        "dataset",
        metavar="DATASET",
        help="say, movielens-1m, or own-events for a log of your own; any other word lists all",
    )
    prepare.add_argument("source", metavar="SOURCE", help="folder of the raw data; - for synth")
    prepare.add_argument("target", metavar="TARGET", help="folder to write; a new one")
    overrides(prepare)

    plan = verb("plan", _plan, "Plans a job's tables for any machines, without the machines.")
    plan.add_argument("--config", required=True, metavar="FILE", help="the job's YAML file")
    plan.add_argument("--nodes", type=int, default=1)
    plan.add_argument("--gpus-per-node", "--nproc", dest="per_node", type=int, default=8)
    plan.add_argument("--hbm-gb", "--memory-gb", dest="memory_gb", type=float, default=80.0)
    plan.add_argument("--cpu", action="store_true", help="plan for CPU machines")
    plan.add_argument("--memory-gbps", type=float, default=3350.0, help="of one GPU's memory")
    plan.add_argument("--intra-gbps", type=float, default=450.0, help="between GPUs of a node")
    plan.add_argument("--inter-gbps", type=float, default=50.0, help="between nodes, of one GPU")
    overrides(plan)

    train = verb("train", _train, "Trains a job; resumes one whose run folder has a checkpoint.")
    train.add_argument("--config", required=True, metavar="FILE", help="the job's YAML file")
    train.add_argument("--run-dir", type=Path, help="run folder; runs/NAME-TIME if not given")
    train.add_argument(
        "--watch", action="store_true", help="of a stream: wait for partitions to come"
    )
    overrides(train)
    processes(train)

    sweep = verb("sweep", _sweep, "Trains variants of a job over seeds and compares them.")
    sweep.add_argument("--config", required=True, metavar="FILE", help="the job's YAML file")
    sweep.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="path.to.key=[A,B]",
        help="an axis of the grid; repeatable, all combinations are trained",
    )
    sweep.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'LABEL: [FILE] path.to.key=value …'",
        help="one more configuration, beside the grid; repeatable",
    )
    sweep.add_argument("--seeds", type=_count, default=3, help="runs of each variant; 3")
    sweep.add_argument(
        "--baseline",
        metavar="LABEL|path.to.key=value",
        help="the variant that others are compared with, or values of axes that each is moved to; "
        "the first variant if not given",
    )
    sweep.add_argument(
        "--metric", metavar="TASK/METRIC", help="that decides; as in early stopping if not given"
    )
    sweep.add_argument("--jobs", type=_count, default=1, help="runs at a time; 1")
    sweep.add_argument("--nproc", type=_count, help="processes of each run; 1")
    sweep.add_argument(
        "--run-dir", type=Path, help="folder of the sweep; runs/sweep-NAME if not given"
    )
    sweep.add_argument(
        "--skip-refused",
        action="store_true",
        help="list impossible combinations in the table instead of refusing the sweep",
    )
    sweep.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="of finished runs; they are removed if not given",
    )
    overrides(sweep)

    evaluate = verb("evaluate", _evaluate, "Computes the metrics of a run's checkpoint.")
    evaluate.add_argument("--run-dir", type=Path, required=True, help="the run folder")
    evaluate.add_argument("--split", choices=("train", "valid", "test"), default="test")
    evaluate.add_argument(
        "--checkpoint",
        choices=("latest", "best"),
        help="as at the end of training if not given: the best one where there is one",
    )
    overrides(evaluate)
    processes(evaluate)

    predict = verb("predict", _predict, "Scores rows by a run's checkpoint: Parquet in and out.")
    predict.add_argument("--run-dir", type=Path, required=True, help="the run folder")
    predict.add_argument(
        "--keys",
        nargs="+",
        required=True,
        metavar="COLUMN",
        help="columns that are copied beside the scores; of any type",
    )
    predict.add_argument(
        "--source", metavar="FOLDER", help="folder of the rows, or a URL; data.source if not given"
    )
    predict.add_argument(
        "--files",
        nargs="+",
        metavar="PATTERN",
        help="files, folders or globs there; all of --source, or else data.test, if not given",
    )
    predict.add_argument(
        "--checkpoint",
        choices=("latest", "best"),
        help="the best one where there is one if not given",
    )
    predict.add_argument(
        "--output",
        dest="folder",
        type=Path,
        metavar="DIR",
        help="folder to write, new or with a part of these predictions; RUN/predictions if not "
        "given",
    )
    predict.add_argument(
        "--batch-size", type=_count, default=4096, help="rows that a process scores at a time"
    )
    predict.add_argument(
        "--rows-per-part", type=_count, help="rows of a file; follows from the input if not given"
    )
    overrides(predict)
    processes(predict)

    text = "Features by language models, as ordinary Parquet tables."
    of_text = verbs.add_parser("text", help=text, description=text).add_subparsers(
        title="verbs", required=True, metavar="VERB"
    )
    augment = verb(
        "augment", _text_augment, "Asks a chat model about items or users, or imports.", of_text
    )
    augment.add_argument("--config", required=True, metavar="FILE", help="the job's YAML file")
    augment.add_argument(
        "--prompts", type=Path, metavar="FILE", help="write the prompts as JSONL and ask nobody"
    )
    overrides(augment)

    encode = verb("encode", _text_encode, "Turns text into vectors by a frozen encoder.", of_text)
    encode.add_argument("--config", required=True, metavar="FILE", help="the job's YAML file")
    overrides(encode)

    tokenise = verb(
        "tokenise", _text_tokenise, "Turns text into tokens, for a model inside a job.", of_text
    )
    tokenise.add_argument("--config", required=True, metavar="FILE", help="the job's YAML file")
    overrides(tokenise)

    score = verb("score", _text_score, "Asks a causal model of samples: yes or no.", of_text)
    score.add_argument("--config", required=True, metavar="FILE", help="the job's YAML file")
    overrides(score)

    bench = verb("bench", _bench, "Runs a benchmark of the repository.")
    bench.add_argument(
        "name",
        metavar="NAME",
        help="checkpoint, embedding, graph, increment, reader, scenarios or train",
    )
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="for the benchmark itself")
    return parser


if __name__ == "__main__":
    sys.exit(main())
