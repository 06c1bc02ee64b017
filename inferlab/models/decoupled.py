"""What would a step cost if keys had to be made from the latents no more?

DeepSeek's multi-head latent attention rotates only a second part of each key, Dr numbers that all
heads share, kept beside the latent. The unrotated part then needs no position between the query and
U_k, so q (U_k c) = (U_k^T q) c: the query is multiplied once a step and attends to the latents as
they lie, and so do the values. A model has to be trained so; one with random numbers in the new
part is right for timing and for nothing else, so these decoders are made for speed only.
Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.3 (decoupled rotary position embedding).
Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from inferlab.errors import UserError
from inferlab.kvcache import KVCache
from inferlab.kvcache.latent import LatentCache, Rope
from inferlab.models.config import ModelConfig
from inferlab.models.decoder import Attention, Decoder
from inferlab.models.heads import check_rank, decoupled_rope_dim
from inferlab.models.latent import LatentDecoder, weights_of_scores
from inferlab.models.layers import Projection, apply_rope
from inferlab.models.layouts import share_modules
from inferlab.models.weights import RANDOM_STD


class DecoupledAttention(nn.Module):
    """Attention over [r + Dr] numbers a token, never made into keys and values.

    `qkv` makes queries [GR, D], their rotated parts [GR, Dr], the latent [r] and the shared rotated
    key [Dr] in one product.
    """

    angle_dim = 0  # what is kept is rotated already

    def __init__(self, config: ModelConfig, layer: int, rank: int, **factory) -> None:
        super().__init__()
        self.config, self.layer, self.rank = config, layer, rank
        self.rope_dim = decoupled_rope_dim(config)
        rotated = (config.num_q_heads + 1) * self.rope_dim
        self.qkv = Projection(config.hidden_size, config.q_size + rank + rotated, False, **factory)
        shape = (config.num_kv_heads, config.head_dim, rank)
        self.up_keys, self.up_values = (
            nn.Parameter(torch.empty(shape, **factory), requires_grad=False) for _ in range(2)
        )
        self.out = None

    @property
    def kept_size(self) -> int:
        """Numbers that a latent cache holds for a token: the latent and the rotated part."""
        return self.rank + self.rope_dim

    def forward(
        self, x: torch.Tensor, rope: Rope, cache: KVCache, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """[B, T, H] -> [B, T, H], over a LatentCache."""
        if not isinstance(cache, LatentCache):
            raise UserError("decoupled attention reads latents: use the cache called latent")
        config, (batch, new, _) = self.config, x.shape
        groups, shares = config.num_kv_heads, config.group_size
        queries, latents, rotated = self.qkv(x).split(
            (config.q_size, self.rank, (config.num_q_heads + 1) * self.rope_dim), dim=-1
        )
        # Any Dr / 2 of the angles do: this is for timing.
        cosines, sines = (angles[..., : self.rope_dim] for angles in rope)
        rotated = apply_rope(rotated.unflatten(-1, (-1, self.rope_dim)), cosines, sines)
        kept, _ = cache.append(self.layer, torch.cat((latents, rotated[:, :, -1]), dim=-1))
        grouped = queries.view(batch, new, groups, shares, config.head_dim)
        absorbed = torch.einsum("btgrd,gdk->btgrk", grouped, self.up_keys).flatten(2, 3)
        absorbed = torch.cat((absorbed, rotated[:, :, :-1]), dim=-1)  # [B, T, GR, r + Dr]
        scores = absorbed.flatten(1, 2) @ kept.transpose(1, 2)  # [B, T GR, S]
        scores = scores * (config.head_dim + self.rope_dim) ** -0.5
        scores = scores.view(batch, new, config.num_q_heads, -1).transpose(1, 2)  # [B, GR, T, S]
        mask = _causal(new, scores) if mask is None and new > 1 else mask
        mixed = weights_of_scores(scores, mask).transpose(1, 2).flatten(1, 2)
        mixed = mixed @ kept[..., : self.rank]  # [B, T GR, r]
        mixed = mixed.view(batch, new, groups, shares, self.rank)
        values = torch.einsum("btgrk,gdk->btgrd", mixed, self.up_values)
        return self.out(values.reshape(batch, new, config.q_size))


def _causal(new: int, scores: torch.Tensor) -> torch.Tensor:
    total = scores.shape[-1]
    return torch.ones(new, total, dtype=torch.bool, device=scores.device).tril(total - new)


@torch.no_grad()
def decoupled_decoder(base: Decoder, rank: int, seed: int = 0) -> LatentDecoder:
    """A decoder for timing, of the shape of `base`: random attention, all other modules shared.

    UserError for a rank out of range, and for a model with norms or biases of queries and keys,
    which this layout leaves out.
    """
    check_rank(base.config, rank)
    if base.config.qk_norm or base.config.qkv_bias:
        raise UserError(f"{base.config.name} has biases or norms of queries and keys: choose llama")
    config = replace(base.config, name=f"{base.config.name}-decoupled-{rank}", source=None)
    generator = torch.Generator(base.device).manual_seed(seed)

    def attention(index: int, source: Attention) -> DecoupledAttention:
        made = DecoupledAttention(config, index, rank, dtype=base.dtype, device=base.device)
        for weight in (made.qkv.weight, made.up_keys, made.up_values):
            weight.normal_(0.0, RANDOM_STD, generator=generator)
        made.out = source.out
        return made

    return share_modules(base, config, attention, LatentDecoder)
