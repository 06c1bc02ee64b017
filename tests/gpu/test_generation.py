"""Our decoder, its caches and the backends on a CUDA device."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from tiny_models import TINY  # noqa: E402

from inferlab.backends import load_backend  # noqa: E402
from inferlab.models.config import get_config  # noqa: E402
from inferlab.models.cost import kv_cache_bytes  # noqa: E402
from inferlab.workload import unequal_batch, uniform_batch  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

WORKLOAD = unequal_batch(61, [3, 11, 40, 1], [20, 2, 30, 1], seed=2)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("cache", ["none", "dynamic", "static", "offloaded"])
def test_every_cache_gives_the_tokens_of_transformers(kind, cache):
    options = {"device": "cuda", "weights": "random"}
    expected = load_backend("hf", TINY[kind], "float32", **options).run(WORKLOAD)
    ours = load_backend("torch", TINY[kind], "float32", cache=cache, **options)
    assert ours.run(WORKLOAD).token_ids == expected.token_ids
    assert ours.run(WORKLOAD).token_ids == expected.token_ids  # the cache used again


@pytest.mark.parametrize("cache", ["static", "offloaded"])
def test_the_real_model_in_float32(cache):
    workload = unequal_batch(49152, [5, 33, 1, 64], 24, seed=5)
    expected = load_backend("hf", "smollm2-135m", "float32", "cuda").run(workload)
    ours = load_backend("torch", "smollm2-135m", "float32", "cuda", cache=cache)
    assert ours.run(workload).token_ids == expected.token_ids


def test_offloading_keeps_the_cache_off_the_device():
    workload = uniform_batch(49152, 16, 500, 4)
    held = {}
    for cache in ("static", "offloaded"):
        backend = load_backend("torch", "smollm2-135m", "bfloat16", "cuda", cache=cache)
        backend.run(workload)
        held[cache] = torch.cuda.memory_allocated()
        del backend
    # all 30 layers on the device against two
    saved = kv_cache_bytes(get_config("smollm2-135m"), "bfloat16", 16, 503) * 28 / 30
    assert held["static"] - held["offloaded"] == pytest.approx(saved, rel=0.05)


def test_out_of_memory_passes_through_and_the_backend_survives():
    backend = load_backend("torch", "llama-3.2-1b", "bfloat16", "cuda", weights="random")
    free, _ = torch.cuda.mem_get_info()
    per_row = kv_cache_bytes(backend.config, "bfloat16", 1, 100_000)
    with pytest.raises(torch.OutOfMemoryError):
        backend.run(uniform_batch(1000, free // per_row + 2, 99_990, 10))
    torch.cuda.empty_cache()
    assert len(backend.run(uniform_batch(1000, 1, 8, 4)).token_ids[0]) == 4
