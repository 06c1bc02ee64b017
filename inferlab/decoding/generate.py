"""How does a decoder continue a batch of prompts, token by token?

Prompts of unequal length are padded on the left, so that the newest token of every sequence stands
in the last column. Letters: B sequences, T prompt length after padding, S positions so far.
Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from inferlab.decoding.sampling import GREEDY, Sampling, choose
from inferlab.errors import UserError
from inferlab.kvcache import KVCache
from inferlab.models.decoder import Decoder

PAD_TOKEN_ID = 0  # never seen by another token, so any id will do

OnStep = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class PaddedPrompts:
    """A left-padded batch on the device, and the masks for each step (None: nothing padded)."""

    token_ids: torch.Tensor  # [B, T + steps], prompts first, the rest to be filled
    positions: torch.Tensor  # [B or 1, T + steps]
    prompt_len: int
    readable: torch.Tensor | None  # [B, 1, 1, T + steps] 0 or -inf, in the decoder's dtype

    def prefill_mask(self, length: int) -> torch.Tensor | None:
        """[B, 1, length, length], 0 or -inf: causal, padding unread, no row without a key."""
        if self.readable is None:
            return None
        device = self.readable.device
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        allowed = causal & (self.readable[..., :length] == 0)
        # A padded row looks at itself: a softmax over nothing would be NaN and would spread.
        allowed = allowed | torch.eye(length, dtype=torch.bool, device=device)
        floor = torch.zeros_like(allowed, dtype=self.readable.dtype)
        return floor.masked_fill_(~allowed, float("-inf"))


def pad_prompts(
    prompts: Sequence[Sequence[int]], steps: int, dtype: torch.dtype, device: torch.device
) -> PaddedPrompts:
    """Put B prompts into one tensor with room for `steps` tokens; checks nothing."""
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    pads = [longest - length for length in lengths]
    rows = [
        [PAD_TOKEN_ID] * pad + list(prompt) + [PAD_TOKEN_ID] * steps
        for pad, prompt in zip(pads, prompts, strict=True)
    ]
    token_ids = torch.tensor(rows, dtype=torch.int64, device=device)
    columns = torch.arange(longest + steps, device=device).unsqueeze(0)
    if not any(pads):
        return PaddedPrompts(token_ids, columns, longest, None)
    pad_column = torch.tensor(pads, device=device).unsqueeze(1)
    readable = torch.zeros(columns.shape, dtype=dtype, device=device).masked_fill(
        columns < pad_column, float("-inf")
    )
    positions = (columns - pad_column).clamp(min=0)
    return PaddedPrompts(token_ids, positions, longest, readable[:, None, None, :])


@torch.inference_mode()
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    output_len: int | Sequence[int],
    cache: str | KVCache = "static",
    sampling: Sampling = GREEDY,
    on_step: OnStep | None = None,
) -> list[list[int]]:
    """Continue each prompt by exactly `output_len` tokens (one number, or one a prompt).

    `on_step(step, token_ids [B])` is called when a step has been queued: on a GPU the tokens are
    not there until the device is synchronized. An end-of-text token does not stop a sequence, and
    one that has all its tokens keeps its place in the batch until the longest is done (static
    batching); the surplus is not returned. `cache` is a kind or an empty cache to use again.
    """
    output_lens = checked_lengths(decoder, prompts, output_len)
    steps = max(output_lens)
    batch = pad_prompts(prompts, steps, decoder.dtype, decoder.device)
    start = batch.prompt_len
    if isinstance(cache, str):
        # The last token is never fed back, so it needs no place.
        cache = decoder.new_cache(cache, len(prompts), start + steps - 1)
    else:
        cache.reset()
    generator = sampling.generator(decoder.device)
    token_ids, positions, readable = batch.token_ids, batch.positions, batch.readable

    logits = decoder(token_ids[:, :start], cache, positions[:, :start], batch.prefill_mask(start))
    for step in range(steps):
        tokens = choose(logits, sampling, generator)
        token_ids[:, start + step] = tokens
        if on_step is not None:
            on_step(step, tokens)
        if step + 1 == steps:
            break
        end = start + step + 1
        if cache.recomputes:
            logits = decoder(token_ids[:, :end], cache, positions[:, :end], batch.prefill_mask(end))
        else:
            mask = None if readable is None else readable[..., :end]
            logits = decoder(tokens.unsqueeze(1), cache, positions[:, end - 1 : end], mask)
    outputs = token_ids[:, start:].tolist()
    return [row[:length] for row, length in zip(outputs, output_lens, strict=True)]


def checked_lengths(
    decoder: Decoder, prompts: Sequence[Sequence[int]], output_len: int | Sequence[int]
) -> list[int]:
    """Output length of each prompt; a UserError where prompts or lengths cannot be served."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UserError("there is nothing to continue: every prompt needs at least one token")
    lengths = [output_len] * len(prompts) if isinstance(output_len, int) else list(output_len)
    if len(lengths) != len(prompts) or min(lengths) < 1:
        raise UserError("output_len must be 1 or more, one number or one for each prompt")
    vocab_size = decoder.config.vocab_size
    for prompt in prompts:
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise UserError(
                f"a token id lies outside 0 to {vocab_size - 1}: the prompts were made for "
                f"another vocabulary than that of {decoder.config.name}"
            )
    decoder.reserve(max(map(len, prompts)) + max(lengths) - 1)
    return lengths
