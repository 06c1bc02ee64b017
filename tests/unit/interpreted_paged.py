"""The paged cache over our Triton kernel, in the interpreter; `test_paged.py` runs this file."""

import os

import pytest
import torch
from test_paged import SHAPE, decoder_of, feed, logits_of, paged, prompts_of

from inferlab.decoding import generate
from inferlab.decoding.paged import run_paged
from inferlab.kvcache import PagedCache

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_paged.py instead"


@pytest.mark.parametrize("block_size", [4, 16])
def test_tokens_are_those_of_the_dense_cache_with_preemption(block_size):
    decoder, prompts = decoder_of(), prompts_of([7, 1, 9])
    cache = paged(decoder, 3, 32, block_size=block_size, num_blocks=24 // block_size + 1,
                  kernel="triton")  # fmt: skip
    run = run_paged(decoder, prompts, 4, cache)
    assert run.token_ids == generate(decoder, prompts, 4, "static")


def test_a_fork_reads_its_own_copy():
    decoder = decoder_of()
    cache = paged(decoder, 2, 16, block_size=4, kernel="triton")
    (prompt,) = prompts_of([6])
    cache.select(["a"])
    feed(decoder, cache, [prompt])
    cache.fork("a", "b")
    cache.select(["a", "b"])
    logits = feed(decoder, cache, [[5], [9]])
    for row, token in enumerate((5, 9)):
        assert torch.allclose(logits[row], logits_of(decoder, [*prompt, token]), atol=1e-4)


def test_shapes_and_addresses_never_change():
    cache = PagedCache(SHAPE, torch.float32, "cpu", block_size=4, kernel="triton")
    seen = set()
    for step in range(9):
        cache.begin(torch.full((1, 1), step), None)
        view = cache.view(0)
        seen.add((view.block_tables.shape, view.block_tables.data_ptr(), view.lengths.data_ptr()))
        assert view.lengths.tolist() == [step + 1] * 3
    assert len(seen) == 1
