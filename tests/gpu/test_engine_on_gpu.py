"""The engine on a CUDA device: tokens, host time beside the bare loop, the roofline of an 8B shape.

Speeds are judged by wide bands; what was reached is printed (`pytest -s`).
"""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from tiny_models import tiny  # noqa: E402

from inferlab import kernels  # noqa: E402
from inferlab.backends import load_backend  # noqa: E402
from inferlab.decoding import generate  # noqa: E402
from inferlab.kvcache import CacheShape, PagedCache  # noqa: E402
from inferlab.kvcache.packed import pack_prompts  # noqa: E402
from inferlab.models.fused import FusedDecoder  # noqa: E402
from inferlab.models.load import load_decoder  # noqa: E402
from inferlab.serving.engine import Engine  # noqa: E402
from inferlab.workload import poisson_arrivals, unequal_batch, uniform_batch  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# Heads of 64 numbers, as the kernels want them on a GPU; enough layers to see an error add up.
CONFIG = tiny("tiny-d64", hidden_size=96, head_dim=64, num_layers=4, vocab_size=500)
STEPS = ["eager", "kernels"]


def check_can_run(step):
    if step == "kernels" and (why := kernels.why_unavailable("cuda")):
        pytest.skip(why)


def serve(engine, prompts, output_lens):
    found = {f"r{i}": [] for i in range(len(prompts))}
    for seq_id, prompt, length in zip(found, prompts, output_lens, strict=True):
        engine.add_request(seq_id, prompt, length)
    while engine.has_work:
        for out in engine.step():
            found[out.seq_id].append(out.token_id)
    assert engine.cache.manager.problems() == []
    return list(found.values())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("chunk_size", [None, 1, 16])
@pytest.mark.parametrize("block_size", [8, 16, 48])
def test_greedy_tokens_in_float32_are_those_of_each_request_alone(step, chunk_size, block_size):
    check_can_run(step)
    decoder = load_decoder(CONFIG, "float32", "cuda", "random")
    prompts = [torch.arange(n).remainder(499).add(1).tolist() for n in (37, 1, 60, 5, 16, 44)]
    engine = Engine(
        decoder, num_blocks=3 * 90 // block_size, block_size=block_size, max_num_seqs=4,
        max_num_batched_tokens=64, chunk_size=chunk_size, prefix_cache=block_size == 16, step=step,
        max_len=100,
    )  # fmt: skip
    expected = [generate(decoder, [p], 20, "static")[0] for p in prompts]
    assert serve(engine, prompts, [20] * 6) == expected
    assert serve(engine, prompts[::-1], [20] * 6) == expected[::-1]


@pytest.mark.parametrize("step", STEPS)
def test_the_real_model_in_float32(step):
    check_can_run(step)
    decoder = load_decoder("smollm2-135m", "float32", "cuda")
    prompts = [torch.arange(7, 7 + n).tolist() for n in (33, 5, 64)]
    engine = Engine(decoder, max_len=128, chunk_size=24, max_num_batched_tokens=48, step=step)
    assert serve(engine, prompts, [24] * 3) == [generate(decoder, [p], 24)[0] for p in prompts]


def test_packed_prompts_have_the_logits_of_padded_ones():
    decoder = load_decoder("llama-3.2-1b", "bfloat16", "cuda", "random")
    prompts = [torch.arange(1, 1 + n).tolist() for n in (700, 3, 250, 64)]
    config = decoder.config
    shape = CacheShape(config.num_layers, 4, config.num_kv_heads, 1024, config.head_dim)
    packed = pack_prompts(decoder, prompts, PagedCache(shape, decoder.dtype, "cuda")).float()
    for row, prompt in zip(packed, prompts, strict=True):
        with torch.inference_mode():
            positions = torch.arange(len(prompt), device="cuda")[None]
            ids = torch.tensor([prompt], device="cuda")
            cache = decoder.new_cache("none", 1, len(prompt))
            expected = decoder(ids, cache, positions)[0].float()
        assert (row - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("step", STEPS)
def test_arrivals_in_real_time(step):
    check_can_run(step)
    backend = load_backend(
        "engine", CONFIG, "bfloat16", "cuda", weights="random", step=step, chunk_size=64,
        max_num_seqs=16, cache_tokens=4096,
    )  # fmt: skip
    workload = poisson_arrivals(unequal_batch(500, [20] * 40, list(range(5, 45))), 100.0)
    run = backend.run(workload)
    assert [len(ids) for ids in run.token_ids] == list(range(5, 45))
    assert all(request.status == "ok" for request in run.trace.requests)


@pytest.mark.parametrize("batch_size", [8, 64, 256])
@pytest.mark.parametrize("step", STEPS)
def test_the_engine_keeps_up_with_the_bare_loop(step, batch_size):
    """Output tokens/s of pure decoding over that of the loop alone, of an 8B shape in bfloat16."""
    check_can_run(step)
    decoder = load_decoder("llama-3.1-8b", "bfloat16", "cuda", "random")
    steps, prompt_len = 64, 128
    prompts = uniform_batch(decoder.config.vocab_size, batch_size, prompt_len, 1).requests
    prompts = [list(spec.prompt_token_ids) for spec in prompts]
    engine = Engine(
        decoder, max_num_seqs=batch_size, max_num_batched_tokens=batch_size * prompt_len,
        max_len=512, step=step,
    )  # fmt: skip

    def by_engine():
        for index, prompt in enumerate(prompts):
            engine.add_request(f"r{index}", prompt, steps + 1)
        engine.step()
        start = time.perf_counter()
        while engine.has_work:
            engine.step()
        return steps * batch_size / (time.perf_counter() - start)

    stepped = FusedDecoder(decoder) if step == "kernels" else decoder

    @torch.inference_mode()
    def bare():
        tokens = pack_prompts(decoder, prompts, engine.cache).argmax(-1)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for index in range(steps):
            positions = torch.tensor([[prompt_len + index]], device="cuda")
            tokens = stepped(tokens[:, None], engine.cache, positions).argmax(-1)
            tokens.tolist()
        rate = steps * batch_size / (time.perf_counter() - start)
        engine.cache.reset()
        return rate

    by_engine(), bare()
    rates = [(by_engine(), bare()) for _ in range(3)]
    ratio = sorted(a / b for a, b in rates)[1]
    print(f"{step}, batch {batch_size}: {rates[1][0]:.0f} tok/s, {ratio:.3f} of the bare loop")
    assert ratio >= 0.85
