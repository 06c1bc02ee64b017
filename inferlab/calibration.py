"""What are this machine's ceilings and overhead, measured just before a prediction?

Chapter: chapters/02_roofline.md    Lab: labs/02_roofline.ipynb
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import TYPE_CHECKING

from inferlab.hardware.probes import matmul_rate, read_bandwidth, timed
from inferlab.models.config import ModelConfig
from inferlab.models.cost import weight_read_bytes
from inferlab.roofline import Ceilings

if TYPE_CHECKING:
    import torch

MANY_TOKENS = 2048  # more rows give the same rate and cost probe time
MOST_PROBE_BYTES = 1 << 32  # beyond every cache already, and quick
NARROW_SIZE = 64  # hidden size at which a layer's arithmetic costs next to nothing


@functools.cache
def weight_bandwidth(config: ModelConfig, dtype: str, device: str) -> float:
    """Bytes/s at which this machine reads as many bytes as the weights of `config` take."""
    size = weight_read_bytes(config, dtype)
    if device != "cpu":
        size = min(size, MOST_PROBE_BYTES)
    return statistics.median(read_bandwidth(size, device))


def reading_s(num_bytes: int, device: str) -> float:
    """Seconds in which this machine reads `num_bytes` now, the median of three passes.

    A machine that is shared has another bandwidth each minute: a share of the floor is quoted with
    the floor of the same moment.
    """
    size = min(num_bytes, MOST_PROBE_BYTES)
    data = _probe_data(size // 4, device)
    seconds = statistics.median(timed(data.sum, device, 3, 0.002))
    return seconds * num_bytes / (data.numel() * 4)


@functools.lru_cache(maxsize=1)
def _probe_data(num_floats: int, device: str) -> torch.Tensor:
    import torch

    return torch.ones(num_floats, dtype=torch.float32, device=device)


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
