"""How do this package's shapes map onto Hugging Face's configurations, and back?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig, RopeScaling

_FAMILIES = ("llama", "qwen2", "qwen3")


@contextmanager
def quiet_imports() -> Iterator[None]:
    """For importing from transformers: in a notebook without ipywidgets, tqdm warns of it with a
    path of the machine."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        yield


def family(config: ModelConfig) -> str:
    """Hugging Face's model type for this shape: llama, qwen2 (bias) or qwen3 (q/k norm)."""
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.qkv_bias else "llama"


def to_hf_config(config: ModelConfig) -> Any:
    """The transformers configuration of the same shape."""
    from transformers import AutoConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_context_len,
        }
    return AutoConfig.for_model(
        family(config),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_q_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_context_len,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_embeddings,
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
    )


def from_hf_config(hf_config: Any, name: str) -> ModelConfig:
    """The ModelConfig of a transformers configuration; a UserError for another family."""
    kind = hf_config.model_type
    rope = hf_config.rope_parameters
    rope_type = rope.get("rope_type", "default")
    if kind not in _FAMILIES or rope_type not in ("default", "llama3"):
        raise UserError(
            f"{name}: a model of type {kind} with {rope_type} RoPE is not supported; "
            f"known: {', '.join(_FAMILIES)} with default or llama3 RoPE"
        )
    scaling = None
    if rope_type == "llama3":
        scaling = RopeScaling(
            rope["factor"],
            rope["original_max_position_embeddings"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
        )
    heads = hf_config.num_attention_heads
    return ModelConfig(
        name=name,
        hidden_size=hf_config.hidden_size,
        intermediate_size=hf_config.intermediate_size,
        num_layers=hf_config.num_hidden_layers,
        num_q_heads=heads,
        num_kv_heads=hf_config.num_key_value_heads,
        head_dim=getattr(hf_config, "head_dim", None) or hf_config.hidden_size // heads,
        vocab_size=hf_config.vocab_size,
        max_context_len=hf_config.max_position_embeddings,
        rope_theta=rope["rope_theta"],
        rms_norm_eps=hf_config.rms_norm_eps,
        tie_embeddings=hf_config.tie_word_embeddings,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        rope_scaling=scaling,
    )
