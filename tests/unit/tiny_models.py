"""Shapes small enough to run hundreds of times, one for each feature of the decoder."""

from inferlab.models.config import ModelConfig, RopeScaling

_BASE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_layers": 2,
    "num_q_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "max_context_len": 128,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "tie_embeddings": True,
}


def tiny(name="tiny", **changes) -> ModelConfig:
    return ModelConfig(name=name, **{**_BASE, **changes})


TINY = {
    "llama": tiny("tiny-llama"),
    "llama-untied": tiny("tiny-llama-untied", tie_embeddings=False, rms_norm_eps=1e-6),
    "llama-rope-scaled": tiny(
        "tiny-llama-scaled",
        rope_theta=500.0,
        head_dim=16,
        rope_scaling=RopeScaling(factor=8.0, original_max_context_len=32),
    ),
    "llama-mha-odd": tiny(
        "tiny-mha", hidden_size=35, intermediate_size=51, num_q_heads=5, num_kv_heads=5, head_dim=6
    ),
    "qwen2": tiny("tiny-qwen2", qkv_bias=True, num_q_heads=7, num_kv_heads=1),
    "qwen3": tiny("tiny-qwen3", qk_norm=True, head_dim=10, tie_embeddings=False),
}

# Every matrix has inputs in groups of 32 and 64 and outputs in multiples of 16: the packed
# kernels take it.
QUANTIZABLE = tiny(
    "tiny-64",
    hidden_size=64,
    intermediate_size=128,
    num_q_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=64,
)
