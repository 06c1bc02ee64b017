"""How do requests that come and go share one decoder, step by step?

The scheduler says what the next forward pass reads, this runs it over a paged cache, chooses the
tokens and hands them out. Not thread-safe: one thread adds, steps and cancels.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch

from inferlab.decoding.sampling import GREEDY, Sampling, choose
from inferlab.errors import UserError
from inferlab.kvcache import CacheShape, PagedCache
from inferlab.kvcache.packed import PackedPass
from inferlab.kvcache.paged import BLOCK_SIZE
from inferlab.models.decoder import Decoder
from inferlab.serving.prefixes import PrefixCache
from inferlab.serving.scheduler import Scheduler, Segment
from inferlab.serving.sequence import Sequence

STEPS = ("eager", "kernels")
DEFAULT_LEN = 1024  # positions a sequence that the cache is made for when nothing is said


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One token of one request, and why its answer ends with it (None: it goes on)."""

    seq_id: str
    token_id: int
    finish_reason: str | None


@dataclass(slots=True)
class EngineStats:
    """Gauges of now, and counters since the engine was made."""

    num_blocks: int
    num_free_blocks: int = 0  # those that a parked prefix holds are not among them
    num_running: int = 0
    num_waiting: int = 0
    num_preempted: int = 0
    num_steps: int = 0
    prompt_tokens: int = 0  # of requests that have entered the line
    computed_tokens: int = 0  # read by the model: prompts, outputs, and texts read again
    cached_tokens: int = 0  # not read because a parked prefix had them
    output_tokens: int = 0
    last_batch_size: int = 0  # sequences in the last step
    last_num_tokens: int = 0  # tokens in the last step


class Engine:
    """Serves requests with `decoder` over a paged cache of `num_blocks` blocks.

    `max_len` is by default the model's context length, `num_blocks` 1,024 positions (or `max_len`)
    for each of `max_num_seqs` rows, and at least `max_len`. block_size=max_len: everybody reserves
    for the longest. `step` "kernels": decode steps by fused Triton kernels, for plain weights.
    """

    def __init__(
        self,
        decoder: Decoder,
        num_blocks: int | None = None,
        block_size: int = BLOCK_SIZE,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 2048,
        chunk_size: int | None = None,
        policy: str = "continuous",
        prefix_cache: bool = False,
        max_waiting: int | None = None,
        max_len: int | None = None,
        step: str = "eager",
    ) -> None:
        config = decoder.config
        max_len = config.max_context_len if max_len is None else max_len
        if not 1 <= max_len <= config.max_context_len:
            raise UserError(
                f"max_len must be from 1 to {config.max_context_len}, the context length of "
                f"{config.name}, not {max_len}"
            )
        if num_blocks is None:
            num_blocks = -(-max(max_len, max_num_seqs * min(max_len, DEFAULT_LEN)) // block_size)
        if step not in STEPS:
            raise UserError(f"unknown step {str(step)[:40]!r}; known: {', '.join(STEPS)}")
        self.decoder = self._stepped = decoder
        if step == "kernels":
            from inferlab.models.fused import FusedDecoder

            self._stepped = FusedDecoder(decoder)
        shape = CacheShape(
            config.num_layers, max_num_seqs, config.num_kv_heads, max_len, config.head_dim
        )
        self.cache = PagedCache(shape, decoder.dtype, decoder.device, block_size, num_blocks)
        manager = self.cache.manager
        self.scheduler = Scheduler(
            manager, max_num_seqs, max_num_batched_tokens, max_len, chunk_size, policy, max_waiting,
            PrefixCache(manager) if prefix_cache else None,
        )  # fmt: skip
        self._stats = EngineStats(num_blocks=num_blocks)

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def add_request(
        self,
        seq_id: str,
        prompt_token_ids: Iterable[int],
        max_tokens: int,
        sampling: Sampling = GREEDY,
        stop_token_ids: Collection[int] = (),
    ) -> None:
        """Put a request at the end of the line: UserError when it cannot be served, or QueueFull.

        It ends with one of `stop_token_ids`, which is handed out, or after `max_tokens`.
        """
        generator = sampling.generator(self.decoder.device)
        seq = Sequence(seq_id, prompt_token_ids, max_tokens, stop_token_ids, sampling, generator)
        vocab_size = self.decoder.config.vocab_size
        if min(seq.text_ids) < 0 or max(seq.text_ids) >= vocab_size:
            raise UserError(
                f"a token id lies outside 0 to {vocab_size - 1}: the prompt was made for another "
                f"vocabulary than that of {self.decoder.config.name}"
            )
        self.scheduler.add(seq)
        self._stats.prompt_tokens += seq.prompt_len

    def cancel(self, seq_id: str) -> bool:
        """Stop serving a request; False when it is unknown or has ended."""
        return self.scheduler.cancel(seq_id)

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """One forward pass over what is due; its tokens when they are there, at most one a request.

        No token of a prompt that is read in pieces, until its last one.
        """
        plan = self.scheduler.schedule()
        if not plan.segments:
            return []
        logits = self._logits(plan.segments)
        seqs = [segment.seq for segment in plan.segments if segment.samples]
        token_ids = self._choose(logits, seqs)
        self.scheduler.computed(plan)
        stats = self._stats
        stats.last_batch_size = len(plan.segments)
        stats.last_num_tokens = sum(segment.num_tokens for segment in plan.segments)
        stats.num_steps += 1
        stats.num_preempted += len(plan.preempted)
        stats.computed_tokens += stats.last_num_tokens
        stats.output_tokens += len(seqs)
        outputs = []
        for seq, token_id in zip(seqs, token_ids, strict=True):
            if reason := seq.append(token_id):
                self.scheduler.finish(seq, reason)
            outputs.append(TokenOutput(seq.seq_id, token_id, reason))
        return outputs

    def stats(self) -> EngineStats:
        """What goes on, and what was done."""
        return replace(
            self._stats,
            num_free_blocks=self.cache.manager.num_free,
            num_running=self.scheduler.num_running,
            num_waiting=self.scheduler.num_waiting,
            cached_tokens=self.scheduler.cached_tokens,
        )

    def _logits(self, segments: tuple[Segment, ...]) -> torch.Tensor:
        """[B, V]: what follows each of the B segments that sample."""
        device = self.decoder.device
        if all(segment.num_tokens == 1 and segment.samples for segment in segments):
            self.cache.select([segment.seq.seq_id for segment in segments])
            rows = [[s.seq.text_ids[-1] for s in segments], [s.start for s in segments]]
            token_ids, positions = torch.tensor(rows, device=device)[:, :, None]
            return self._stepped(token_ids, self.cache, positions)
        packed = PackedPass(self.cache, [(s.seq.seq_id, s.num_tokens) for s in segments])
        text = [t for s in segments for t in s.seq.text_ids[s.start : s.start + s.num_tokens]]
        token_ids = torch.tensor([text], device=device)
        rows = [end for end, s in zip(packed.ends, segments, strict=True) if s.samples]
        return self.decoder(token_ids, packed, packed.positions, rows=rows)

    def _choose(self, logits: torch.Tensor, seqs: list[Sequence]) -> list[int]:
        """A token for each row of logits: greedy ones together, others by their own seed."""
        token_ids = logits.argmax(dim=-1)
        for row, seq in enumerate(seqs):
            if seq.generator is not None:
                token_ids[row] = choose(logits[row : row + 1], seq.sampling, seq.generator)[0]
        return token_ids.tolist()
