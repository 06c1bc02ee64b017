"""Which shapes can the keys and values of a trained model take? Without torch.

Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

from dataclasses import replace

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig

NAMED = ("mha", "gqa", "mqa")


def layout_heads(config: ModelConfig, layout: str) -> int:
    """Key/value heads of `layout`: mha (one a query head), gqa (as trained), mqa (1), gqa-N.

    UserError unless the trained heads can be written or averaged evenly into that number, and the
    query heads share it evenly.
    """
    trained = config.num_kv_heads
    heads = {"mha": config.num_q_heads, "gqa": trained, "mqa": 1}.get(layout)
    if heads is None:
        word, _, count = str(layout).partition("-")
        if word != "gqa" or not count.isdecimal():
            raise UserError(
                f"unknown layout {str(layout)[:40]!r}; known: {', '.join(NAMED)}, or gqa-N with N "
                "key/value heads"
            )
        heads = int(count)
    if heads < 1 or config.num_q_heads % heads:
        raise UserError(
            f"{config.num_q_heads} query heads of {config.name} cannot share {heads} key/value "
            f"heads evenly: choose a divisor of {config.num_q_heads}"
        )
    if heads % trained and trained % heads:
        raise UserError(
            f"the {trained} key/value heads of {config.name} cannot become {heads}: choose a "
            f"divisor or a multiple of {trained}"
        )
    return heads


def layout_config(config: ModelConfig, layout: str) -> ModelConfig:
    """The shape of that layout, under a name of its own; the same one for gqa."""
    heads = layout_heads(config, layout)
    if layout == "gqa":
        return config
    return replace(config, name=f"{config.name}-{layout}", num_kv_heads=heads, source=None)


def check_rank(config: ModelConfig, rank: int) -> None:
    """Refuse a rank that is no number of dimensions of keys and values together."""
    most = min(2 * config.kv_size, config.hidden_size)
    if rank != int(rank) or not 1 <= rank <= most:
        raise UserError(
            f"rank {rank} is out of range: keys and values of {config.name} have 1 to {most} "
            "dimensions together"
        )


def decoupled_rope_dim(config: ModelConfig) -> int:
    """Rotated numbers that heads share: half a head, as in DeepSeek-V2 (64 of 128)."""
    return config.head_dim // 2
