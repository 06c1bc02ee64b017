"""How does one new token read a long cache with the whole GPU, and each byte only once?

One query a head leaves most of a GPU idle when a program takes a whole sequence; so the positions
are split over programs too (flash-decoding: Dao et al. 2023). A program reads its share of keys and
values once for all the query heads of a group. The last program of a group to arrive adds the
shares up, in a fixed order. Dense and paged stores are read by the same kernel.
Letters: B sequences, D head size, G key/value heads, R query heads each, P positions in a block.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from inferlab.errors import UserError
from inferlab.kernels import online_softmax, tiles
from inferlab.kernels.attention_reference import check_heads
from inferlab.kernels.online_softmax import take_tile
from inferlab.kernels.overlap import launch_options, let_next_start, wait_for_previous
from inferlab.kernels.splitk import PLAIN, cast

if TYPE_CHECKING:
    from inferlab.kvcache.view import StoreView

TILE_BYTES = 32768  # keys and values of one step
MOST_SPLITS = tl.constexpr(128)  # a power of two
RESIDENT = 2  # programs that share a multiprocessor
ROUNDS = 16  # times over that programs may fill the GPU: where lengths differ, small ones even out
WORTH_TILES = 8  # tiles that make a program of a later round worth its start
NUM_WARPS = 4
COMBINED = tl.constexpr(8192)  # numbers of shares that a program adds up at once
EXCHANGE_BYTES = 8192  # between the warps of a program: maxima, sums, weights


# Compiled once a model and kind of store, not once a batch size or capacity.
@triton.jit(do_not_specialize=["length_step", "table_row", "num_kv", "capacity", "splits"])
def _decode(
    queries,  # [B, G R, D]
    keys, values,  # [N, G, P, D]
    lengths, tables,  # int32 [B], [B, width]
    mixed,  # [B, G R, D]
    shares, logs, counters,  # float32 [B, G R, splits, D], [B, G R, splits]; int32, 0 before, after
    q_row, q_head, k_block, k_group, k_place, v_block, v_group, v_place, length_step, table_row,
    num_kv, capacity, splits, scale,
    REPEATS: tl.constexpr, HEAD: tl.constexpr, PLACES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: (sequences x groups x tiles of query heads, splits). PLACES 0: without tables."""
    let_next_start(OVERLAP)
    wait_for_previous(OVERLAP)
    tile, split = tl.program_id(0), tl.program_id(1)
    row_tiles: tl.constexpr = (REPEATS + ROWS - 1) // ROWS
    group = tile // row_tiles % num_kv
    row = tile // (row_tiles * num_kv)
    length = tl.minimum(tl.load(lengths + row * length_step), capacity)
    share = tl.maximum(tl.cdiv(tl.cdiv(length, splits), BLOCK_S), 1) * BLOCK_S
    active = tl.maximum(tl.cdiv(length, share), 1)
    if split >= active:  # the capacity has more splits than this length
        return
    first = split * share
    last = tl.minimum(first + share, length)

    repeats = tile % row_tiles * ROWS + tl.arange(0, ROWS)
    used = repeats < REPEATS
    heads = group * REPEATS + repeats
    dims = tl.arange(0, BLOCK_D)
    inside = dims < HEAD
    row, group = row.to(tl.int64), group.to(tl.int64)
    query = tl.load(
        queries + row * q_row + heads[:, None] * q_head + dims[None, :],
        mask=used[:, None] & inside[None, :], other=0.0,
    )  # fmt: skip
    keys += group * k_group
    values += group * v_group
    if PLACES == 0:
        keys += row * k_block
        values += row * v_block
    tables += row * table_row

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    if PLAIN:
        first, last = first.handle.data.item(), last.handle.data.item()
    for start in tl.range(first, last, BLOCK_S, num_stages=STAGES):
        positions = start + tl.arange(0, BLOCK_S)
        stored = positions < last
        if PLACES == 0:
            k_rows, v_rows = keys + positions * k_place, values + positions * v_place
        else:
            if PLACES % BLOCK_S == 0:  # the whole tile lies in one block
                block = tl.load(tables + start // PLACES).to(tl.int64)
            else:
                block = tl.load(tables + positions // PLACES, mask=stored, other=0).to(tl.int64)
            place = positions % PLACES
            k_rows = keys + block * k_block + place * k_place
            v_rows = values + block * v_block + place * v_place
        wanted = stored[:, None]
        if HEAD != BLOCK_D:
            wanted = wanted & inside[None, :]
        key = tl.load(k_rows[:, None] + dims[None, :], mask=wanted, other=0.0)
        value = tl.load(v_rows[:, None] + dims[None, :], mask=wanted, other=0.0)
        top, total, acc = take_tile(
            query, key, value, stored[None, :], scale, top, total, acc, MASKED=True
        )
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # a sequence of length 0: zeros

    heads = row * (num_kv * REPEATS) + heads
    kept = used[:, None] & inside[None, :]
    if active == 1:
        out = mixed + heads[:, None] * HEAD + dims[None, :]
        tl.store(out, cast(acc, mixed.dtype.element_ty), mask=kept)
        return
    own = heads * splits + split
    tl.store(shares + own[:, None] * HEAD + dims[None, :], acc, mask=kept)
    tl.store(logs + own, top + tl.log2(total), mask=used)
    tl.debug_barrier()  # every thread's share is written before the program is counted
    arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
    if arrived == active - 1:
        first_repeat = tile % row_tiles * ROWS
        first_head = row * (num_kv * REPEATS) + group * REPEATS + first_repeat
        _combine(
            mixed, shares, logs, first_head, REPEATS - first_repeat, active, splits,
            HEAD, triton.next_power_of_2(min(REPEATS, ROWS)), BLOCK_D,
        )  # fmt: skip
        tl.store(counters + tile, 0)


@triton.jit
def _combine(
    mixed, shares, logs, first_head, num_heads, active, splits,
    HEAD: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Weigh the `active` shares of some heads by their sums of weights, `logs` in base 2.

    .cg: past the L1 cache, which does not see what other processors wrote.
    """
    chunk: tl.constexpr = max(1, COMBINED // (HEADS * BLOCK_D))
    heads = first_head + tl.arange(0, HEADS)
    used = tl.arange(0, HEADS) < num_heads
    dims = tl.arange(0, BLOCK_D)
    parts = tl.arange(0, MOST_SPLITS)
    all_logs = tl.load(
        logs + heads[:, None] * splits + parts[None, :],
        mask=used[:, None] & (parts[None, :] < active), other=float("-inf"), cache_modifier=".cg",
    )  # fmt: skip
    top = tl.where(used, tl.max(all_logs, axis=1), 0.0)
    total = tl.where(used, tl.sum(tl.exp2(all_logs - top[:, None]), axis=1), 1.0)
    whole = top + tl.log2(total)
    acc = tl.zeros((HEADS, BLOCK_D), tl.float32)
    for start in range(0, active.handle.data.item() if PLAIN else active, chunk):
        some = start + tl.arange(0, chunk)
        there = used[:, None] & (some[None, :] < active)
        places = heads[:, None] * splits + some[None, :]
        log = tl.load(logs + places, mask=there, other=float("-inf"), cache_modifier=".cg")
        share = tl.load(
            shares + places[:, :, None] * HEAD + dims[None, None, :],
            mask=there[:, :, None] & (dims < HEAD)[None, None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        acc += tl.sum(tl.exp2(log - whole[:, None])[:, :, None] * share, axis=1)
    out = mixed + heads[:, None] * HEAD + dims[None, :]
    kept = used[:, None] & (dims < HEAD)[None, :]
    tl.store(out, cast(acc, mixed.dtype.element_ty), mask=kept)


def choose_splits(num_tiles: int, capacity: int, block_s: int, processors: int) -> int:
    """Over how many programs to split each of `num_tiles`, from the capacity alone.

    As many as fill the GPU once; several times over where each still has some tiles of its own.
    """
    if num_tiles > tiles.COUNTERS:
        return 1
    longest = triton.cdiv(capacity, block_s)
    once = RESIDENT * processors // num_tiles
    often = min(ROUNDS * RESIDENT * processors // num_tiles, longest // WORTH_TILES)
    return max(1, min(once if once > often else often, longest, MOST_SPLITS.value))


def _check(queries: torch.Tensor, view: StoreView) -> None:
    """Refuse what would be read wrongly; nothing that only the device knows is looked at."""
    keys, values, batch = view.keys, view.values, queries.shape[0]
    check_heads(queries, keys, values)
    online_softmax.check_tensors(queries, keys, values)
    if keys.stride(3) != 1 or values.stride(3) != 1:
        raise UserError("a store's last dimension must have stride 1: make it contiguous")
    tables = view.lengths if view.block_tables is None else view.block_tables
    if view.lengths.shape != (batch,) or tables.shape[0] != batch:
        raise UserError(f"give a length, and a row of tables, for each of {batch} sequences")
    if view.lengths.device != keys.device or tables.device != keys.device:
        raise UserError(f"lengths and tables must be on {keys.device}, where the keys are")
    if view.block_tables is None and keys.shape[0] < batch:
        raise UserError(f"a store of {keys.shape[0]} sequences cannot serve {batch}")


def decode_attention(
    queries: torch.Tensor, view: StoreView, splits: int | None = None
) -> torch.Tensor:
    """The newest token's queries [B, G R, D] over each sequence's positions -> [B, G R, D].

    bfloat16, float16 or float32, sums in float32; a sequence of length 0 gives zeros. What lies
    beyond a length is never read. No shape or launch depends on the lengths: safe to capture in a
    CUDA graph, after one call to compile; calls must not overlap (see `tiles.counters`).
    """
    _check(queries, view)
    keys, values = view.keys, view.values
    queries = online_softmax.unit_stride(queries)
    batch, num_q, head_dim = queries.shape
    num_kv, places = keys.shape[1:3]
    repeats = num_q // num_kv
    paged = view.block_tables is not None
    tables = online_softmax.unit_stride(view.block_tables) if paged else view.lengths
    capacity = places * (tables.shape[1] if paged else 1)

    block_d = max(16, triton.next_power_of_2(head_dim))
    stage_bytes = 2 * block_d * keys.element_size()  # of one position
    block_s = min(128, max(16, TILE_BYTES // stage_bytes))
    rows = min(64, max(16, triton.next_power_of_2(repeats)))
    num_tiles = batch * num_kv * triton.cdiv(repeats, rows)
    if splits is None:
        splits = choose_splits(num_tiles, capacity, block_s, tiles.processors(keys.device))
    most = 1 if num_tiles > tiles.COUNTERS else MOST_SPLITS.value
    if not 1 <= splits <= most:
        raise UserError(f"splits={splits} is not from 1 to {most}: leave it out, or change it")
    stages = online_softmax.stages_that_fit(
        keys.device, block_s * stage_bytes, EXCHANGE_BYTES, RESIDENT
    )
    mixed = torch.empty(batch, num_q, head_dim, dtype=queries.dtype, device=queries.device)
    room = (batch * num_q * splits,) if splits > 1 else (1,)
    logs = torch.empty(room, dtype=torch.float32, device=queries.device)
    shares = torch.empty((*room, head_dim), dtype=torch.float32, device=queries.device)
    _decode[(num_tiles, splits)](
        queries, keys, values, view.lengths, tables, mixed, shares, logs, tiles.counters(mixed),
        queries.stride(0), queries.stride(1), *keys.stride()[:3], *values.stride()[:3],
        view.lengths.stride(0), tables.stride(0),
        num_kv, capacity, splits, online_softmax.base_two_scale(head_dim),
        REPEATS=repeats, HEAD=head_dim, PLACES=places if paged else 0,
        ROWS=rows, BLOCK_S=block_s, BLOCK_D=block_d,
        STAGES=2 * stages - 1 if paged else stages,  # the tables are read as far ahead again
        num_warps=NUM_WARPS, **launch_options(queries.device),
    )  # fmt: skip
    return mixed
