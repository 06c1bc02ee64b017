"""How do several programs share one output tile, with the same result at every run?

A decode step's matrices have too few output channels to fill a GPU with one program per tile, so
the inputs (K) are split too. Each program writes its partial sums; the one that arrives last adds
all of them in a fixed order and writes the output. No second launch, no zeroing beforehand: the
last one also sets the tile's counter back to 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton's interpreter has no bfloat16 arithmetic and no inline assembly, and its scalars are arrays
# of one element, which NumPy 2.4 does not take for the bounds of a loop. Where it runs, on a CPU in
# tests, the kernels say the same in other words.
PLAIN: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def rounded(number):
    """float32 -> the nearest bfloat16, ties to even."""
    if PLAIN:  # the interpreter cuts off
        bits = number.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return (bits & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return number.to(tl.bfloat16)


@triton.jit
def cast(number, dtype: tl.constexpr):
    """float32 -> `dtype`, to the nearest."""
    if dtype == tl.bfloat16:
        return rounded(number)
    else:
        return number.to(dtype)


@triton.jit
def dot(left, right, total):
    """total + left @ right on the tensor cores, in float32."""
    if PLAIN:
        product = tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
        return total + product
    return tl.dot(left, right, total)


@triton.jit
def product(left, right, total):
    """total + left @ right in float32, on the tensor cores unless left and right are float32."""
    if PLAIN:
        found = tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
        return total + found
    else:
        return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def halves(pair):
    """[N, W] numbers of 32 bits -> [N, 2 W] bfloat16: the lower half, the upper half, in turn."""
    low = (pair & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
    high = ((pair >> 16) & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return tl.join(low, high).reshape(pair.shape[0], 2 * pair.shape[1])


@triton.jit
def beside(left, right):
    """[N, W] and [N, W] -> [N, 2 W]."""
    both = tl.join(left, right).permute(0, 2, 1)
    return both.reshape(left.shape[0], 2 * left.shape[1])


@triton.jit
def finish(
    total,  # [BLOCK_N, BLOCK_M] float32: this program's share
    y,
    partials,  # float32 [splits, num_rows, out_features], unused when not SPLIT
    counters,  # int32, one per tile, 0 before and after
    tile,
    channels,
    rows,
    num_rows,
    out_features,
    SPLIT: tl.constexpr,
):
    """Write the tile, or this program's share; the last program to arrive adds the shares up."""
    wanted = (channels[:, None] < out_features) & (rows[None, :] < num_rows)
    places = rows[None, :] * out_features + channels[:, None]
    if not SPLIT:
        tl.store(y + places, rounded(total), mask=wanted)
    else:
        size = num_rows * out_features
        tl.store(partials + tl.program_id(2) * size + places, total, mask=wanted)
        tl.debug_barrier()  # every thread's share is written before the program is counted
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
        if arrived == tl.num_programs(2) - 1:
            total = tl.zeros_like(total)
            splits = tl.num_programs(2)
            for part in range(splits.handle.data.item() if PLAIN else splits):
                # .cg: past the L1 cache, which does not see what other processors wrote
                total += tl.load(
                    partials + part * size + places, mask=wanted, other=0.0, cache_modifier=".cg"
                )
            tl.store(y + places, rounded(total), mask=wanted)
            tl.store(counters + tile, 0)
