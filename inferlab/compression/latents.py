"""In which directions do the inputs of attention vary, so that the others can be left out?

Second moments of what goes into each layer's keys and values, for `models.latent`.
Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

import torch

from inferlab.compression.blocks import checked_tokens, embed, run_block
from inferlab.compression.observe import InputRecorder, token_batches
from inferlab.errors import UserError
from inferlab.models.decoder import Decoder


@torch.no_grad()
def attention_moments(decoder: Decoder, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """[H, H] mean of x x^T, float32, of each layer's attention input over `token_ids` [n, T].

    By name ("layers.0.attention.qkv"). UserError for fewer tokens than channels: the moments would
    call directions empty that the text has only not visited; and where an input is not finite.
    """
    token_ids = checked_tokens(decoder, token_ids)
    channels = decoder.config.hidden_size
    if token_ids.numel() < channels:
        raise UserError(
            f"{token_ids.numel()} tokens are too few for the second moments of {channels} "
            f"channels: give at least {channels}"
        )
    names = [f"layers.{index}.attention.qkv" for index in range(decoder.config.num_layers)]
    recorders = {name: InputRecorder(name, 0, 0, hessian=True) for name in names}
    for windows in token_batches(token_ids):
        x = embed(decoder, windows)
        for index, name in enumerate(names):
            recorders[name].add(decoder.layers[index].attention_norm(x))
            x = run_block(decoder, index, x)
    return {name: recorder.stats().hessian for name, recorder in recorders.items()}
