"""What does an engine know about one request while it is served?

Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import Any

from inferlab.errors import UserError

STATES = ("waiting", "running", "finished")
FINISH_REASONS = ("stop", "length", "cancelled")  # the first two as in OpenAI's API


class Sequence:
    """A prompt, what was written after it, and how much of both the model has read.

    The text is prompt and output together. `num_computed` positions of it have keys and values in
    the cache: all but the newest token while it is decoded, none after a preemption. `sampling` is
    passed on to whoever chooses tokens.
    """

    __slots__ = (
        "seq_id", "prompt_token_ids", "output_token_ids", "max_tokens", "stop_token_ids",
        "sampling", "num_computed", "state", "finish_reason",
    )  # fmt: skip

    def __init__(
        self,
        seq_id: str,
        prompt_token_ids: Seq[int],
        max_tokens: int,
        stop_token_ids: Collection[int] = frozenset(),
        sampling: Any = None,
    ) -> None:
        if not len(prompt_token_ids):
            raise UserError("there is nothing to continue: a prompt needs at least one token")
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            shown = str(max_tokens)[:40]
            raise UserError(f"max_tokens must be a whole number of at least 1, not {shown!r}")
        self.seq_id = seq_id
        self.prompt_token_ids = list(prompt_token_ids)
        self.output_token_ids: list[int] = []
        self.max_tokens = max_tokens
        self.stop_token_ids = frozenset(stop_token_ids)
        self.sampling = sampling
        self.num_computed = 0
        self.state = "waiting"
        self.finish_reason: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the text so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def max_positions(self) -> int:
        """Positions that it can come to need: the last token is never fed back."""
        return len(self.prompt_token_ids) + self.max_tokens - 1

    @property
    def is_decoding(self) -> bool:
        """Whether one token, behind others that are in the cache, is all that is to be read."""
        return 0 < self.num_computed == self.num_tokens - 1

    def token_at(self, position: int) -> int:
        """The token at a position of the text."""
        behind = position - len(self.prompt_token_ids)
        return self.prompt_token_ids[position] if behind < 0 else self.output_token_ids[behind]

    def text_ids(self, start: int = 0, end: int | None = None) -> list[int]:
        """Token ids of the text from position `start` up to `end`."""
        return (self.prompt_token_ids + self.output_token_ids)[start:end]

    def append(self, token_id: int) -> str | None:
        """Add a token that was chosen; why the text ends with it, or None when it goes on."""
        self.output_token_ids.append(token_id)
        if token_id in self.stop_token_ids:
            return "stop"
        return "length" if len(self.output_token_ids) >= self.max_tokens else None
