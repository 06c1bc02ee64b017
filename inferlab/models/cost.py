"""How many bytes must move and how many operations must be done for one step of a model?

Pure arithmetic over a ModelConfig, without torch. Letters: B sequences, T prompt tokens, S
positions attended to, H hidden size, I intermediate size, L layers, V vocabulary. A matrix product
of [m, k] and [k, n] counts 2 m k n FLOPs; norms, RoPE, softmax and additions are not counted
(under 1 % of the matrix products at these shapes), nor are the bytes of activations, nor the B
embedding rows that a step looks up. Weights may be quantized: their bytes then come from a
WeightFormat, and whatever `keep` names stays in `dtype`, as do norms, biases and the KV cache.
Chapter: chapters/02_roofline.md    Lab: labs/02_roofline.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig
from inferlab.quant.formats import WeightFormat, get_format

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one forward pass must move (bytes) and compute (FLOPs), at the least."""

    weight_bytes: float
    kv_read_bytes: float
    kv_write_bytes: float
    flops: float

    @property
    def bytes(self) -> float:
        """All bytes moved: weights, and keys and values read and written."""
        return self.weight_bytes + self.kv_read_bytes + self.kv_write_bytes

    @property
    def flops_per_byte(self) -> float:
        """Arithmetic intensity."""
        return self.flops / self.bytes


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number; a UserError that lists the dtypes when `dtype` is not one."""
    if dtype not in DTYPE_BYTES:
        raise UserError(f"unknown dtype {str(dtype)[:40]!r}; known: {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def layer_matmul_params(config: ModelConfig) -> int:
    """Weights in one layer's matrix products: H (q + 2 kv) + q H + 3 H I."""
    attention = config.hidden_size * (config.qkv_size + config.q_size)
    return attention + 3 * config.hidden_size * config.intermediate_size


def layer_params(config: ModelConfig) -> int:
    """All parameters of one layer: matrix products, two norms, optional bias and q/k norms."""
    bias = config.qkv_size if config.qkv_bias else 0
    qk_norm = 2 * config.head_dim if config.qk_norm else 0
    return layer_matmul_params(config) + 2 * config.hidden_size + bias + qk_norm


def head_params(config: ModelConfig) -> int:
    """Weights of the output head, V H, whether or not it is the embedding table."""
    return config.vocab_size * config.hidden_size


def num_parameters(config: ModelConfig) -> int:
    """Parameters of the model; a tied head counts once (smollm2-135m: 134,515,008)."""
    tables = head_params(config) * (1 if config.tie_embeddings else 2)
    return config.num_layers * layer_params(config) + config.hidden_size + tables


def layer_projections(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(outputs N, inputs K) of each product with weights in a layer, in the decoder's names."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "attention.qkv": (config.qkv_size, hidden),
        "attention.out": (hidden, config.q_size),
        "mlp.gate_up": (2 * inner, hidden),
        "mlp.down": (hidden, inner),
    }


def check_format(config: ModelConfig, name: str) -> WeightFormat:
    """The weight format called `name`; a UserError when a matrix of `config` has no such groups."""
    format = get_format(name)
    for _, inputs in layer_projections(config).values():
        format.num_groups(inputs)
    return format


def is_kept(name: str, keep: Sequence[str]) -> bool:
    """Whether `keep` names projection `name`: whole, by its end ("mlp.down") or its beginning
    ("layers.0")."""
    return any(
        name == word or name.endswith(f".{word}") or name.startswith(f"{word}.") for word in keep
    )


def weight_bytes(
    config: ModelConfig,
    dtype: str,
    weight_format: WeightFormat | None = None,
    keep: Sequence[str] = (),
) -> float:
    """Bytes of all weights in memory, a tied table counted once.

    A quantized head is a matrix of its own: the embedding table stays beside it in `dtype`.
    """
    plain = num_parameters(config)
    if weight_format and config.tie_embeddings and not is_kept("head", keep):
        plain += head_params(config)
    return plain * dtype_bytes(dtype) - _saved_bytes(config, dtype, weight_format, keep)


