"""How does attention of a few new tokens read keys and values only once a group?

PyTorch's scaled-dot-product attention over a dense store, and the same in operations that a
compiler can fuse; the kernels of our own are beside it.
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


def attend_fusible(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """`attend` of one new token, [B, 1, G R, D] -> [B, 1, G R D], as products and sums in float32.

    For `torch.compile` on a CPU: it turns them into loops that read keys and values once and write
    next to nothing, where SDPA starts threads for a hundred thousand multiplications. Executed
    operation by operation it would write B G R S D numbers twice. `mask` is 0 or -inf.
    """
    batch, _, num_q, head_dim = queries.shape
    num_kv = keys.shape[1]
    grouped = queries.view(batch, num_kv, num_q // num_kv, 1, head_dim).float()
    scores = (grouped * keys[:, :, None].float()).sum(-1) * head_dim**-0.5 + mask.float()
    shares = scores.softmax(-1)[..., None]  # [B, G, R, S, 1]
    mixed = (shares * values[:, :, None].float()).sum(-2)
    return mixed.to(queries.dtype).view(batch, 1, num_q * head_dim)
