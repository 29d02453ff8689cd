# SPDX-License-Identifier: Apache-2.0
"""`deltarec plan`."""

import argparse

from deltarec.verbs.verb import JOB, Answer, Parser, Verb, add_configuration


def _arguments(parser: Parser) -> None:
    add_configuration(parser)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", "--nproc", dest="per_node", type=int, default=8)
    parser.add_argument("--hbm-gb", "--memory-gb", dest="memory_gb", type=float, default=80.0)
    parser.add_argument("--cpu", action="store_true", help="plan for CPU machines")
    parser.add_argument("--memory-gbps", type=float, default=3350.0, help="of one GPU's memory")
    parser.add_argument("--intra-gbps", type=float, default=450.0, help="between GPUs of a node")
    parser.add_argument("--inter-gbps", type=float, default=50.0, help="between nodes, of one GPU")


def _run(options: argparse.Namespace) -> Answer:
    from deltarec.config import load
    from deltarec.distributed import silence_libraries
    from deltarec.embeddings.planning import GIB, Hardware
    from deltarec.job import Job
    from deltarec.plan import plan_job, render

    silence_libraries()
    memory = int(options.memory_gb * GIB)
    if options.cpu:
        hardware = Hardware.cpu(options.nodes, options.per_node, memory)
    else:
        bandwidths = (options.memory_gbps, options.intra_gbps, options.inter_gbps)
        hardware = Hardware("cuda", options.nodes, options.per_node, memory, *bandwidths)
    found = plan_job(load(Job, options.config, options.set), hardware)
    return Answer(found, render(found, hardware))


PLAN = Verb(
    "Plans a job's tables for any machines, without the machines.",
    _arguments,
    _run,
    "deltarec.plan:Plan",
    JOB,
)
