"""How can the same weights share their keys and values among more or fewer query heads?

Query head i reads key/value head i // R, so a head that is written R times gives every query head
its own copy: multi-head attention with the same function. The other way, heads are averaged: fewer
of them are left to keep, and the function changes. RoPE acts on each head alike, so the mean of
rotated keys is the rotated mean.
Sources: Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need", 2019; Ainslie et al.,
"GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", 2023.
Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from inferlab.models.config import ModelConfig
from inferlab.models.decoder import Attention, Decoder
from inferlab.models.heads import layout_config, layout_heads
from inferlab.models.load import open_weights, resolve_config
from inferlab.models.placement import torch_device, torch_dtype
from inferlab.models.projections import plain_weight

KV_PARTS = ("self_attn.k_proj.", "self_attn.v_proj.")

Tensors = Mapping[str, torch.Tensor]


def regroup(rows: torch.Tensor, config: ModelConfig, heads: int) -> torch.Tensor:
    """[G D, ...] rows of a key or value projection -> [`heads` D, ...], repeated or averaged.

    Neighbours are averaged, in float32: they are the ones whose query heads end in one group.
    """
    trained, size = config.num_kv_heads, config.head_dim
    by_head = rows.view(trained, size, *rows.shape[1:])
    if heads >= trained:
        by_head = by_head.repeat_interleave(heads // trained, dim=0)
    else:
        groups = by_head.view(heads, trained // heads, *by_head.shape[1:])
        by_head = groups.float().mean(dim=1).to(rows.dtype)
    return by_head.reshape(heads * size, *rows.shape[1:])


class _Regrouped(Mapping[str, torch.Tensor]):
    """Tensors whose key and value projections are regrouped when asked for, one at a time."""

    def __init__(self, tensors: Tensors, config: ModelConfig, heads: int) -> None:
        self._tensors, self._config, self._heads = tensors, config, heads

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        if any(part in name for part in KV_PARTS):
            return regroup(tensor, self._config, self._heads)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def layout_tensors(
    tensors: Tensors, config: ModelConfig, layout: str
) -> tuple[ModelConfig, Tensors]:
    """(shape, weights by their Hugging Face names) of `layout`; `tensors` stay untouched."""
    target = layout_config(config, layout)
    if target.num_kv_heads == config.num_kv_heads:
        return target, tensors
    return target, _Regrouped(tensors, config, target.num_kv_heads)


def load_layout(
    model: str | ModelConfig,
    layout: str,
    dtype: str = "bfloat16",
    device: str = "cpu",
    weights: str = "real",
    *,
    seed: int = 0,
    pack: bool = False,
) -> Decoder:
    """Our decoder in `layout` with weights of its own, as a decoder that is trained needs."""
    config = resolve_config(model)
    layout_heads(config, layout)  # before seconds are spent on loading
    number, place = torch_dtype(dtype), torch_device(device)
    target, tensors = layout_tensors(
        open_weights(config, number, place, weights, seed), config, layout
    )
    decoder = Decoder(target, number, place)
    decoder.load_weights(tensors)
    if pack:
        decoder.pack()
    return decoder


def with_layout(base: Decoder, layout: str) -> Decoder:
    """`base` in another layout: all modules are shared but the key and value projections.

    So several layouts lie in memory at the price of one model. `base` needs plain weights:
    load it with pack=False and call `pack` on each decoder when all are made.
    """
    target = layout_config(base.config, layout)
    if target == base.config:
        return base

    @torch.no_grad()
    def attention(index: int, source: Attention) -> Attention:
        made = Attention(target, index, dtype=base.dtype, device=base.device)
        made.out, made.q_norm, made.k_norm = source.out, source.q_norm, source.k_norm
        plain = plain_weight(f"layers.{index}.attention.qkv", source.qkv)
        made.qkv.weight.copy_(regroup_qkv(plain, base.config, target.num_kv_heads))
        if made.qkv.bias is not None:
            made.qkv.bias.copy_(regroup_qkv(source.qkv.bias, base.config, target.num_kv_heads))
        return made

    return share_modules(base, target, attention)


def regroup_qkv(fused: torch.Tensor, config: ModelConfig, heads: int) -> torch.Tensor:
    """[q + 2 kv, ...] rows of a fused projection with its keys and values regrouped."""
    queries, keys, values = fused.split((config.q_size, config.kv_size, config.kv_size))
    return torch.cat((queries, regroup(keys, config, heads), regroup(values, config, heads)))


def share_modules(
    base: Decoder,
    config: ModelConfig,
    make_attention: Callable[[int, Attention], nn.Module],
    kind: type[Decoder] = Decoder,
) -> Decoder:
    """A decoder with the modules of `base`, but for attention: `make_attention(index, old one)`."""
    made = kind(config, base.dtype, "meta")  # shapes only: every weight is put in below
    made.embedding, made.norm, made.head = base.embedding, base.norm, base.head
    for index, (layer, source) in enumerate(zip(made.layers, base.layers, strict=True)):
        layer.attention_norm, layer.mlp_norm = source.attention_norm, source.mlp_norm
        layer.mlp = source.mlp
        layer.attention = make_attention(index, source.attention)
    return made
