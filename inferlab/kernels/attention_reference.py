"""What must an attention kernel compute, written out with nothing clever in it?

Attention that writes its scores to memory, and attention over a store of blocks that first copies
each sequence's blocks together. Kernels are judged against these; on a CPU a paged cache uses them.
Letters: B sequences, T new tokens, S positions, D head size, G key/value heads, R query heads each,
P positions in a block, W blocks in a row of the tables.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from inferlab.errors import UserError

if TYPE_CHECKING:
    from inferlab.kvcache.view import StoreView


def check_heads(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Refuse heads [..., G R, D] that do not belong to keys and values [., G, ., D]."""
    num_q, head_dim = queries.shape[-2:]
    num_kv, kv_dim = keys.shape[1], keys.shape[3]
    if values.shape != keys.shape:
        shapes = f"{tuple(keys.shape)} and {tuple(values.shape)}"
        raise UserError(f"keys and values must have the same shape, not {shapes}")
    if head_dim != kv_dim:
        raise UserError(f"queries have heads of {head_dim} numbers, keys of {kv_dim}: use one size")
    if num_q % num_kv:
        raise UserError(f"{num_q} query heads are no multiple of {num_kv} key/value heads: use one")


def check_positions(new: int, total: int, causal: bool) -> None:
    """Refuse T new tokens that are not the last of S positions, and attention to nothing."""
    if causal and new > total:
        raise UserError(
            f"{new} new tokens cannot be the last of {total} positions: "
            "give keys of all tokens, or causal=False"
        )
    if total == 0:
        raise UserError("there is no position to attend to: give at least one key")


def naive_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    causal: bool = True,
    dtype: torch.dtype | None = torch.float64,
) -> torch.Tensor:
    """Queries [B, T, G R, D], keys and values [B, G, S, D] -> [B, T, G R, D], in `dtype`.

    Writes the scores [B, G, T R, S] to memory, masks, normalizes and reads them again. Causal:
    queries are the last T of the S positions. `dtype` None: that of the inputs.
    """
    check_heads(queries, keys, values)
    batch, new, num_q, head_dim = queries.shape
    num_kv, total = keys.shape[1], keys.shape[2]
    check_positions(new, total, causal)
    dtype = dtype or queries.dtype
    queries, keys, values = queries.to(dtype), keys.to(dtype), values.to(dtype)
    grouped = queries.view(batch, new, num_kv, -1, head_dim).permute(0, 2, 1, 3, 4)
    repeats = num_q // num_kv
    grouped = grouped.reshape(batch, num_kv, new * repeats, head_dim)
    scores = grouped @ keys.transpose(2, 3) * head_dim**-0.5
    if causal:
        visible = torch.ones(new, total, dtype=torch.bool, device=keys.device).tril(total - new)
        visible = visible.repeat_interleave(repeats, dim=0)
        scores = scores.masked_fill(~visible, float("-inf"))
    mixed = torch.softmax(scores, dim=-1) @ values
    mixed = mixed.view(batch, num_kv, new, repeats, head_dim).permute(0, 2, 1, 3, 4)
    return mixed.reshape(batch, new, num_q, head_dim)


def gather(view: StoreView) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [B, G, W P, D] of each sequence: a copy of its blocks, in order.

    Without tables, the first B blocks themselves, not copied. Places beyond a sequence's length
    hold whatever the store holds there; the tables' entries for them may be any number.
    """
    batch = view.lengths.shape[0]
    if view.block_tables is None:
        return view.keys[:batch], view.values[:batch]
    blocks = view.block_tables.long().clamp(0, view.keys.shape[0] - 1)
    return _gathered(view.keys, blocks), _gathered(view.values, blocks)


def _gathered(store: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """store [N, G, P, D], blocks [B, W] -> [B, G, W P, D]."""
    batch, width = blocks.shape
    _, num_kv, size, head_dim = store.shape
    chosen = store[blocks].transpose(1, 2)  # [B, G, W, P, D]
    return chosen.reshape(batch, num_kv, width * size, head_dim)


def paged_attention(queries: torch.Tensor, view: StoreView) -> torch.Tensor:
    """The newest token's queries [B, G R, D] over each sequence's positions -> [B, G R, D].

    No shape depends on the lengths. What lies beyond a length never counts, NaN included; a
    sequence of length 0 gives zeros. Reads all W P positions of the tables: give tables no wider
    than the longest sequence.
    """
    keys, values = gather(view)
    check_heads(queries, keys, values)
    batch, num_q, head_dim = queries.shape
    num_kv, width = keys.shape[1], keys.shape[2]
    stored = torch.arange(width, device=keys.device) < view.lengths[:, None]  # [B, W P]
    beyond = ~stored[:, None, :, None]
    if view.block_tables is None:
        keys, values = keys.masked_fill(beyond, 0), values.masked_fill(beyond, 0)
    else:  # the copies are ours
        keys, values = keys.masked_fill_(beyond, 0), values.masked_fill_(beyond, 0)
    grouped = queries.reshape(batch, num_kv, num_q // num_kv, head_dim)
    mixed = F.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=stored[:, None, None, :]
    )
    mixed = mixed.masked_fill((view.lengths == 0)[:, None, None, None], 0)
    return mixed.reshape(batch, num_q, head_dim)
