"""What becomes of a trained model whose keys and values are squeezed through a few numbers a token?

[k; v] = W x is replaced by U (D x) with D [r, H] and U [2 kv, r]: only c = D x is kept. U is an
orthonormal basis of the directions in which keys and values of a text vary most, D = U^T W.
Keys must be rotated by their position between U and the query, so U cannot be multiplied into the
query's weights: every step makes all S keys again, 2 S r kv FLOPs a layer. Values are not rotated:
their half of U moves behind the weighted sum (`absorb`). DeepSeek's models are trained with a
second, rotated part of each key that all heads share, so that the rest needs no rotation and both
halves of U move (`models.decoupled`).
Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 and appendix C.
Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from inferlab.errors import UserError
from inferlab.kernels.attention import attend
from inferlab.kvcache import CacheShape, KVCache
from inferlab.kvcache.latent import LatentCache, Rope
from inferlab.models.config import ModelConfig
from inferlab.models.decoder import Attention, Decoder
from inferlab.models.heads import check_rank
from inferlab.models.layers import Projection, apply_rope
from inferlab.models.layouts import share_modules
from inferlab.models.projections import plain_weight

MADE_BYTES = 2**28  # keys and values that are made at once
Moments = Mapping[str, torch.Tensor]  # projection -> [H, H] mean of x x^T of its input


@dataclass(frozen=True, slots=True)
class Factors:
    """W [2 kv, H] is about up @ down; `kept_ratio` of its outputs' variance is left."""

    up: torch.Tensor  # [2 kv, r], orthonormal columns but for the balance of keys and values
    down: torch.Tensor  # [r, H]
    kept_ratio: float


def factorize(
    weight: torch.Tensor, config: ModelConfig, rank: int, moment: torch.Tensor | None = None
) -> Factors:
    """The best rank-r stand-in for [W_k; W_v] [2 kv, H], by a singular value decomposition.

    Best for inputs with second moments `moment` [H, H] (None: all directions alike): the left
    singular vectors of W M^(1/2) are the eigenvectors of W M W^T. Keys are several times larger
    than values, so both halves are scaled to the same variance before. float32 out.
    """
    check_rank(config, rank)
    wide = weight.double()
    if moment is None:
        square = wide @ wide.T
    elif moment.shape != (config.hidden_size, config.hidden_size):
        raise UserError(
            f"second moments of {list(moment.shape)} are not those of {config.hidden_size} "
            "channels: observe this decoder"
        )
    else:
        square = wide @ moment.to(wide) @ wide.T
    if not torch.isfinite(square).all():
        raise UserError("keys or values hold inf or NaN: check the weights, or observe again")
    energy = square.diagonal().view(2, config.kv_size).sum(1).clamp(min=1e-30)
    balance = energy.rsqrt().repeat_interleave(config.kv_size)  # [2 kv]
    values, vectors = torch.linalg.eigh(square * balance[:, None] * balance)
    top = vectors[:, -rank:].flip(1)
    kept = values[-rank:].clamp(min=0).sum() / values.clamp(min=0).sum()
    down = top.T @ (wide * balance[:, None])
    return Factors((top / balance[:, None]).float(), down.float(), float(kept))


