"""A tiny model that is sure of itself, text of its own, and a tokenizer that needs no files."""

import torch
from tiny_models import tiny

from inferlab.decoding.generate import generate
from inferlab.decoding.sampling import Sampling
from inferlab.models.decoder import Decoder
from inferlab.models.load import load_decoder
from inferlab.quality.text import QualityText


def sure_decoder(dtype="float32", device="cpu", seed=0) -> Decoder:
    """Random weights, large enough that the distribution of the next token is far from even."""
    decoder = load_decoder(tiny(), "float32", device, weights="random", seed=seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 2:
                parameter.mul_(20)
    return decoder.to(getattr(torch, dtype))


def own_text(decoder: Decoder, windows=12, window=48) -> QualityText:
    """Sampled from the model itself: random weights know no other text."""
    prompts = [[index % decoder.config.vocab_size] for index in range(windows)]
    rows = generate(decoder, prompts, window - 1, sampling=Sampling(temperature=0.7, seed=1))
    token_ids = torch.tensor([p + row for p, row in zip(prompts, rows, strict=True)])
    return QualityText("own", "a test", "0" * 64, token_ids)


class LetterTokenizer:
    """One token a UTF-8 byte, folded into a small vocabulary."""

    def __init__(self, vocab_size: int = 256) -> None:
        self.vocab_size = vocab_size

    def encode(self, text, **_options):
        return [byte % self.vocab_size for byte in text.encode()]

    def decode(self, token_ids, **_options):
        return bytes(token for token in token_ids if token < 128).decode("ascii")
