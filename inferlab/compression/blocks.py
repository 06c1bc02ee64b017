"""How can a text be carried through a decoder one layer at a time?

Calibration stops between layers: it looks at what goes in, changes the layer, and goes on. Letters:
n windows of T tokens, H hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inferlab.errors import UserError
from inferlab.models.decoder import Decoder


def checked_tokens(decoder: Decoder, token_ids: torch.Tensor) -> torch.Tensor:
    """`token_ids` [n, T] on the decoder's device; a UserError when they are not its tokens."""
    whole = not (token_ids.is_floating_point() or token_ids.is_complex())
    if token_ids.ndim != 2 or not token_ids.numel() or not whole:
        raise UserError(
            f"calibration text is {list(token_ids.shape)} of {token_ids.dtype}: give token ids "
            "[windows, tokens], at least one"
        )
    vocab_size = decoder.config.vocab_size
    if token_ids.min() < 0 or token_ids.max() >= vocab_size:
        raise UserError(
            f"a token id lies outside 0 to {vocab_size - 1}: the text was tokenized for another "
            f"vocabulary than that of {decoder.config.name}"
        )
    decoder.reserve(token_ids.shape[1])
    return token_ids.to(decoder.device, torch.int64)


def embed(decoder: Decoder, token_ids: torch.Tensor) -> torch.Tensor:
    """[n, T] -> [n, T, H]: what the first layer reads."""
    return F.embedding(token_ids, decoder.embedding)


def run_block(decoder: Decoder, index: int, x: torch.Tensor) -> torch.Tensor:
    """[n, T, H] -> [n, T, H]: layer `index` over whole windows, each from position 0 on."""
    windows, length, _ = x.shape
    rope = decoder.reserve(length)[None, :length, None].chunk(2, dim=-1)
    return decoder.layers[index](x, rope, decoder.new_cache("none", windows, length), None)
