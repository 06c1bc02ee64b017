"""How does a Llama- or Qwen-style model turn token ids into the logits of the next token?

Letters: B sequences, T new tokens, S = positions in the cache + T, H hidden size, D head size,
G key/value heads, R = query heads that share one of them.
Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from inferlab.errors import UserError
from inferlab.kernels.attention import attend
from inferlab.kvcache import CacheShape, KVCache, make_cache
from inferlab.models.config import ModelConfig
from inferlab.models.layers import (
    Projection,
    RMSNorm,
    apply_rope,
    can_pack,
    rope_table,
)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; queries, keys and values in one product."""

    def __init__(self, config: ModelConfig, layer: int, **factory) -> None:
        super().__init__()
        self.layer = layer
        self.config = config
        self.num_rotated = config.num_q_heads + config.num_kv_heads
        self.num_heads = self.num_rotated + config.num_kv_heads
        self.qkv = Projection(config.hidden_size, config.qkv_size, config.qkv_bias, **factory)
        self.out = Projection(config.q_size, config.hidden_size, False, **factory)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, **factory)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, **factory)

    def forward(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        cache: KVCache,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]."""
        batch, new, _ = x.shape
        num_q = self.config.num_q_heads
        heads = self.qkv(x).view(batch, new, self.num_heads, self.config.head_dim)
        rotated, values = heads[:, :, : self.num_rotated], heads[:, :, self.num_rotated :]
        if self.q_norm is not None:
            rotated = torch.cat(
                (self.q_norm(rotated[:, :, :num_q]), self.k_norm(rotated[:, :, num_q:])), dim=2
            )
        rotated = apply_rope(rotated, *rope)
        keys = rotated[:, :, num_q:].transpose(1, 2)
        queries, values = rotated[:, :, :num_q], values.transpose(1, 2)
        if hasattr(cache, "attend"):  # one whose attention reads the store where it lies
            return self.out(cache.attend(self.layer, queries, keys, values, mask))
        return self.out(attend(queries, *cache.update(self.layer, keys, values), mask))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, config: ModelConfig, **factory) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up = Projection(hidden, 2 * inner, False, **factory)
        self.down = Projection(inner, hidden, False, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    """One block: attention, then MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, **factory) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)
        self.attention = Attention(config, layer, **factory)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)
        self.mlp = MLP(config, **factory)

    def forward(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        cache: KVCache,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]."""
        x = x + self.attention(self.attention_norm(x), rope, cache, mask)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """The whole model. `dtype` and `device` of the parameters are fixed when it is made."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.config = config
        table = torch.empty(config.vocab_size, config.hidden_size, **factory)
        self.embedding = nn.Parameter(table, requires_grad=False)
        self.layers = nn.ModuleList(
            Layer(config, index, **factory) for index in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)
        self.head = Projection(config.hidden_size, config.vocab_size, False, **factory)
        if config.tie_embeddings:
            self.head.weight = self.embedding
        self._rope: torch.Tensor | None = None
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights and activations."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    def forward(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        all_positions: bool = False,
        rows: Sequence[int] | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of what follows [B, T] `token_ids`: [B, V] of the last, or [B, T, V] of all.

        `rows` names columns of a single row, B = 1, whose logits are wanted: [len(rows), V].

        `positions` is [B, T], or [1, T] when all rows agree; none may exceed cache.length + T - 1.
        `mask` [B, 1, T, S] is only needed where rows are padded. The cache grows by T.
        """
        x = self.residual_stream(token_ids, cache, positions, mask)
        if rows is not None:
            if not len(rows):  # the head is not read for nothing
                return x.new_empty(0, self.config.vocab_size)
            return self.head(self.norm(x[0, rows]))
        return self.head(self.norm(x if all_positions else x[:, -1]))

    def final_hidden(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[B, T] whole texts, each from position 0 on -> [B, T, H]: what the head reads."""
        batch, length = token_ids.shape
        positions = torch.arange(length, device=self.device)[None]
        cache = self.new_cache("none", batch, length)
        return self.norm(self.residual_stream(token_ids, cache, positions))

    def residual_stream(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, T, H] after the last layer, before the final norm; arguments as of `forward`."""
        new = token_ids.shape[1]
        table = self.reserve(cache.length + new)
        cosines, sines = F.embedding(positions, table).unsqueeze(2).chunk(2, dim=-1)
        x = F.embedding(token_ids, self.embedding)
        if hasattr(cache, "begin"):  # one that places tokens by position
            mask = cache.begin(positions, mask)
        for layer in self.layers:
            x = layer(x, (cosines, sines), cache, mask)
        cache.advance(new)
        return x

    def reserve(self, length: int) -> torch.Tensor:
        """The rotary table [at least `length`, 2 D], grown by doubling."""
        if self._rope is None or self._rope.shape[0] < length:
            if length > self.config.max_context_len:
                raise UserError(
                    f"{length} tokens are more than the {self.config.max_context_len} that "
                    f"{self.config.name} was trained for: ask for a shorter prompt or output"
                )
            held = 512 if self._rope is None else self._rope.shape[0]
            size = min(max(length, 2 * held), self.config.max_context_len)
            with torch.inference_mode(False):  # compiled code must meet one kind of tensor only
                self._rope = rope_table(self.config, size, self.dtype, self.device)
        return self._rope

    def new_cache(self, kind: str, batch_size: int, capacity: int) -> KVCache:
        """An empty cache of this model's shape, dtype and device."""
        config = self.config
        shape = CacheShape(
            config.num_layers, batch_size, config.num_kv_heads, capacity, config.head_dim
        )
        return make_cache(kind, shape, self.dtype, self.device)

    def pack(self) -> bool:
        """Pack all plain weights for this CPU where that helps; says whether it could.

        Afterwards the plain weights are gone, but for the embedding table: a tied table is then
        held twice, as rows to look up and as the packed head.
        """
        if self.device.type != "cpu" or not can_pack(self.dtype):
            return False
        for module in self.modules():
            if isinstance(module, Projection) and module.weight is not None:
                module.pack()
        return True

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy in weights under their Hugging Face names, fusing q/k/v and gate/up.

        Raises UserError when a name is missing or a shape is not this model's.
        """
        taken = set()

        def copy(target: torch.Tensor, *names: str) -> None:
            missing = [name for name in names if name not in tensors]
            if missing:
                raise UserError(f"the weights of {self.config.name} lack {missing[0]}")
            parts = [tensors[name] for name in names]
            rows = sum(part.shape[0] for part in parts)
            if (rows, *parts[0].shape[1:]) != tuple(target.shape):
                raise UserError(
                    f"{names[0]} has shape {list(parts[0].shape)}, not that of {self.config.name}"
                )
            start = 0
            for part in parts:
                target[start : start + part.shape[0]].copy_(part)
                start += part.shape[0]
            taken.update(names)

        copy(self.embedding, "model.embed_tokens.weight")
        copy(self.norm.weight, "model.norm.weight")
        if not self.config.tie_embeddings:
            copy(self.head.weight, "lm_head.weight")
        for index, layer in enumerate(self.layers):
            prefix = f"model.layers.{index}."
            attention, mlp = layer.attention, layer.mlp
            qkv = [f"{prefix}self_attn.{part}_proj" for part in "qkv"]
            copy(layer.attention_norm.weight, f"{prefix}input_layernorm.weight")
            copy(layer.mlp_norm.weight, f"{prefix}post_attention_layernorm.weight")
            copy(attention.qkv.weight, *(f"{name}.weight" for name in qkv))
            if self.config.qkv_bias:
                copy(attention.qkv.bias, *(f"{name}.bias" for name in qkv))
            if self.config.qk_norm:
                copy(attention.q_norm.weight, f"{prefix}self_attn.q_norm.weight")
                copy(attention.k_norm.weight, f"{prefix}self_attn.k_norm.weight")
            copy(attention.out.weight, f"{prefix}self_attn.o_proj.weight")
            copy(mlp.gate_up.weight, f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight")
            copy(mlp.down.weight, f"{prefix}mlp.down_proj.weight")
        unused = set(tensors) - taken - {"lm_head.weight"}
        if unused:
            raise UserError(
                f"{self.config.name} has no place for the weight {sorted(unused)[0]}: "
                "the preset and the files differ"
            )
