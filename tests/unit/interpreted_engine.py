"""The engine with decode steps by the fused kernels, in Triton's interpreter;
`test_serving_engine.py` runs this file."""

import os

from fused_examples import random_decoder
from test_paged import prompts_of
from test_serving_engine import alone, serve
from tiny_models import tiny

from inferlab.serving.engine import Engine

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_serving_engine.py instead"


def test_tokens_are_those_of_the_plain_decoder():
    decoder = random_decoder(tiny("tiny-1", num_layers=1, num_q_heads=2, num_kv_heads=1))
    prompts, output_lens = prompts_of([5, 1, 9]), [4, 3, 5]
    engine = Engine(
        decoder, num_blocks=6, block_size=4, max_num_seqs=2, chunk_size=4, step="kernels",
        max_len=16,
    )  # fmt: skip
    assert serve(engine, prompts, output_lens) == alone(decoder, prompts, output_lens)
