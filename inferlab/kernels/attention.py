"""How does attention of a few new tokens read keys and values only once a group?

PyTorch's scaled-dot-product attention over a dense store; the kernels of our own are beside it.
Letters: B sequences, T new tokens, S positions, D head size, G key/value heads, R query heads each.
Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Causal attention of the last T of S positions: queries [B, T, G R, D], keys and values
    [B, G, S, D] -> [B, T, G R D]. `mask` [B, 1, T, S] (True or 0: may look) replaces causality.
    """
    batch, new, num_q, head_dim = queries.shape
    num_kv, total = keys.shape[1], keys.shape[2]
    if new == 1:
        # The R query heads of a group stand in as R query positions: keys and values are read
        # once a group, never repeated in memory.
        grouped = queries.reshape(batch, num_kv, num_q // num_kv, head_dim)
        mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        return mixed.reshape(batch, 1, num_q * head_dim)
    causal = mask is None and new == total
    if mask is None and not causal:
        mask = torch.ones(new, total, dtype=torch.bool, device=keys.device).tril(total - new)
    if num_q != num_kv:
        keys = keys.repeat_interleave(num_q // num_kv, dim=1)
        values = values.repeat_interleave(num_q // num_kv, dim=1)
    mixed = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys, values, attn_mask=mask, is_causal=causal
    )
    return mixed.transpose(1, 2).reshape(batch, new, num_q * head_dim)
