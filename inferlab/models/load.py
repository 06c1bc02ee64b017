"""How does a model get into memory: real weights from the cache, or random ones of its shape?

`python -m inferlab.models.load [NAME ...]` prepares models ahead of time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from inferlab.errors import UserError
from inferlab.models.cachefolder import cache_root
from inferlab.models.config import ModelConfig, get_config
from inferlab.models.cost import weight_bytes
from inferlab.models.decoder import Decoder
from inferlab.models.hf import quiet_imports
from inferlab.models.placement import check_host_memory, torch_device, torch_dtype
from inferlab.models.store import ensure_model, find_model, model_sha256
from inferlab.models.weights import RandomWeights, SafetensorsWeights

__all__ = [
    "cache_root",
    "ensure_model",
    "find_model",
    "load_decoder",
    "load_tokenizer",
    "model_sha256",
    "open_weights",
    "resolve_config",
]


def resolve_config(model: str | ModelConfig) -> ModelConfig:
    """The preset of that name, or the configuration itself."""
    return model if isinstance(model, ModelConfig) else get_config(model)


def open_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    weights: str = "real",
    seed: int = 0,
) -> Mapping[str, torch.Tensor]:
    """Weight tensors by Hugging Face name, read or made one at a time."""
    if weights == "random":
        return RandomWeights(config, dtype, device, seed)
    if weights == "real":
        if config.source is None:
            raise UserError(f"{config.name} has no published weights: use weights='random'")
        return SafetensorsWeights(ensure_model(config.name), device)
    raise UserError(f"unknown weights {str(weights)[:40]!r}; known: real, random")


def load_decoder(
    model: str | ModelConfig,
    dtype: str = "bfloat16",
    device: str = "cpu",
    weights: str = "real",
    *,
    seed: int = 0,
    pack: bool = True,
) -> Decoder:
    """Our decoder with its weights on `device`.

    `pack` lets a CPU keep bfloat16 weights in its own layout (see `Projection`): the same results
    about twice as fast at small batches, but the plain weights are gone.
    """
    config = resolve_config(model)
    number, place = torch_dtype(dtype), torch_device(device)
    check_host_memory(weight_bytes(config, dtype), f"loading {config.name} in {dtype}", place)
    tensors = open_weights(config, number, place, weights, seed)
    decoder = Decoder(config, number, place)
    decoder.load_weights(tensors)
    if pack:
        decoder.pack()
    return decoder


def load_tokenizer(model: str | ModelConfig) -> Any:
    """The model's tokenizer, from the cache folder; no code from elsewhere is run."""
    with quiet_imports():
        from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        ensure_model(resolve_config(model).name), local_files_only=True
    )


def main(names: list[str]) -> int:
    """Prepare the named models (default: the embedded one); 0, or the exit code of an error."""
    try:
        for name in names or ["smollm2-135m"]:
            print(ensure_model(name))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