class LatentAttention(nn.Module):
    """Attention over latents [r] a token; `qkv` makes the queries and the latent in one product.

    With a plain cache it keeps the keys and values that it made: the same function.
    """

    def __init__(self, config: ModelConfig, layer: int, rank: int, absorb: bool, **factory) -> None:
        super().__init__()
        self.config, self.layer, self.rank, self.absorb = config, layer, rank, absorb
        self.qkv = Projection(config.hidden_size, config.q_size + rank, config.qkv_bias, **factory)
        self.up = nn.Parameter(
            torch.empty(2 * config.kv_size, rank, **factory), requires_grad=False
        )
        self.up_bias = None  # [2 kv] where the model has one
        self.out = self.q_norm = self.k_norm = None

    @property
    def kept_size(self) -> int:
        """Numbers that a latent cache holds for a token."""
        return self.rank

    @property
    def angle_dim(self) -> int:
        """Size of the angles beside them: what is kept is not rotated yet."""
        return self.config.head_dim

    def forward(
        self, x: torch.Tensor, rope: Rope, cache: KVCache, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]."""
        config = self.config
        queries, latents = self.qkv(x).split((config.q_size, self.rank), dim=-1)
        queries = queries.unflatten(-1, (config.num_q_heads, config.head_dim))
        if self.q_norm is not None:
            queries = self.q_norm(queries)
        queries = apply_rope(queries, *rope)
        if not isinstance(cache, LatentCache):
            return self.out(
                attend(queries, *cache.update(self.layer, *self.remade(latents, rope)), mask)
            )
        latents, rope = cache.append(self.layer, latents, rope)  # [B, S, r]
        attended = [
            self.attend_latents(*part) for part in self._slices(queries, latents, *rope, mask)
        ]
        return self.out(torch.cat(attended) if len(attended) > 1 else attended[0])

    def attend_latents(
        self,
        queries: torch.Tensor,
        latents: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Queries [B, T, GR, D] over latents [B, S, r] and the angles of theirs -> [B, T, GR D]."""
        rope = (cosines, sines)
        if self.absorb and queries.shape[1] == 1:
            return self.attend_absorbed(queries, latents, rope, mask)
        return attend(queries, *self.remade(latents, rope), mask)

    def _slices(self, *tensors: torch.Tensor | None) -> Iterator[tuple]:
        """`tensors` of the rows of a few sequences at a time; one row stands for all, None too.

        What is made need not all be in memory at once: it is larger than what is kept.
        """
        batch, length, _ = tensors[1].shape
        made_bytes = length * 2 * self.config.kv_size * self.up.element_size()
        rows = max(1, MADE_BYTES // made_bytes)
        for start in range(0, batch, rows):
            yield tuple(
                t if t is None or t.shape[0] < batch else t[start : start + rows] for t in tensors
            )

    def remade(self, latents: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, S, r] -> keys, rotated, and values, [B, G, S, D] each: 4 S r kv FLOPs a sequence."""
        made = nn.functional.linear(latents, self.up, self.up_bias)
        keys, values = made.unflatten(-1, (2, -1, self.config.head_dim)).unbind(2)
        return self._rotated(keys, rope), values.transpose(1, 2)

    def attend_absorbed(
        self, queries: torch.Tensor, latents: torch.Tensor, rope: Rope, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """One new token, [B, 1, GR, D] -> [B, 1, GR D]: keys are made, values are not.

        sum_s p_s (U_v c_s) = U_v sum_s p_s c_s: latents are summed, and the sum is multiplied.
        """
        config, kv = self.config, self.config.kv_size
        bias = None if self.up_bias is None else self.up_bias[:kv]
        made = nn.functional.linear(latents, self.up[:kv], bias)
        keys = self._rotated(made.unflatten(-1, (-1, config.head_dim)), rope)  # [B, G, S, D]
        grouped = queries.view(-1, config.num_kv_heads, config.group_size, config.head_dim)
        scores = grouped @ keys.transpose(-1, -2) * config.head_dim**-0.5  # [B, G, R, S]
        mixed = weights_of_scores(scores, mask).flatten(1, 2) @ latents  # [B, GR, r]
        up = self.up[kv:].view(config.num_kv_heads, config.head_dim, self.rank)
        values = mixed.unflatten(1, (config.num_kv_heads, -1)) @ up.transpose(1, 2)
        if self.up_bias is not None:  # the weights sum to 1
            values = values + self.up_bias[kv:].view(config.num_kv_heads, 1, config.head_dim)
        return values.reshape(-1, 1, config.q_size)

    def _rotated(self, keys: torch.Tensor, rope: Rope) -> torch.Tensor:
        if self.k_norm is not None:
            keys = self.k_norm(keys)
        return apply_rope(keys, *rope).transpose(1, 2)


def weights_of_scores(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the last axis in float32, of [B, G, R, S] scores; `mask` as in `attend`."""
    if mask is not None:
        floor = mask if mask.is_floating_point() else mask.logical_not() * -1e30
        scores = scores + floor
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)


class LatentDecoder(Decoder):
    """A decoder that keeps latents; made by `latent_decoder`."""

    def new_cache(self, kind: str, batch_size: int, capacity: int) -> KVCache:
        """An empty cache; kind "latent" keeps latents, the others the keys and values made."""
        if kind != "latent":
            return super().new_cache(kind, batch_size, capacity)
        first = self.layers[0].attention
        shape = CacheShape(self.config.num_layers, batch_size, 1, capacity, first.kept_size)
        return LatentCache(shape, self.dtype, self.device, first.angle_dim)


@torch.no_grad()
def latent_decoder(
    base: Decoder, rank: int, moments: Moments | None = None, *, absorb: bool = False
) -> LatentDecoder:
    """`base` with keys and values of rank `rank`; every other module is shared with it.

    `moments` are those of "layers.N.attention.qkv" (see `compression.latents`). `base` needs plain
    weights: load it with pack=False. UserError for a rank out of range or a missing moment.
    """
    check_rank(base.config, rank)
    config = replace(base.config, name=f"{base.config.name}-latent-{rank}", source=None)

    def attention(index: int, source: Attention) -> LatentAttention:
        name = f"layers.{index}.attention.qkv"
        if moments is not None and name not in moments:
            raise UserError(f"the second moments lack {name}: observe this decoder")
        made = LatentAttention(config, index, rank, absorb, dtype=base.dtype, device=base.device)
        made.out, made.q_norm, made.k_norm = source.out, source.q_norm, source.k_norm
        weight, q_size = plain_weight(name, source.qkv), config.q_size
        factors = factorize(weight[q_size:], config, rank, moments and moments[name])
        made.up.copy_(factors.up)
        made.qkv.weight[:q_size].copy_(weight[:q_size])
        made.qkv.weight[q_size:].copy_(factors.down)
        if source.qkv.bias is not None:
            made.qkv.bias.zero_()
            made.qkv.bias[:q_size].copy_(source.qkv.bias[:q_size])
            made.up_bias = nn.Parameter(source.qkv.bias[q_size:].clone(), requires_grad=False)
        return made

    return share_modules(base, config, attention, LatentDecoder)
