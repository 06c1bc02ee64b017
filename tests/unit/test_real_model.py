"""The embedded model itself: our decoder against transformers' `generate`."""

import functools

import pytest
import torch

from inferlab.backends import load_backend
from inferlab.backends.engine import EngineBackend
from inferlab.decoding import generate
from inferlab.models.load import load_tokenizer
from inferlab.workload import unequal_batch

pytestmark = pytest.mark.slow

loaded = functools.cache(load_backend)


@pytest.fixture(autouse=True)
def one_thread():
    """Beside other tests, two threads that wait for each other at every product take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_greedy_tokens_are_those_of_transformers_for_unequal_prompts():
    workload = unequal_batch(49152, [5, 33, 1, 16], [16, 16, 16, 7], seed=5)
    expected = loaded("hf", "smollm2-135m", "float32").run(workload).token_ids
    assert loaded("torch", "smollm2-135m", "float32").run(workload).token_ids == expected


def test_the_engine_writes_the_same_in_chunks_and_with_preemption():
    workload = unequal_batch(49152, [50, 70, 1, 30], [16, 16, 16, 7], seed=5)
    decoder = loaded("torch", "smollm2-135m", "float32").decoder
    expected = generate(decoder, [r.prompt_token_ids for r in workload.requests], [16, 16, 16, 7])
    engine = EngineBackend(
        decoder, num_blocks=9, max_num_seqs=3, chunk_size=24, max_num_batched_tokens=32
    )
    run = engine.run(workload)
    assert run.token_ids == expected and run.trace.meta["num_preempted"] > 0


def test_the_model_speaks():
    tokenizer = load_tokenizer("smollm2-135m")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    workload = unequal_batch(49152, [len(prompt)], 8)
    spec = workload.requests[0]
    import dataclasses

    workload = dataclasses.replace(
        workload, requests=(dataclasses.replace(spec, prompt_token_ids=tuple(prompt)),)
    )
    tokens = loaded("torch", "smollm2-135m", "float32").run(workload).token_ids[0]
    assert "Paris" in tokenizer.decode(tokens)


@torch.inference_mode()
def test_logits_are_close_to_those_of_transformers():
    ids = torch.randint(49152, (2, 40), generator=torch.Generator().manual_seed(0))
    theirs = loaded("hf", "smollm2-135m", "float32").model(ids).logits
    decoder = loaded("torch", "smollm2-135m", "float32").decoder
    ours = decoder(
        ids, decoder.new_cache("static", 2, 40), torch.arange(40)[None], all_positions=True
    )
    assert (ours - theirs).abs().max() < 1e-3
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 134_515_008
