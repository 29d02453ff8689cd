# SPDX-License-Identifier: Apache-2.0
"""How an operator becomes `torch.ops.deltarec.NAME`.

The schema stands in the operator's own package. On CPU the compiled kernel serves, and where the
set-up found no compiler the plain PyTorch reference does; `describe()` says which, for programs to
announce. On CUDA the Triton kernel serves, imported when it is first called.
"""

import importlib
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch

_LIBRARY = torch.library.Library("deltarec", "DEF")


def _load_compiled() -> bool:
    found = PathFinder.find_spec("_native", [str(Path(__file__).parent)])
    if found is None or found.origin is None:
        return False
    try:
        torch.ops.load_library(found.origin)
    except OSError as error:
        raise ImportError(
            f"the compiled kernels do not fit torch {torch.__version__}: "
            f"build them again by `make setup` ({str(error).splitlines()[0]})"
        ) from error
    return True


COMPILED = _load_compiled()
"""Whether the C++ kernels serve on CPU; without them the reference does."""


def describe() -> str:
    """One line for people: what serves on CPU."""
    if not COMPILED:
        return (
            "CPU kernels: plain PyTorch reference, slow; "
            "install a C++ compiler and run `make setup` again to have the compiled ones"
        )
    return f"CPU kernels: compiled C++, {torch.ops.deltarec_native.instruction_set()}"


def register(
    schema: str, reference: Callable[..., Any], fake: Callable[..., Any], triton: str | None
) -> Callable[..., Any]:
    """Define an operator and its implementations; returns what calls it.

    Args:
        schema: the operator's name and signature.
        reference: plain PyTorch, of the same signature.
        fake: shapes and types of the result, of the same signature.
        triton: the module that has the CUDA implementation under the operator's name; None for an
            operator of the host's memory alone.
    """
    name = schema.partition("(")[0]

    def on_cuda(*args: Any) -> Any:
        assert triton is not None
        return getattr(importlib.import_module(triton), name)(*args)

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    if not COMPILED:
        _LIBRARY.impl(name, reference, "CPU")
    if triton is not None:
        _LIBRARY.impl(name, on_cuda, "CUDA")
    torch.library.register_fake(f"deltarec::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.deltarec, name)
