"""Where can a division of a projection's input channels be hidden, so that it costs nothing?

(x / s)(W diag(s))^T = x W^T, and x comes out of something linear: a norm's weight (qkv, gate and
up), the rows of `up` (down), or the rows of `v` (out). Scaling that once scales x for ever.
Sources: Xiao et al., "SmoothQuant", 2022; Lin et al., "AWQ", 2023.
Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

import torch

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig
from inferlab.models.decoder import Decoder
from inferlab.models.projections import plain_weight


@torch.no_grad()
def fold_scales(decoder: Decoder, name: str, scales: torch.Tensor) -> None:
    """Divide the input channels of projection `name` by `scales` [K] and multiply its weights.

    The decoder computes the same function, up to rounding in its dtype. UserError for scales that
    are not positive and finite, for a head that is the embedding table, and for scales of `out`
    that differ between query heads of one value head (see `shared_by_heads`). Scales of `down` and
    `out` divide rows of gate_up and qkv, so whoever looks at the weights goes from back to front.
    """
    module = decoder.get_submodule(name)
    weight = plain_weight(name, module)
    if scales.shape != (module.in_features,):
        raise UserError(f"{name} has {module.in_features} inputs, not {list(scales.shape)} scales")
    if not (torch.isfinite(scales) & (scales > 0)).all():
        raise UserError(f"the scales of {name} must be positive and finite: observe again")
    if name == "head":
        if weight is decoder.embedding:
            raise UserError("the head is the embedding table: fold the norms first (equivalent)")
        norm = decoder.norm.weight
        _divide_rows(norm, None, scales)
    else:
        _divide_source(decoder, name, scales)
    weight.copy_(weight.float() * scales)


def shared_by_heads(config: ModelConfig, values: torch.Tensor) -> torch.Tensor:
    """[q_size] means over the query heads that share a value head: they must share a scale."""
    grouped = values.view(config.num_kv_heads, config.group_size, config.head_dim)
    return grouped.mean(1, keepdim=True).expand_as(grouped).flatten()


def _divide_source(decoder: Decoder, name: str, scales: torch.Tensor) -> None:
    """Divide what produces the input of a layer's projection."""
    path, _, part = name.rpartition(".")
    layer = decoder.get_submodule(path.rpartition(".")[0])
    if part == "qkv":
        _divide_rows(layer.attention_norm.weight, None, scales)
    elif part == "gate_up":
        _divide_rows(layer.mlp_norm.weight, None, scales)
    elif part == "down":  # silu(gate) * up: linear in up, the second half of the rows
        gate_up = plain_weight(f"{path}.gate_up", layer.mlp.gate_up)
        _divide_rows(gate_up[decoder.config.intermediate_size :], None, scales)
    else:
        config = decoder.config
        grouped = scales.view(config.num_kv_heads, config.group_size, config.head_dim)
        if not torch.equal(grouped, grouped[:, :1].expand_as(grouped)):
            raise UserError(f"{name}: query heads that share a value head must share its scales")
        start = config.q_size + config.kv_size
        qkv = layer.attention.qkv
        bias = None if qkv.bias is None else qkv.bias[start:]
        values = plain_weight(f"{path}.qkv", qkv)[start:]
        _divide_rows(values, bias, grouped[:, 0].flatten())


def _divide_rows(weight: torch.Tensor, bias: torch.Tensor | None, scales: torch.Tensor) -> None:
    """Divide rows of a matrix [K, ...], or entries of a norm's weight [K], in place."""
    columns = scales.view(-1, *[1] * (weight.ndim - 1))
    weight.copy_(weight.float() / columns)
    if bias is not None:
        bias.copy_(bias.float() / scales)
