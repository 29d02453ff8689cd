# SPDX-License-Identifier: Apache-2.0
"""Says which versions are installed, whether they fit together, and what mends them."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NotRequired, cast

from typing_extensions import TypedDict

TESTED = (
    {"torch": "2.13", "torchrec": "1.8", "fbgemm": "1.8"},
    {"torch": "2.11", "torchrec": "1.6", "fbgemm": "1.6"},
)
"""Combinations that fit together: the first is developed and tested with."""
MEND = "rm -rf .venv && make setup"


class Found(TypedDict):
    """What is installed; versions are null where it is not."""

    torch: str | None
    torchrec: str | None
    fbgemm: str | None
    fbgemm_build: str
    triton: str | None
    torchx: str | None
    pyarrow: str | None
    cuda: NotRequired[str | None]
    gpus: NotRequired[list[str]]
    problems: list[str]
    mend: str | None


def examine() -> Found:
    """Versions, devices, kernels, and the list of `problems` (empty when all is well)."""
    found: dict[str, Any] = {
        "torch": _version("torch"),
        "torchrec": _version("torchrec"),
        "fbgemm": _version("fbgemm-gpu-cpu") or _version("fbgemm-gpu"),
        "fbgemm_build": "cpu" if _version("fbgemm-gpu-cpu") else "cuda",
        "triton": _version("triton"),
        "torchx": _version("torchx"),
        "pyarrow": _version("pyarrow"),
    }
    problems = [f"{name} is not installed" for name in TESTED[0] if not found[name]]
    if not problems:
        problems += _examine_installed(found)
    return cast(Found, {**found, "problems": problems, "mend": MEND if problems else None})


def _examine_installed(found: dict[str, Any]) -> list[str]:
    problems = []
    import torch

    found["cuda"] = torch.version.cuda
    found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    installed = {name: ".".join(found[name].split(".")[:2]) for name in TESTED[0]}
    if installed not in TESTED:
        wanted = " or ".join(str(combination) for combination in TESTED)
        problems.append(f"versions {installed} were never tried together; tested are {wanted}")
    if _version("fbgemm-gpu-cpu") and _version("fbgemm-gpu"):
        problems.append(
            "fbgemm-gpu-cpu and fbgemm-gpu are both installed: one overwrites the other"
        )
    if found["gpus"] and found["fbgemm_build"] == "cpu":
        problems.append("this machine has a GPU, but fbgemm is the CPU build")
    for module in ("fbgemm_gpu", "torchrec"):
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            problems.append(f"{module} cannot be imported: {error}")
    return problems


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