def weight_read_bytes(
    config: ModelConfig,
    dtype: str,
    weight_format: WeightFormat | None = None,
    keep: Sequence[str] = (),
) -> float:
    """Weight bytes that one forward pass reads: every layer, the final norm and the head once.

    An untied embedding table is not read, but for the rows of the tokens (left out).
    """
    params = config.num_layers * layer_params(config) + config.hidden_size + head_params(config)
    return params * dtype_bytes(dtype) - _saved_bytes(config, dtype, weight_format, keep)


def _saved_bytes(
    config: ModelConfig, dtype: str, weight_format: WeightFormat | None, keep: Sequence[str]
) -> float:
    """Bytes by which `weight_format` is smaller than `dtype`, over all projections but the kept."""
    if weight_format is None:
        return 0
    matrices = {
        f"layers.{index}.{part}": shape
        for part, shape in layer_projections(config).items()
        for index in range(config.num_layers)
    }
    matrices["head"] = (config.vocab_size, config.hidden_size)
    return sum(
        n * k * dtype_bytes(dtype) - weight_format.matrix_bytes(n, k)
        for name, (n, k) in matrices.items()
        if not is_kept(name, keep)
    )


def kv_bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """Bytes that one token of one sequence keeps in the cache: 2 L kv_heads head_dim bytes."""
    return 2 * config.num_layers * config.kv_size * dtype_bytes(dtype)


def kv_cache_bytes(config: ModelConfig, dtype: str, batch_size: int, context_len: int) -> int:
    """Bytes of the cache of B sequences of `context_len` tokens."""
    return batch_size * context_len * kv_bytes_per_token(config, dtype)


def decode_cost(
    config: ModelConfig,
    dtype: str,
    batch_size: int,
    context_len: int,
    weight_format: WeightFormat | None = None,
    keep: Sequence[str] = (),
) -> StepCost:
    """Cost of one decode step of B sequences that attend to S = `context_len` positions each.

    `context_len` counts the new token. FLOPs: 2 B (L layer weights + V H) for the products with
    weights, 4 B S q_size L for scores and weighted sums. Bytes: all weights once, B S tokens of
    keys and values read, B written.
    """
    _check_whole(batch_size=batch_size, context_len=context_len)
    matmul = config.num_layers * layer_matmul_params(config) + head_params(config)
    attention = 4 * context_len * config.q_size * config.num_layers
    per_token = kv_bytes_per_token(config, dtype)
    return StepCost(
        weight_bytes=weight_read_bytes(config, dtype, weight_format, keep),
        kv_read_bytes=batch_size * context_len * per_token,
        kv_write_bytes=batch_size * per_token,
        flops=batch_size * (2 * matmul + attention),
    )


def prefill_cost(
    config: ModelConfig,
    dtype: str,
    batch_size: int,
    prompt_len: int,
    weight_format: WeightFormat | None = None,
    keep: Sequence[str] = (),
) -> StepCost:
    """Cost of reading B prompts of T tokens in one pass, with logits of the last token only.

    FLOPs: 2 B T L (layer weights) + 2 B V H for the head of the last token, and causal attention
    over T (T + 1) / 2 pairs: 2 B T (T + 1) q_size L. Bytes: weights once, keys and values written
    once and read once (a tiled kernel that reads them more often hits the caches).
    A pass without a cache over T tokens costs the same FLOPs.
    """
    _check_whole(batch_size=batch_size, prompt_len=prompt_len)
    matmul = prompt_len * config.num_layers * layer_matmul_params(config) + head_params(config)
    attention = 2 * prompt_len * (prompt_len + 1) * config.q_size * config.num_layers
    kv_bytes = kv_cache_bytes(config, dtype, batch_size, prompt_len)
    return StepCost(
        weight_bytes=weight_read_bytes(config, dtype, weight_format, keep),
        kv_read_bytes=kv_bytes,
        kv_write_bytes=kv_bytes,
        flops=batch_size * (2 * matmul + attention),
    )


def _check_whole(**values: int) -> None:
    for name, value in values.items():
        if value < 1 or value != int(value):
            raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
