"""What does an engine know about one request while it is served?

Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from inferlab.errors import UserError


class Sequence:
    """A prompt, what was written after it, and how much of both the model has read.

    `text_ids` is prompt and output together. `num_computed` positions of it have keys and values in
    the cache: all but the newest token while it is decoded, none after a preemption. `sampling` and
    `generator` are for whoever chooses tokens. `state` is waiting, running or finished, and then
    `finish_reason` is stop, length (as in OpenAI's API) or cancelled.
    """

    __slots__ = (
        "seq_id", "text_ids", "prompt_len", "max_tokens", "stop_token_ids", "sampling",
        "generator", "num_computed", "state", "finish_reason",
    )  # fmt: skip

    def __init__(
        self,
        seq_id: str,
        prompt_token_ids: Iterable[int],
        max_tokens: int,
        stop_token_ids: Collection[int] = frozenset(),
        sampling: Any = None,
        generator: Any = None,
    ) -> None:
        self.text_ids = list(prompt_token_ids)
        self.prompt_len = len(self.text_ids)
        if not self.prompt_len:
            raise UserError("there is nothing to continue: a prompt needs at least one token")
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            shown = str(max_tokens)[:40]
            raise UserError(f"max_tokens must be a whole number of at least 1, not {shown!r}")
        self.seq_id = seq_id
        self.max_tokens = max_tokens
        self.stop_token_ids = frozenset(stop_token_ids)
        self.sampling, self.generator = sampling, generator
        self.num_computed = 0
        self.state, self.finish_reason = "waiting", None

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt alone."""
        return self.text_ids[: self.prompt_len]

    @property
    def output_token_ids(self) -> list[int]:
        """What was written after the prompt."""
        return self.text_ids[self.prompt_len :]

    @property
    def num_tokens(self) -> int:
        """Tokens of the text so far."""
        return len(self.text_ids)

    @property
    def max_positions(self) -> int:
        """Positions that it can come to need: the last token is never fed back."""
        return self.prompt_len + self.max_tokens - 1

    @property
    def is_decoding(self) -> bool:
        """Whether one token, behind others that are in the cache, is all that is to be read."""
        return 0 < self.num_computed == len(self.text_ids) - 1

    def append(self, token_id: int) -> str | None:
        """Add a token that was chosen; why the text ends with it, or None when it goes on."""
        self.text_ids.append(token_id)
        if token_id in self.stop_token_ids:
            return "stop"
        return "length" if len(self.text_ids) - self.prompt_len >= self.max_tokens else None
