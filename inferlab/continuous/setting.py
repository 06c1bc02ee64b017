"""How is an engine set up? One description for the real one and for the emulated one.

Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inferlab.errors import UserError
from inferlab.kvcache.blocks import BlockManager
from inferlab.serving.scheduler import Scheduler

STORES = ("maximum", "paged")


@dataclass(frozen=True, slots=True)
class Setting:
    """Who may enter, how many at a time, and how the positions of the store are lent.

    `store` "maximum" reserves `max_len` positions for each sequence: blocks as long as the longest
    text, the same code. `chunk_size` None reads prompts in steps of their own.
    """

    policy: str = "continuous"
    store: str = "paged"
    max_num_seqs: int = 8
    store_tokens: int = 4096
    max_len: int = 512
    block_size: int = 16  # of a paged store
    chunk_size: int | None = None
    max_num_batched_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.store not in STORES:
            raise UserError(f"unknown store {str(self.store)[:40]!r}; known: {', '.join(STORES)}")
        if self.num_blocks < 1:
            raise UserError(
                f"a store of {self.store_tokens} positions holds no block of {self.lent_at_once}: "
                "make it larger"
            )

    @property
    def lent_at_once(self) -> int:
        """Positions of a block."""
        return self.max_len if self.store == "maximum" else self.block_size

    @property
    def num_blocks(self) -> int:
        """Blocks of the store."""
        return self.store_tokens // self.lent_at_once

    def engine_options(self) -> dict[str, Any]:
        """Keyword arguments of `serving.engine.Engine`."""
        return {
            "num_blocks": self.num_blocks,
            "block_size": self.lent_at_once,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "chunk_size": self.chunk_size,
            "policy": self.policy,
            "max_len": self.max_len,
        }

    def scheduler(self) -> Scheduler:
        """The scheduler that such an engine has, over a store without tensors."""
        return Scheduler(
            BlockManager(self.num_blocks, self.lent_at_once),
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.max_len,
            self.chunk_size,
            self.policy,
        )
