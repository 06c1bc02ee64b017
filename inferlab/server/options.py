"""What is to be served, and what does the engine's process build of it?

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferlab.errors import UserError
from inferlab.server.text import Codec, NumberCodec, TokenizerCodec

if TYPE_CHECKING:
    from inferlab.models.config import ModelConfig
    from inferlab.serving.engine import Engine


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What to serve and where; `cache_tokens` and `chunk_size` as in the engine."""

    model: str = "smollm2-135m"
    weights: str = "real"
    dtype: str = "bfloat16"
    device: str = "cpu"
    host: str = "127.0.0.1"
    port: int = 8000
    max_num_seqs: int = 8
    cache_tokens: int | None = None
    block_size: int = 16
    chunk_size: int | None = None
    max_num_batched_tokens: int = 2048
    prefix_cache: bool = False
    max_waiting: int = 1024
    policy: str = "continuous"
    step: str = "eager"
    threads: int | None = None
    served_model_name: str | None = None  # what requests call it; the preset's name if None


def check_options(options: ServeOptions) -> ModelConfig:
    """The model's shape; UserError for what can be seen before weights are read."""
    from inferlab.models.load import resolve_config
    from inferlab.serving.engine import STEPS
    from inferlab.serving.scheduler import POLICIES

    config = resolve_config(options.model)
    for name, value, known in (("policy", options.policy, POLICIES), ("step", options.step, STEPS)):
        if value not in known:
            raise UserError(f"unknown --{name} {value[:40]!r}; known: {', '.join(known)}")
    if options.cache_tokens is not None and options.cache_tokens < options.block_size:
        raise UserError(
            f"--cache-tokens {options.cache_tokens} is less than one block of "
            f"{options.block_size}: give more"
        )
    return config


def codec_of(config: ModelConfig, weights: str) -> Codec:
    """The model's tokenizer; numbers for a shape with random weights that has none here."""
    from inferlab.models.load import find_model, load_tokenizer

    if weights == "real" or find_model(config.name) is not None:
        return TokenizerCodec(load_tokenizer(config))
    return NumberCodec()


def build_engine(options: ServeOptions) -> Engine:
    """The engine with its model in memory."""
    import torch

    from inferlab.models.load import load_decoder
    from inferlab.serving.engine import Engine

    if options.threads:
        torch.set_num_threads(options.threads)
    tokens = options.cache_tokens
    return Engine(
        load_decoder(options.model, options.dtype, options.device, options.weights),
        num_blocks=None if tokens is None else tokens // options.block_size,
        block_size=options.block_size,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        chunk_size=options.chunk_size,
        policy=options.policy,
        prefix_cache=options.prefix_cache,
        step=options.step,
    )
