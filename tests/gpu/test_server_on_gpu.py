"""The server over an engine on a CUDA device: the same tokens, and what serving adds to a step.

The ratio is judged by a wide band; what was reached is printed (`pytest -s`).
"""

import concurrent.futures
import statistics
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from server_examples import TestServer, events  # noqa: E402
from tiny_models import tiny  # noqa: E402

from inferlab import kernels  # noqa: E402
from inferlab.decoding import generate  # noqa: E402
from inferlab.models.load import load_decoder  # noqa: E402
from inferlab.server.text import NumberCodec  # noqa: E402
from inferlab.serving.engine import Engine  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CONFIG = tiny("tiny-d64", hidden_size=96, head_dim=64, num_layers=4, vocab_size=500)


def check_can_run(step):
    if step == "kernels" and (why := kernels.why_unavailable("cuda")):
        pytest.skip(why)


@pytest.mark.parametrize("step", ["eager", "kernels"])
def test_streams_are_what_generate_writes(step):
    check_can_run(step)
    decoder = load_decoder(CONFIG, "float32", "cuda", "random")
    prompts = [[1 + number] * (3 + 7 * number) for number in range(6)]
    expected = [generate(decoder, [prompt], 20, "static")[0] for prompt in prompts]
    engine = Engine(decoder, num_blocks=64, max_num_seqs=4, step=step)

    def streamed(prompt):
        response = server.post(
            prompt=prompt, max_tokens=20, temperature=0, stream=True, return_token_ids=True
        )
        return [event["choices"][0]["token_ids"][0] for event in events(response)]

    with (
        TestServer(engine, codec=NumberCodec(), vocab=500) as server,
        concurrent.futures.ThreadPoolExecutor(6) as pool,
    ):
        assert list(pool.map(streamed, prompts)) == expected
    assert engine.cache.manager.problems() == []


@pytest.mark.slow
@pytest.mark.parametrize("num_streams", [1, 8, 64])
def test_serving_adds_little_to_a_step(num_streams):
    """Medians of the gaps between steps, without HTTP and with it; rounds take turns."""
    check_can_run("kernels")
    decoder = load_decoder("llama-3.2-1b", "bfloat16", "cuda", "random")
    engine = Engine(decoder, max_num_seqs=64, step="kernels")
    prompts = [[10 + number] * 32 for number in range(num_streams)]
    ends: list[float] = []
    step = engine.step

    def timed_step():
        outputs = step()
        ends.append(time.perf_counter())
        return outputs

    engine.step = timed_step

    def bare():
        for number, prompt in enumerate(prompts):
            engine.add_request(f"bare-{number}", prompt, 100)
        while engine.has_work:
            engine.step()

    def gap_s():
        gaps = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        ends.clear()
        return statistics.median(gaps)

    ratios = []
    vocab = decoder.config.vocab_size
    with (
        TestServer(engine, codec=NumberCodec(), vocab=vocab, max_open=64) as server,
        concurrent.futures.ThreadPoolExecutor(64) as pool,
    ):
        for _ in range(5):
            time.sleep(0.2)  # the server's thread waits for requests again: one thread steps
            thread = threading.Thread(target=bare)
            thread.start()
            thread.join()
            alone_s = gap_s()
            fields = {"max_tokens": 96, "temperature": 0, "stream": True}
            list(pool.map(lambda p, f=fields: server.post(prompt=p, **f), prompts))
            server.wait_idle()
            ratios.append(gap_s() / alone_s)
    print(f"{num_streams} streams: a step takes {statistics.median(ratios):.3f} of its time alone")
    assert statistics.median(ratios[1:]) < 2.0  # the clients are threads of this process too
