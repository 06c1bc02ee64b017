"""Bytes, batches and FLOPs of layouts follow from shapes; checked against numbers by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab import layoutcost
from inferlab.errors import UserError
from inferlab.layoutcost import get_layout, kv_bytes_per_token, predict_step, step_cost
from inferlab.models.config import get_config
from inferlab.models.cost import decode_cost
from inferlab.roofline import Ceilings, predict_s

SMALL, LARGE = get_config("smollm2-135m"), get_config("llama-3.1-8b")
NAMES = ("mha", "gqa", "mqa", "latent-128", "absorbed-128", "decoupled-128")
LIMITS = Ceilings(2e10, 5e11, 1e-3, 1e-5)


def test_bytes_of_a_token_by_hand():
    by_hand = {
        "mha": 2 * 30 * 9 * 64 * 2, "gqa": 2 * 30 * 3 * 64 * 2, "mqa": 2 * 30 * 64 * 2,
        "latent-128": 30 * 128 * 2, "absorbed-128": 30 * 128 * 2,
        "decoupled-128": 30 * (128 + 32) * 2,
    }  # fmt: skip
    found = {name: kv_bytes_per_token(get_layout(SMALL, name), "bfloat16") for name in NAMES}
    assert found == by_hand
    assert kv_bytes_per_token(get_layout(LARGE, "mha"), "bfloat16") == 2 * 32 * 32 * 128 * 2


@pytest.mark.parametrize("name", ["mha", "gqa", "mqa"])
def test_a_layout_of_heads_costs_what_its_shape_costs(name):
    layout = get_layout(SMALL, name)
    assert step_cost(layout, "bfloat16", 3, 500) == decode_cost(layout.config, "bfloat16", 3, 500)
    expected = predict_s(decode_cost(layout.config, "bfloat16", 3, 500), LIMITS, 3)
    assert predict_step(layout, "bfloat16", 3, 500, LIMITS)["step_s"] == pytest.approx(expected)


def test_remaking_grows_with_the_context_and_is_counted_by_hand():
    layout = get_layout(SMALL, "latent-128")
    short, long = (predict_step(layout, "bfloat16", 2, s, LIMITS) for s in (100, 1100))
    by_hand = 2 * 1000 * 30 * 2 * 128 * 384  # B S L, a multiply-add, r by keys and values
    assert long["remake_flops"] - short["remake_flops"] == pytest.approx(by_hand)
    absorbed = predict_step(get_layout(SMALL, "absorbed-128"), "bfloat16", 2, 1100, LIMITS)
    assert absorbed["remake_flops"] == pytest.approx(long["remake_flops"] / 2)
    none = predict_step(get_layout(SMALL, "decoupled-128"), "bfloat16", 2, 1100, LIMITS)
    assert none["remake_flops"] == 0 and none["step_s"] < absorbed["step_s"] < long["step_s"]


def test_weights_of_a_factored_layer_by_hand():
    layer = 576 * (576 + 384) + 576 * 576 + 3 * 576 * 1536
    assert get_layout(SMALL, "gqa").layer_params == layer
    latent = layer - 576 * 384 + 128 * (576 + 384)
    assert get_layout(SMALL, "latent-128").layer_params == latent
    assert get_layout(SMALL, "decoupled-128").layer_params == latent + 576 * 10 * 32


@given(st.sampled_from(NAMES), st.integers(1, 5000), st.integers(0, 10**9))
def test_the_largest_batch_fits_and_one_more_does_not(name, context_len, budget):
    layout = get_layout(SMALL, name)
    count = layoutcost.largest_batch(layout, "bfloat16", context_len, budget)
    assert layoutcost.cache_bytes(layout, "bfloat16", count + 1, context_len) > budget
    if count:
        assert layoutcost.cache_bytes(layout, "bfloat16", count, context_len) <= budget


def test_slopes_tell_reading_from_remaking():
    kept = layoutcost.slope_s(get_layout(SMALL, "mqa"), "bfloat16", LIMITS)
    assert kept == pytest.approx(7680 / 2e10)
    made = layoutcost.slope_s(get_layout(SMALL, "latent-128"), "bfloat16", LIMITS)
    assert made == pytest.approx(7680 / 2e10 + 30 * 2 * 128 * 384 / 5e11)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("latent-0", "out of range"),
        ("latent-385", "1 to 384"),
        ("latent", "lacks its rank"),
        ("absorbed-x", "lacks its rank"),
        ("decoupled--3", "lacks its rank"),
        ("gqa-2", "cannot share 2"),
        ("mla", "unknown layout"),
        (None, "unknown layout"),
    ],
)
def test_bad_layouts_are_refused_in_one_line(name, says):
    with pytest.raises(UserError, match=says) as error:
        get_layout(SMALL, name)
    assert "\n" not in str(error.value)
