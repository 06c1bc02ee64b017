"""A decoder small enough to quantize many times, whose widths divide into groups of 32."""

import torch
from tiny_models import tiny

from inferlab.models.config import ModelConfig
from inferlab.models.decoder import Decoder
from inferlab.models.weights import RandomWeights

SMALL = tiny(
    "small", hidden_size=64, intermediate_size=96, num_q_heads=4, head_dim=16, vocab_size=64
)
SMALL_BIASED = tiny(
    "small-biased",
    hidden_size=64,
    intermediate_size=96,
    num_q_heads=4,
    head_dim=16,
    vocab_size=64,
    qkv_bias=True,
    qk_norm=True,
    tie_embeddings=False,
)


def lively_weights(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights, norms and biases far from their start values, so that each counts."""
    generator = torch.Generator().manual_seed(seed)
    tensors = RandomWeights(config, torch.float32, torch.device("cpu"), seed)
    return {
        name: tensor * 10
        if tensor.ndim == 2
        else 1 + 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
    }


def make_decoder(config: ModelConfig = SMALL, tensors=None) -> Decoder:
    decoder = Decoder(config)
    decoder.load_weights(lively_weights(config) if tensors is None else tensors)
    return decoder


def text(windows: int = 8, length: int = 32, seed: int = 1, vocab_size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (windows, length), generator=generator)


@torch.no_grad()
def all_logits(decoder: Decoder, token_ids: torch.Tensor) -> torch.Tensor:
    windows, length = token_ids.shape
    cache = decoder.new_cache("none", windows, length)
    return decoder(token_ids, cache, torch.arange(length)[None], all_positions=True)


def divergence(decoder: Decoder, expected: torch.Tensor, token_ids: torch.Tensor) -> float:
    """Mean KL divergence from the expected logits, in nats."""
    old = expected.double().log_softmax(-1)
    new = all_logits(decoder, token_ids).double().log_softmax(-1)
    return (old.exp() * (old - new)).sum(-1).mean().item()
