"""Where single weight tensors come from, by their Hugging Face names: files, or random numbers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig

RANDOM_STD = 0.02  # the usual initialization: activations stay finite through the layers


class SafetensorsWeights(Mapping[str, torch.Tensor]):
    """The tensors of all `*.safetensors` of a folder, read one at a time when asked for."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from safetensors import SafetensorError, safe_open

        self._open = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                handle = safe_open(str(path), framework="pt", device=str(device))
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"cannot read the weights {path.name} in {folder}: {error}; "
                    "delete that folder and run again"
                ) from error
            self._open.update(dict.fromkeys(handle.keys(), handle))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._open[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)


class RandomWeights(Mapping[str, torch.Tensor]):
    """Normal weights of a model's shape, made on the device when asked for, the same each time.

    Norm weights are 1 and biases 0. A tensor depends on the seed, its name, dtype and device, so
    two implementations of the model get the same weights.
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int = 0
    ) -> None:
        self._shapes = weight_shapes(config)
        self._dtype, self._device, self._seed = dtype, device, seed

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            fill = torch.zeros if name.endswith(".bias") else torch.ones
            return fill(shape, dtype=self._dtype, device=self._device)
        seed = self._seed * 2**32 + zlib.crc32(name.encode())
        generator = torch.Generator(self._device).manual_seed(seed)
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        return tensor.normal_(0.0, RANDOM_STD, generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the model by its Hugging Face name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        for part, width in (("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size)):
            shapes[f"{prefix}self_attn.{part}_proj.weight"] = (width, hidden)
            if config.qkv_bias:
                shapes[f"{prefix}self_attn.{part}_proj.bias"] = (width,)
            if config.qk_norm and part != "v":
                shapes[f"{prefix}self_attn.{part}_norm.weight"] = (config.head_dim,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, config.q_size)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    return shapes
