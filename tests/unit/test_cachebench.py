"""Cases of the caches: their cost, what they report, and that all variants write the same text."""

import pytest
from tiny_models import TINY

from inferlab import cachebench, cachecost
from inferlab.backends.torch import TorchBackend
from inferlab.bench import Shape
from inferlab.models.config import get_config
from inferlab.models.cost import decode_cost, kv_cache_bytes, prefill_cost
from inferlab.models.load import load_decoder

CONFIG = get_config("smollm2-135m")
KIND = next(iter(TINY))


def test_a_cpu_has_no_second_memory_to_offload_to():
    assert cachebench.cache_kinds("cpu") == ("none", "dynamic", "static")
    assert cachebench.cache_kinds("cuda")[-1] == "offloaded"


def test_without_a_cache_a_step_is_a_prefill():
    assert cachecost.step_cost(CONFIG, "bfloat16", "none", 3, 77) == prefill_cost(
        CONFIG, "bfloat16", 3, 77
    )


def test_a_growing_cache_moves_three_times_the_bytes_of_attention():
    static = cachecost.step_cost(CONFIG, "bfloat16", "static", 3, 77)
    grown = cachecost.step_cost(CONFIG, "bfloat16", "dynamic", 3, 77)
    assert static == decode_cost(CONFIG, "bfloat16", 3, 77)
    cache = kv_cache_bytes(CONFIG, "bfloat16", 3, 77)
    assert grown.bytes - static.bytes == 2 * cache
    assert grown.flops == static.flops


@pytest.mark.parametrize("kind", ["none", "dynamic", "static"])
def test_a_case_reports_the_bytes_that_it_predicted(kind):
    decoder = load_decoder(TINY[KIND], "float32", "cpu", "random")
    backend = TorchBackend(decoder, kind, weights="random")
    case = cachebench.cache_case(kind, backend, Shape(2, 5, 4), "cpu")
    values = case.run()
    assert next(iter(values)) == "tpot_s"  # what the stop rule looks at
    assert values["kv_bytes"] == case.predicted["kv_bytes"]
    assert 0 < values["fastest_step_s"] <= values["tpot_s"] * (1 + 1e-9)
    assert case.params["context_len"] == 8
    assert set(case.predicted) >= {"tpot_s", "ttft_s", "output_tok_per_s", "weight_bytes"}


def test_one_output_token_has_no_step():
    decoder = load_decoder(TINY[KIND], "float32", "cpu", "random")
    case = cachebench.cache_case("static", TorchBackend(decoder), Shape(1, 5, 1), "cpu")
    assert "tpot_s" not in case.predicted
    assert "fastest_step_s" not in case.run()


def test_memory_case_allocates_what_it_says():
    decoder = load_decoder(TINY[KIND], "float32", "cpu", "random")
    case = cachebench.memory_case(decoder, 3, 11, "float32")
    assert case.run()["kv_bytes"] == case.predicted["kv_bytes"]


def test_crossover_is_weights_over_bytes_per_token():
    assert cachecost.crossover_tokens("smollm2-135m", "bfloat16") == pytest.approx(
        269_030_016 / 23_040
    )
