"""What should the fused kernels compute? The same operations one by one, in plain PyTorch.

Each function takes what its kernel takes and returns what it returns; every operation inside reads
its inputs from memory and writes its result back. In float64 they are what the kernels are judged
against, in bfloat16 they are the eager baseline. `inferlab.kernelcost` counts the bytes of both.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from inferlab.kvcache.view import StoreView


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of the sum, sum) of x [M, H] and residual [M, H]: an addition, then a norm."""
    total = x if residual is None else x + residual
    return F.rms_norm(total, (total.shape[1],), weight, eps), total


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """[M, 2 I] -> silu(gate) * up [M, I]: silu, then a product."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Turn heads [M, heads, D] by rows [M, D] of `models.layers.rope_table`."""
    rolled = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cosines[:, None], rolled, sines[:, None])


def rotate_and_store(
    qkv: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    view: StoreView,
    slots: torch.Tensor,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    keep_keys: bool = False,
) -> torch.Tensor:
    """As `kernels.rope_store.rotate_and_store`: norms, rotations and two indexed writes.

    Slots of -1 are left out by a mask, for which a GPU is waited for; without any, pass only what
    is to be stored.
    """
    num_kv, size, head_dim = view.keys.shape[1:]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_q = heads.shape[1] - 2 * num_kv
    queries, keys, values = heads.split((num_q, num_kv, num_kv), dim=1)
    if q_weight is not None:
        queries = F.rms_norm(queries, (head_dim,), q_weight, eps)
        keys = F.rms_norm(keys, (head_dim,), k_weight, eps)
    queries, keys = rotate(queries, cosines, sines), rotate(keys, cosines, sines)
    stored = slots >= 0
    blocks, places = slots[stored] // size, slots[stored] % size
    view.keys[blocks, :, places] = keys[stored].to(view.keys.dtype)
    view.values[blocks, :, places] = values[stored].to(view.values.dtype)
    if keep_keys:
        heads[:, num_q : num_q + num_kv] = keys
    return queries


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
) -> torch.Tensor:
    """As `kernels.linear.small_linear`: a product, then each epilogue as a pass of its own."""
    y = F.linear(x, weight, bias)
    if gated:
        y = swiglu(y)
    return y if residual is None else y + residual
