"""The engine with decode steps by the fused kernels, in Triton's interpreter;
`test_serving_engine.py` runs this file."""

import os

import torch
from fused_examples import random_decoder
from test_packed import feed_packed
from test_paged import logits_of, paged, prompts_of
from test_serving_engine import alone, serve
from tiny_models import tiny

from inferlab.serving.engine import Engine

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_serving_engine.py instead"


ONE_LAYER = tiny("tiny-1", num_layers=1, num_q_heads=2, num_kv_heads=1)


def test_tokens_are_those_of_the_plain_decoder():
    decoder, prompts, output_lens = random_decoder(ONE_LAYER), prompts_of([5, 1, 9]), [3, 2, 3]
    engine = Engine(
        decoder, num_blocks=6, block_size=4, max_num_seqs=2, chunk_size=4, step="kernels",
        max_len=16,
    )  # fmt: skip
    assert serve(engine, prompts, output_lens) == alone(decoder, prompts, output_lens)


def test_decodes_in_a_packed_pass_go_through_the_kernel():
    decoder, texts = random_decoder(ONE_LAYER), prompts_of([7, 5, 6])
    cache = paged(decoder, 3, 8, block_size=4, kernel="triton")
    feed_packed(decoder, cache, [(row, texts[row][:-1]) for row in (0, 1)])
    pieces = [(0, texts[0][-1:]), (1, texts[1][-1:]), (2, texts[2])]
    for logits, text in zip(feed_packed(decoder, cache, pieces), texts, strict=True):
        assert torch.allclose(logits, logits_of(decoder, text), atol=1e-4)
