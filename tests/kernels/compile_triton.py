# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels for an H100 without having one; run as a program by `test_triton.py`.

The interpreter is more lenient than the compiler in types, and it has no multiply-add to contract.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_FP32 = ("step", "moment1", "moment2", "step_moment1", "step_moment2", "gradient_scale", "weights")
_FP32 += ("sums", "updated", "rates", "step_rates", "weight", "weight_gradient", "step_gradient")
_INT64 = ("tables", "features", "offsets", "runs", "rows", "run_tables", "places", "first_sums")
_TYPES: dict[str, str] = {
    **dict.fromkeys(_FP32, "*fp32"),
    **dict.fromkeys((*_INT64, "blocks"), "*i64"),
    **{"codes": "*u8", "ids": "*i32", "gradient": "*bf16", "output": "*fp32", "seed": "i64"},
    **dict.fromkeys(("number", "width", "batch", "block"), "i32"),
    **dict.fromkeys(("factor", "kept"), "fp32"),
    **dict.fromkeys(("numbers", "hashes", "keys"), "*i64"),
    **{"x": "*bf16", "count": "i32", "first_unit": "i64", "threshold": "i64"},
}


def contracted(package: str, kernel: str, constants: Mapping[str, Any]) -> int:
    """Compile one kernel; returns how many fp32 multiply-adds it has."""
    function = getattr(import_module(f"deltarec_kernels.{package}.triton"), kernel)
    signature = {
        name: "constexpr" if name in constants else _TYPES[name] for name in function.arg_names
    }
    options = {"num_warps": 1, "enable_fp_fusion": False}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return compiled.asm["ptx"].count("fma.rn.f32")


def main() -> None:
    columns = {"COLUMNS": 64}
    update = {**columns, "SUM_COLUMNS": 64, "WEIGHTED": True}
    for bits, phase, optimizer, step_optimizer in (
        (8, "whole", "rowwise_adagrad", "adam"),
        (4, "whole", "rowwise_adam", "sgd"),
        (2, "rows", "adam", "none"),
        (8, "step", "none", "adagrad"),
    ):
        names = {"PHASE": phase, "OPTIMIZER": optimizer, "STEP_OPTIMIZER": step_optimizer}
        constants = {**update, **names, "BITS": bits, "STOCHASTIC": phase != "rows"}
        assert not contracted("update", "_update_kernel", constants)
    assert not contracted("update", "_sum_blocks_kernel", {**columns, "WEIGHTED": True})
    for pooling in ("sum", "mean", "none"):
        constants = {**columns, "BITS": 4, "POOLING": pooling, "WEIGHTED": True, "TILE": 8}
        contracted("lookup", "_lookup_kernel", constants)
    contracted("lookup", "_weights_gradient_kernel", {**columns, "BITS": 2, "TILE": 8})
    for kernel in ("_forward_kernel", "_backward_kernel"):
        assert not contracted("fake_quantise", kernel, {**columns, "BITS": 8})
    contracted("splitmix", "_mix_kernel", columns)
    contracted("dropout", "_dropout_kernel", columns)


if __name__ == "__main__":
    main()
