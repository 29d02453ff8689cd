# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels share: a table's layout, packed codes, rounding, LSQ's derivative.

The order of arithmetic is the reference's, so the kernels are launched without contraction
(`enable_fp_fusion=False`), and divide and take roots with the correctly rounded functions.
"""

import triton
import triton.language as tl

# The fields of `tables.Layout`.
FIELDS = tl.constexpr(10)
DIM = tl.constexpr(1)
BLOCK = tl.constexpr(2)
CODE_OFFSET = tl.constexpr(3)
STEP_OFFSET = tl.constexpr(4)
ELEMENT_OFFSET = tl.constexpr(5)
FIRST_ROW = tl.constexpr(6)
KEY = tl.constexpr(7)
ROW_OFFSET = tl.constexpr(8)
COLUMN_OFFSET = tl.constexpr(9)


@triton.jit
def field(tables, table, which: tl.constexpr):
    """One int64 of the layout `[tables, FIELDS]` of a table."""
    return tl.load(tables + table * FIELDS + which)


@triton.jit
def load_codes(codes, columns, mask, BITS: tl.constexpr):
    """Codes as fp32; `codes` points to rows, `columns` are int64 within them."""
    byte = tl.load(codes + columns * BITS // 8, mask=mask, other=0).to(tl.int32)
    half: tl.constexpr = 2 ** (BITS - 1)
    field = (byte >> ((columns * BITS) % 8).to(tl.int32)) & (2 * half - 1)
    return ((field ^ half) - half).to(tl.float32)


@triton.jit
def store_codes(codes, values, bits_valid, BITS: tl.constexpr, SIZE: tl.constexpr):
    """Pack whole fp32 numbers `[SIZE]` to `codes`: the bytes of the first `bits_valid` bits."""
    per_byte: tl.constexpr = 8 // BITS
    fields = values.to(tl.int32) & (2**BITS - 1)
    shifts = tl.arange(0, per_byte) * BITS
    packed = tl.sum(tl.reshape(fields, [SIZE // per_byte, per_byte]) << shifts[None, :], 1)
    byte = tl.arange(0, SIZE // per_byte)
    tl.store(codes + byte, packed.to(tl.uint8), mask=byte * 8 < bits_valid)


@triton.jit
def round_even(x):
    """To the nearest whole number, for |x| < 2^22: the last bit of 1.5 * 2^23 is worth one."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def clip(x, BITS: tl.constexpr):
    """To the range of codes; a NaN becomes the lowest."""
    x = tl.where(x > -(2.0 ** (BITS - 1)), x, -(2.0 ** (BITS - 1)))
    return tl.where(x < 2.0 ** (BITS - 1) - 1, x, 2.0 ** (BITS - 1) - 1)


@triton.jit
def inside(x, BITS: tl.constexpr):
    """Strictly between the lowest and the highest code."""
    return (x > -(2.0 ** (BITS - 1))) & (x < 2.0 ** (BITS - 1) - 1)


@triton.jit
def step_slope(scaled, BITS: tl.constexpr):
    """LSQ's derivative of the fake-quantised value to the step, at weight / step."""
    clipped = clip(scaled, BITS)
    return tl.where(inside(scaled, BITS), round_even(clipped) - clipped, clipped)


@triton.jit
def sum_of_products(a, b):
    """fp32 sum of products over a row, taken in fp64."""
    return tl.sum(a.to(tl.float64) * b.to(tl.float64), 0).to(tl.float32)


@triton.jit
def uniform(seed, number, key, row, column, SIZE: tl.constexpr):
    """`SIZE` random numbers in (0, 1) of one row, from a column that is a multiple of eight."""
    group = column // 8 + tl.arange(0, SIZE // 8)
    zero = tl.zeros([SIZE // 8], dtype=tl.int64)
    c0 = (zero + row).to(tl.uint32)
    c1 = ((row >> 32 << 16) | group).to(tl.uint32)
    c2 = (zero + number).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, (zero + key).to(tl.uint32))
    # join adds the last axis: the upper bit of the word's number, then the lower, then the half
    low = tl.join(tl.join(w0 & 0xFFFF, w2 & 0xFFFF), tl.join(w1 & 0xFFFF, w3 & 0xFFFF))
    high = tl.join(tl.join(w0 >> 16, w2 >> 16), tl.join(w1 >> 16, w3 >> 16))
    halves = tl.reshape(tl.join(low, high), [SIZE])
    return halves.to(tl.int32).to(tl.float32) * (2.0**-16) + 2.0**-17


@triton.jit
def quantise(weight, step, noise, BITS: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Codes as whole fp32 numbers."""
    scaled = clip(tl.div_rn(weight, step), BITS)
    return tl.floor(scaled + noise) if STOCHASTIC else round_even(scaled)
