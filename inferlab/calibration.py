"""What are this machine's ceilings and overhead, measured just before a prediction?

Chapter: chapters/02_roofline.md    Lab: labs/02_roofline.ipynb
"""

from __future__ import annotations

import dataclasses
import functools
import statistics

from inferlab.hardware.probes import matmul_rate, read_bandwidth
from inferlab.models.config import ModelConfig
from inferlab.models.cost import weight_read_bytes
from inferlab.roofline import Ceilings

MANY_TOKENS = 2048  # more rows give the same rate and cost probe time
NARROW_SIZE = 64  # hidden size at which a layer's arithmetic costs next to nothing


@functools.cache
def weight_bandwidth(config: ModelConfig, dtype: str, device: str) -> float:
    """Bytes/s at which this machine reads as many bytes as the weights of `config` take."""
    size = weight_read_bytes(config, dtype)
    if device != "cpu":
        size = min(size, 1 << 32)  # beyond every cache already, and quick
    return statistics.median(read_bandwidth(size, device))


@functools.cache
def matrix_rate(config: ModelConfig, dtype: str, device: str, num_tokens: int) -> float:
    """FLOP/s of the model's largest layer product with `num_tokens` rows."""
    rate = matmul_rate(num_tokens, 2 * config.intermediate_size, config.hidden_size, dtype, device)
    return statistics.median(rate)


def quick_ceilings(config: ModelConfig, dtype: str, device: str) -> Ceilings:
    """Typical ceilings of this machine for `config`, at a number of rows that saturates it."""
    return Ceilings(
        read_bytes_per_s=weight_bandwidth(config, dtype, device),
        flops_per_s=matrix_rate(config, dtype, device, MANY_TOKENS),
    )


def narrow(config: ModelConfig) -> ModelConfig:
    """A model as deep as `config` and so narrow that a step of it is all overhead."""
    return dataclasses.replace(
        config,
        name=f"{config.name}-narrow",
        hidden_size=NARROW_SIZE,
        intermediate_size=NARROW_SIZE,
        num_q_heads=2,
        num_kv_heads=1,
        head_dim=NARROW_SIZE // 2,
        vocab_size=NARROW_SIZE,
        source=None,
    )
