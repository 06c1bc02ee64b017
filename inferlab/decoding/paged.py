"""How are many prompts continued in a store of blocks that cannot hold all of them at once?

Sequences enter when there is room for their text, decode together, and leave when they are done.
One that cannot grow takes the blocks of the one that entered last, which starts again later.
Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from inferlab.decoding.generate import checked_lengths
from inferlab.decoding.sampling import GREEDY, choose
from inferlab.errors import UserError
from inferlab.kvcache import PagedCache
from inferlab.models.decoder import Decoder

WHEN_FULL = ("preempt", "wait")
OnTokens = Callable[[Sequence[int], Sequence[int], bool], None]


@dataclass(frozen=True, slots=True)
class PagedRun:
    """What was written, and what the store of blocks made of the batch."""

    token_ids: list[list[int]]  # of each prompt, in the order given
    batch_sizes: tuple[int, ...]  # sequences in each decode step
    held_tokens: int  # positions that hold a token, summed over the decode steps
    lent_tokens: int  # positions in blocks that were lent, likewise
    num_preempted: int  # times that a sequence lost its blocks
    recomputed_tokens: int  # positions that were read a second time for that

    @property
    def waste_ratio(self) -> float:
        """Share of the lent positions that held nothing, over all decode steps."""
        return 1 - self.held_tokens / self.lent_tokens if self.lent_tokens else 0.0


@dataclass(slots=True)
class _Batch:
    """Texts so far, and who runs; prompts are numbered in the order given."""

    texts: list[list[int]]
    ends: list[int]  # length of each text when it is done
    waiting: deque[int]
    running: list[int] = field(default_factory=list)  # by time of entry

    def unfinished(self, seq_id: int) -> bool:
        return len(self.texts[seq_id]) < self.ends[seq_id]


def generate_paged(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    output_lens: int | Sequence[int],
    cache: PagedCache,
    when_full: str = "preempt",
) -> list[list[int]]:
    """Continue each prompt by its number of tokens, greedily; `run_paged` says more."""
    return run_paged(decoder, prompts, output_lens, cache, when_full).token_ids


@torch.inference_mode()
def run_paged(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    output_lens: int | Sequence[int],
    cache: PagedCache,
    when_full: str = "preempt",
    on_tokens: OnTokens | None = None,
) -> PagedRun:
    """Continue each prompt greedily by exactly its output length (one number, or one a prompt).

    Each prompt is read alone, then decoded with all others that are in the cache, as many as it
    has rows. `when_full` is "preempt": a prompt enters as soon as its text fits, and if the store
    then runs out of blocks the last to enter gives its own back and is read again later; or
    "wait": it enters when its whole answer fits, and nothing is ever read again. A prompt that
    does not fit an empty store is refused before anything is computed. `on_tokens(prompts,
    token_ids, is_step)` is called after each prefill (is_step False) and each decode step.
    """
    output_lens = checked_lengths(decoder, prompts, output_lens)
    if when_full not in WHEN_FULL:
        shown = f"{str(when_full)[:40]!r}; known: {', '.join(WHEN_FULL)}"
        raise UserError(f"unknown way to act on a full store {shown}")
    ends = [len(p) + n for p, n in zip(prompts, output_lens, strict=True)]
    _check_fits(cache, ends)
    cache.reset()
    batch = _Batch([list(prompt) for prompt in prompts], ends, deque(range(len(prompts))))
    sizes, held, lent, preempted, recomputed = [], 0, 0, 0, 0

    def feed(rows: Sequence[int], token_ids: Sequence[Sequence[int]], is_step: bool) -> None:
        nonlocal held, lent
        cache.select(rows)
        ids = torch.tensor(token_ids, device=decoder.device)
        starts = torch.tensor(cache.lengths(), device=decoder.device)[:, None]
        positions = starts + torch.arange(ids.shape[1], device=decoder.device)
        tokens = choose(decoder(ids, cache, positions), GREEDY, None).tolist()
        if is_step:
            sizes.append(len(rows))
            now = _occupancy(cache)
            held, lent = held + now[0], lent + now[1]
        for seq_id, token in zip(rows, tokens, strict=True):
            batch.texts[seq_id].append(token)
            if not batch.unfinished(seq_id):
                cache.free(seq_id)
                batch.running.remove(seq_id)
        if on_tokens is not None:
            on_tokens(rows, tokens, is_step)

    while batch.waiting or batch.running:
        while batch.waiting and _may_enter(cache, batch, when_full):
            batch.running.append(batch.waiting.popleft())
            feed(batch.running[-1:], [batch.texts[batch.running[-1]]], False)
        while cache.manager.blocks_to_append(dict.fromkeys(batch.running, 1)) > (
            cache.manager.num_free
        ):
            last = batch.running.pop()
            preempted, recomputed = preempted + 1, recomputed + cache.manager.num_tokens(last)
            cache.free(last)
            batch.waiting.appendleft(last)
        if batch.running:
            feed(tuple(batch.running), [[batch.texts[s][-1]] for s in batch.running], True)
    written = [text[len(p) :] for text, p in zip(batch.texts, prompts, strict=True)]
    return PagedRun(written, tuple(sizes), held, lent, preempted, recomputed)


def _check_fits(cache: PagedCache, ends: Sequence[int]) -> None:
    manager = cache.manager
    # The last token is never fed back, so it needs no place.
    if (needed := manager.blocks_for(max(ends) - 1)) > manager.num_blocks:
        raise UserError(
            f"a text of {max(ends)} tokens takes {needed} blocks and the cache has "
            f"{manager.num_blocks}: make it larger, or the text shorter"
        )
    cache.shape.check_room(max(ends) - 1, "paged")


def _may_enter(cache: PagedCache, batch: _Batch, when_full: str) -> bool:
    """Whether the next prompt's text, or its whole answer and those of all others, has room."""
    manager, next_id = cache.manager, batch.waiting[0]
    if len(batch.running) >= cache.shape.batch_size:
        return False
    if when_full == "wait":
        whole = [manager.blocks_for(batch.ends[s] - 1) for s in (*batch.running, next_id)]
        return sum(whole) <= manager.num_blocks
    # With its first step, or it would be read only to be thrown out by it.
    steps = manager.blocks_to_append(dict.fromkeys(batch.running, 1))
    length = min(len(batch.texts[next_id]) + 1, batch.ends[next_id] - 1)
    return manager.blocks_for(length) + steps <= manager.num_free


def _occupancy(cache: PagedCache) -> tuple[int, int]:
    """Positions that hold a token, and positions in blocks that are lent."""
    manager = cache.manager
    held = sum(manager.num_tokens(seq_id) for seq_id in manager.seq_ids)
    return held, (manager.num_blocks - manager.num_free) * manager.block_size
