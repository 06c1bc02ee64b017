"""How do requests that come and go share one decoder, step by step?

The scheduler says what the next forward pass reads, this runs it over a paged cache, chooses the
tokens and hands them out. Not thread-safe: one thread adds, steps and cancels.
Letters: B sequences, N tokens of a pass, V vocabulary.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges of now, and counters since the engine was made."""

    num_running: int
    num_waiting: int
    num_free_blocks: int  # blocks that a parked prefix holds are not among them
    num_blocks: int
    num_preempted: int
    num_steps: int
    prompt_tokens: int  # of requests that have entered the line
    computed_tokens: int  # read by the model: prompts, outputs, and texts read again
    cached_tokens: int  # not read because a parked prefix had them
    output_tokens: int
    last_batch_size: int  # sequences in the last step
    last_num_tokens: int  # tokens in the last step


class Engine:
    """Serves requests with `decoder` over a paged cache of `num_blocks` blocks.

    `num_blocks` defaults to 1,024 positions (or `max_len`, if less) for each of `max_num_seqs`
    sequences, and at least one of `max_len` positions, by default the model's context length.
    block_size=max_len makes every sequence reserve for the longest. `step` "kernels" takes decode
    steps through the fused Triton kernels. The other arguments are the scheduler's.
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
            width = -(-max_len // block_size)
            usual = max_num_seqs * -(-min(max_len, DEFAULT_LEN) // block_size)
            num_blocks = max(width, usual)
        shape = CacheShape(
            config.num_layers, max_num_seqs, config.num_kv_heads, max_len, config.head_dim
        )
        if step not in STEPS:
            raise UserError(f"unknown step {str(step)[:40]!r}; known: {', '.join(STEPS)}")
        self.decoder = self._stepped = decoder
        if step == "kernels":
            from inferlab.models.fused import FusedDecoder

            self._stepped = FusedDecoder(decoder)
        self.cache = PagedCache(shape, decoder.dtype, decoder.device, block_size, num_blocks)
        manager = self.cache.manager
        self.scheduler = Scheduler(
            manager, max_num_seqs, max_num_batched_tokens, max_len, chunk_size, policy, max_waiting,
            PrefixCache(manager) if prefix_cache else None,
        )  # fmt: skip
        self._generators: dict[str, torch.Generator] = {}
        self._counts = dict.fromkeys(
            ("num_preempted", "num_steps", "prompt_tokens", "computed_tokens", "output_tokens",
             "last_batch_size", "last_num_tokens"), 0,
        )  # fmt: skip

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def add_request(
        self,
        seq_id: str,
        prompt_token_ids: Seq[int],
        max_tokens: int,
        sampling: Sampling = GREEDY,
        stop_token_ids: Collection[int] = (),
    ) -> None:
        """Put a request at the end of the line: UserError when it cannot be served, or QueueFull.

        It ends with one of `stop_token_ids`, which is handed out, or after `max_tokens`.
        """
        seq = Sequence(seq_id, prompt_token_ids, max_tokens, stop_token_ids, sampling)
        vocab_size = self.decoder.config.vocab_size
        if min(seq.prompt_token_ids) < 0 or max(seq.prompt_token_ids) >= vocab_size:
            raise UserError(
                f"a token id lies outside 0 to {vocab_size - 1}: the prompt was made for another "
                f"vocabulary than that of {self.decoder.config.name}"
            )
        self.scheduler.add(seq)
        self._counts["prompt_tokens"] += len(seq.prompt_token_ids)
        if not sampling.is_greedy:
            self._generators[seq_id] = sampling.generator(self.decoder.device)

    def cancel(self, seq_id: str) -> bool:
        """Stop serving a request; False when it is unknown or has ended."""
        self._generators.pop(seq_id, None)
        return self.scheduler.cancel(seq_id)

    def forget_prefixes(self) -> None:
        """Give the blocks of all parked prefixes back."""
        if self.scheduler.prefixes is not None:
            self.scheduler.prefixes.give_up(self.cache.manager.num_blocks + 1)

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """One forward pass over what is due; its tokens, of each request at most one.

        None while prompts are read in pieces. When it returns, the device has finished.
        """
        plan = self.scheduler.schedule()
        if not plan.segments:
            return []
        logits = self._logits(plan.segments)
        seqs = [segment.seq for segment in plan.segments if segment.samples]
        token_ids = self._choose(logits, seqs)
        self.scheduler.computed(plan)
        self._count(plan.segments, len(plan.preempted), len(seqs))
        outputs = []
        for seq, token_id in zip(seqs, token_ids, strict=True):
            reason = seq.append(token_id)
            if reason is not None:
                self.scheduler.finish(seq, reason)
                self._generators.pop(seq.seq_id, None)
            outputs.append(TokenOutput(seq.seq_id, token_id, reason))
        return outputs

    def stats(self) -> EngineStats:
        """What goes on, and what was done."""
        manager = self.cache.manager
        return EngineStats(
            num_running=self.scheduler.num_running,
            num_waiting=self.scheduler.num_waiting,
            num_free_blocks=manager.num_free,
            num_blocks=manager.num_blocks,
            cached_tokens=self.scheduler.cached_tokens,
            **self._counts,
        )

    def _logits(self, segments: Seq[Segment]) -> torch.Tensor:
        """[sampling segments, V]: of the last token of each segment that samples."""
        device = self.decoder.device
        if all(segment.num_tokens == 1 for segment in segments):
            self.cache.select([segment.seq.seq_id for segment in segments])
            rows = [[s.seq.token_at(s.start) for s in segments], [s.start for s in segments]]
            token_ids, positions = torch.tensor(rows, device=device)[:, :, None]
            logits = self._stepped(token_ids, self.cache, positions)
            if all(segment.samples for segment in segments):
                return logits
            return logits[[row for row, segment in enumerate(segments) if segment.samples]]
        packed = PackedPass(self.cache, [(s.seq.seq_id, s.num_tokens) for s in segments])
        text = [t for s in segments for t in s.seq.text_ids(s.start, s.start + s.num_tokens)]
        token_ids = torch.tensor([text], device=device)
        rows = [end for end, s in zip(packed.ends, segments, strict=True) if s.samples]
        return self.decoder(token_ids, packed, packed.positions, rows=rows)

    def _choose(self, logits: torch.Tensor, seqs: Seq[Sequence]) -> list[int]:
        """A token for each row of logits: greedy ones together, others by their own seed."""
        if not seqs:
            return []
        token_ids = logits.argmax(dim=-1)
        if self._generators:
            for row, seq in enumerate(seqs):
                if seq.seq_id in self._generators:
                    generator = self._generators[seq.seq_id]
                    token_ids[row] = choose(logits[row : row + 1], seq.sampling, generator)[0]
        return token_ids.tolist()

    def _count(self, segments: Seq[Segment], num_preempted: int, num_outputs: int) -> None:
        counts, num_tokens = self._counts, sum(segment.num_tokens for segment in segments)
        counts["num_steps"] += 1
        counts["num_preempted"] += num_preempted
        counts["computed_tokens"] += num_tokens
        counts["output_tokens"] += num_outputs
        counts["last_batch_size"], counts["last_num_tokens"] = len(segments), num_tokens
