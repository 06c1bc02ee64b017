"""How many tokens did each event of an answer bring, when the server does not say it outright?

Three sources, the best that is there: token ids in the chunks; one token for each chunk with text,
which the usage at the end confirms; or those chunks corrected by the usage. Every disagreement is
told, none is papered over.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of each event, where they come from, and what the usage said.

    `source` is "token_ids" or "chunks" (confirmed by the usage), "usage" (tokens spread by it),
    "no_usage" (chunks, not confirmed: there was none), or "usage_refused" (chunks: the usage cannot
    be true beside what was seen and asked for).
    """

    counts: tuple[int, ...]
    source: str
    usage_tokens: int | None

    @property
    def disagrees(self) -> bool:
        """Whether the server's usage is another number than the tokens counted here."""
        return self.usage_tokens is not None and self.usage_tokens != sum(self.counts)


def count_tokens(
    texts: Sequence[str],
    token_ids: Sequence[list[int] | None],
    usage: dict[str, Any] | None,
    output_len: int,
) -> TokenCounts:
    """Tokens of each event of an answer of which at most `output_len` tokens were asked.

    Token ids, where any chunk has them, are counted as they are. Otherwise a chunk with text is one
    token. The usage is believed when it lies between one below the number of such chunks (a
    last flush of text may bring no token) and `output_len`: tokens that are missing are spread
    evenly over the chunks, one too many is taken from the last.
    """
    said = usage.get("completion_tokens") if usage else None
    said = said if isinstance(said, int) and not isinstance(said, bool) else None
    if any(ids is not None for ids in token_ids):
        return TokenCounts(tuple(len(ids or ()) for ids in token_ids), "token_ids", said)
    seen = [1 if text else 0 for text in texts]
    chunks = sum(seen)
    if said is None:
        return TokenCounts(tuple(seen), "no_usage", None)
    if said == chunks:
        return TokenCounts(tuple(seen), "chunks", said)
    if chunks == 0 or not max(1, chunks - 1) <= said <= max(output_len, chunks):
        return TokenCounts(tuple(seen), "usage_refused", said)
    return TokenCounts(tuple(_spread(seen, chunks, said)), "usage", said)


def _spread(seen: list[int], chunks: int, tokens: int) -> list[int]:
    """`tokens` over the events that are 1 in `seen`, as evenly as whole numbers go."""
    if tokens < chunks:
        last = max(index for index, one in enumerate(seen) if one)
        return [0 if index == last else one for index, one in enumerate(seen)]
    shares, rank = [], 0
    for one in seen:
        share = (rank + 1) * tokens // chunks - rank * tokens // chunks if one else 0
        rank += one
        shares.append(share)
    return shares
