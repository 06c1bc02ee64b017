"""What does a decode step take when few kernels do it, each reading what it must and no more?

The layers of a Decoder with the same weights, run through the kernels of `inferlab.kernels`: eight
launches a layer for a step (norm, product, rotation with store, attention, product with the
residual, norm, product with SwiGLU, product with the residual), and no wait for the device.
Letters: B sequences, T new tokens, M = B T rows, H hidden size, D head size, G key/value heads,
R query heads that share one, V vocabulary.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from inferlab import kernels
from inferlab.errors import UserError
from inferlab.kernels.attention import attend
from inferlab.kernels.attention_reference import gather
from inferlab.kvcache import KVCache
from inferlab.kvcache.view import StoreView
from inferlab.models.decoder import Attention, Decoder
from inferlab.models.layers import Projection
from inferlab.models.projections import projections

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# (queries [M, G R, D], qkv [M, (G R + 2 G) D], view) -> [M, G R D]
Mix = Callable[[torch.Tensor, torch.Tensor, StoreView], torch.Tensor]


class FusedDecoder:
    """`decoder`, called as it is, computed by fused kernels; same weights, nothing is copied.

    Needs a cache that says where new tokens go (`begin`, `view`: the bucketed and the paged one).
    Prompts use FlashAttention, or PyTorch's where a mask is given; a mask may only say that prompts
    are padded on the left, as `generate` does. UserError where the kernels cannot run, for a
    quantized or packed decoder, and for heads whose size is no power of two.
    """

    def __init__(self, decoder: Decoder) -> None:
        _check(decoder)
        self.decoder = decoder
        # All of it now: a CUDA graph keeps the table's address, so it may not grow.
        decoder.reserve(decoder.config.max_context_len)

    def __getattr__(self, name: str) -> Any:
        if name == "decoder":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.decoder, name)

    def __call__(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        all_positions: bool = False,
    ) -> torch.Tensor:
        """Logits [B, V] of what follows [B, T] `token_ids`, or [B, T, V]; as `Decoder.forward`."""
        if not hasattr(cache, "begin") or not hasattr(cache, "view"):
            raise UserError(
                f"fused kernels cannot write into a {type(cache).__name__}: "
                "use the bucketed or the paged cache"
            )
        new, past = token_ids.shape[1], cache.length
        self.decoder.reserve(past + new)
        padded = mask is not None
        mask = cache.begin(positions, mask)
        if new == 1:
            logits = self.step(token_ids, cache, positions)
            logits = logits[:, None] if all_positions else logits
        else:
            logits = self._prefill(token_ids, cache, positions, mask, padded, past, all_positions)
        cache.advance(new)
        return logits

    def step(
        self, token_ids: torch.Tensor, cache: KVCache, positions: torch.Tensor
    ) -> torch.Tensor:
        """Logits [B, V] after one token a sequence, [B, 1]; what a CUDA graph can hold.

        Between `cache.begin` and `cache.advance`, which are the caller's. Reads the cache through
        `view` only: the same launches, shapes and addresses whatever the lengths are.
        """
        from inferlab.kernels.split_kv import decode_attention

        views = self._views(cache)
        positions = positions.expand(token_ids.shape)
        return self._head(
            *self._stream(
                token_ids, positions, views, views[0].slots(positions), False,
                lambda queries, _qkv, view: decode_attention(queries, view).flatten(1),
            )
        )  # fmt: skip

    def _prefill(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        padded: bool,
        past: int,
        all_positions: bool,
    ) -> torch.Tensor:
        """Several tokens a sequence, `past` positions behind them in the cache."""
        from inferlab.kernels.flash_attention import flash_attention

        config, (batch, new) = self.decoder.config, token_ids.shape
        positions = positions.expand(batch, new)
        places = positions
        if padded:  # columns in front of a prompt get places below 0: not stored
            places = positions[:, -1:] + torch.arange(1 - new, 1, device=positions.device)

        def mix(queries: torch.Tensor, qkv: torch.Tensor, view: StoreView) -> torch.Tensor:
            queries = queries.view(batch, new, config.num_q_heads, config.head_dim)
            if past:
                keys, values = (store[:, :, : past + new] for store in gather(view))
            else:  # where the product left them; the keys were turned in place
                heads = qkv.view(batch, new, -1, config.head_dim).transpose(1, 2)
                keys, values = heads[:, config.num_q_heads :].chunk(2, dim=1)
            if mask is None:
                return flash_attention(queries, keys, values).reshape(batch * new, -1)
            return attend(queries, keys, values, mask).view(batch * new, -1)

        views = self._views(cache)
        x, residual = self._stream(
            token_ids, positions, views, views[0].slots(places), not past, mix
        )
        if all_positions:
            return self._head(x, residual).view(batch, new, -1)
        last = slice(new - 1, None, new)
        return self._head(x[last], None if residual is None else residual[last])

    def _views(self, cache: KVCache) -> list[StoreView]:
        return [cache.view(layer) for layer in range(self.decoder.config.num_layers)]

    def _stream(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        views: list[StoreView],
        slots: torch.Tensor,
        keep_keys: bool,
        mix: Mix,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [M, H] and what is still to be added to it, after the last layer."""
        from inferlab.kernels.linear import small_linear
        from inferlab.kernels.norm import add_rms_norm
        from inferlab.kernels.rope_store import rotate_and_store

        decoder = self.decoder
        rope = F.embedding(positions.flatten(), decoder.reserve(1))
        cosines, sines = rope.chunk(2, dim=-1)
        x, residual = F.embedding(token_ids.flatten(), decoder.embedding), None
        for layer, view in zip(decoder.layers, views, strict=True):
            attention, mlp = layer.attention, layer.mlp
            norms = (attention.q_norm.weight, attention.k_norm.weight) if attention.q_norm else ()
            normed, stream = add_rms_norm(
                x, residual, layer.attention_norm.weight, layer.attention_norm.eps
            )
            qkv = small_linear(normed, attention.qkv.weight, attention.qkv.bias)
            queries = rotate_and_store(
                qkv, cosines, sines, view, slots, *norms,
                eps=decoder.config.rms_norm_eps, keep_keys=keep_keys,
            )  # fmt: skip
            x, residual = _added(mix(queries, qkv, view), attention.out.weight, stream)
            normed, stream = add_rms_norm(x, residual, layer.mlp_norm.weight, layer.mlp_norm.eps)
            inner = small_linear(normed, mlp.gate_up.weight, gated=True)
            x, residual = _added(inner, mlp.down.weight, stream)
        return x, residual

    def _head(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """[M, H] -> logits [M, V]."""
        from inferlab.kernels.linear import small_linear
        from inferlab.kernels.norm import add_rms_norm

        norm = self.decoder.norm
        normed, _ = add_rms_norm(x, residual, norm.weight, norm.eps)
        return small_linear(normed, self.decoder.head.weight)


def _added(
    x: torch.Tensor, weight: torch.Tensor, stream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """stream + x W^T as (sum, None), or with many rows as parts that the next norm adds."""
    from inferlab.kernels.linear import MOST_ROWS, small_linear

    if x.shape[0] <= MOST_ROWS:
        return small_linear(x, weight, residual=stream), None
    return F.linear(x, weight), stream


def _check(decoder: Decoder) -> None:
    """Refuse what the kernels cannot compute."""
    if why := kernels.why_unavailable(decoder.device):
        raise UserError(f"the fused kernels cannot run on {decoder.device}: {why}")
    if decoder.dtype not in DTYPES:
        name = str(decoder.dtype).removeprefix("torch.")
        raise UserError(f"the fused kernels take bfloat16, float16 or float32, not {name}")
    for layer in decoder.layers:
        if type(layer.attention) is not Attention:
            raise UserError(
                f"the fused kernels do not know {type(layer.attention).__name__}: "
                "use the plain decoder for this model"
            )
    for name, module in projections(decoder):
        if not isinstance(module, Projection):
            raise UserError(
                f"the fused kernels multiply by plain weights and {name} is quantized: "
                "load the decoder without quantization"
            )
        if module.weight is None:
            raise UserError(
                f"{name} was packed for oneDNN and its plain weights are gone: load with pack=False"
            )
    from inferlab.kernels.rope_store import check_head_dim

    check_head_dim(decoder.config.head_dim)
