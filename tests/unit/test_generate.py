import pytest
import torch
from test_kvcache import decoder_of

from inferlab.decoding import Sampling, generate
from inferlab.errors import UserError

PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6]]


def test_each_prompt_gets_its_own_number_of_tokens():
    decoder = decoder_of("llama")
    full = generate(decoder, PROMPTS, 8)
    assert generate(decoder, PROMPTS, [3, 8, 1]) == [full[0][:3], full[1], full[2][:1]]


def test_steps_are_reported_in_order_with_their_tokens():
    decoder = decoder_of("qwen2")
    seen = []
    tokens = generate(
        decoder, PROMPTS, 5, on_step=lambda step, chosen: seen.append((step, chosen.tolist()))
    )
    assert [step for step, _ in seen] == list(range(5))
    assert [list(column) for column in zip(*tokens, strict=True)] == [chosen for _, chosen in seen]


@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
def test_sampling_repeats_with_its_seed(cache):
    decoder = decoder_of("qwen3")
    sampling = Sampling(temperature=1.5, top_k=20, top_p=0.95, seed=4)
    first = generate(decoder, PROMPTS, 12, cache, sampling)
    assert generate(decoder, PROMPTS, 12, cache, sampling) == first
    other = Sampling(temperature=1.5, top_k=20, top_p=0.95, seed=5)
    assert generate(decoder, PROMPTS, 12, cache, other) != first


def test_a_cache_can_be_used_again():
    decoder = decoder_of("llama")
    store = decoder.new_cache("static", 3, 40)
    first = generate(decoder, PROMPTS, 10, store)
    assert generate(decoder, PROMPTS, 10, store) == first == generate(decoder, PROMPTS, 10)


def test_padding_never_turns_into_nan():
    decoder = decoder_of("llama")
    seen = []
    generate(decoder, [[1], [1] * 30], 4, on_step=lambda _, chosen: seen.append(chosen))
    store = decoder.new_cache("static", 2, 33)
    generate(decoder, [[1], [1] * 30], 4, store)
    assert all(torch.isfinite(part).all() for part in store._store)


@pytest.mark.parametrize(
    ("prompts", "output_len", "says"),
    [
        ([], 4, "nothing to continue"),
        ([[]], 4, "nothing to continue"),
        ([[1]], 0, "output_len"),
        ([[1], [2]], [1], "output_len"),
        ([[61]], 1, "outside 0 to 60"),
        ([[-1]], 1, "outside 0 to 60"),
        ([[1] * 100], 30, "129 tokens are more than the 128"),
    ],
)
def test_what_cannot_be_served_is_refused(prompts, output_len, says):
    with pytest.raises(UserError, match=says):
        generate(decoder_of("llama"), prompts, output_len)
