"""The laws that the roofline must obey, whatever the machine."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab import roofline
from inferlab.errors import UserError
from inferlab.models.config import get_config
from inferlab.models.cost import decode_cost, prefill_cost
from inferlab.quant.formats import get_format

H200 = roofline.Ceilings(read_bytes_per_s=4.3e12, flops_per_s=790e12)
LLAMA = get_config("llama-3.1-8b")
SMOL = get_config("smollm2-135m")


def test_published_floor_of_an_8b_model_on_an_h200():
    # references/performance.md (b): 15.0 GB a step, 3.49 ms at 4.3 TB/s
    cost = decode_cost(LLAMA, "bfloat16", 1, 1)
    assert cost.weight_bytes == pytest.approx(15.0e9, rel=0.005)
    assert roofline.floor_s(cost, H200) == pytest.approx(3.49e-3, rel=0.01)


@pytest.mark.parametrize(("prompt_len", "expected_s"), [(512, 9.1e-3), (2048, 37.6e-3)])
def test_published_prefill_floor_of_an_8b_model_on_an_h200(prompt_len, expected_s):
    floor = roofline.floor_s(prefill_cost(LLAMA, "bfloat16", 1, prompt_len), H200)
    assert floor == pytest.approx(expected_s, rel=0.02)


def test_ridge_batch_of_bf16_is_about_184_on_an_h200():
    assert roofline.ridge_batch_size(LLAMA, "bfloat16", H200) == pytest.approx(184, rel=0.03)


def test_a_long_context_never_becomes_compute_bound():
    assert math.isinf(roofline.ridge_batch_size(LLAMA, "bfloat16", H200, context_len=100_000))


@given(st.integers(1, 64))
def test_the_bound_changes_at_the_ridge(context_len):
    ridge = roofline.ridge_batch_size(LLAMA, "bfloat16", H200, context_len)
    below = decode_cost(LLAMA, "bfloat16", math.floor(ridge), context_len)
    above = decode_cost(LLAMA, "bfloat16", math.ceil(ridge) + 1, context_len)
    assert roofline.bound(below, H200) == "memory"
    assert roofline.bound(above, H200) == "compute"


def test_decode_is_memory_bound_and_a_long_prefill_compute_bound():
    assert roofline.bound(decode_cost(SMOL, "bfloat16", 1, 64), H200) == "memory"
    assert roofline.bound(prefill_cost(SMOL, "bfloat16", 1, 2048), H200) == "compute"


@given(st.integers(1, 256), st.integers(1, 4096))
def test_floor_never_falls_with_more_rows_or_more_context(batch_size, context_len):
    here = roofline.floor_s(decode_cost(SMOL, "bfloat16", batch_size, context_len), H200)
    more = roofline.floor_s(decode_cost(SMOL, "bfloat16", batch_size + 1, context_len + 1), H200)
    assert more > here


def test_a_step_at_its_memory_floor_has_mbu_one():
    cost = decode_cost(SMOL, "bfloat16", 1, 64)
    assert roofline.mbu_ratio(cost, roofline.memory_s(cost, H200), H200) == pytest.approx(1)
    assert roofline.mfu_ratio(cost, roofline.compute_s(cost, H200), H200) == pytest.approx(1)


@given(st.floats(0, 0.01), st.floats(0, 0.001))
def test_the_fit_recovers_the_overheads_that_made_the_times(overhead_s, row_s):
    batches = [1, 2, 4, 8]
    costs = [decode_cost(SMOL, "bfloat16", b, 128) for b in batches]
    times = [
        roofline.floor_s(c, H200) + overhead_s + row_s * b
        for c, b in zip(costs, batches, strict=True)
    ]
    fitted = roofline.fit_overhead(costs, batches, times, H200)
    for cost, batch, seconds in zip(costs, batches, times, strict=True):
        assert roofline.predict_s(cost, fitted, batch) == pytest.approx(seconds, rel=1e-6)


def test_a_step_faster_than_its_floor_fits_no_negative_overhead():
    costs = [decode_cost(SMOL, "bfloat16", b, 128) for b in (1, 8)]
    fitted = roofline.fit_overhead(costs, [1, 8], [1e-9, 1e-9], H200)
    assert fitted.overhead_s == fitted.token_overhead_s == 0


def test_a_perfect_int4_kernel_pays_until_the_step_computes_in_both():
    int4 = get_format("int4-g128")
    batch = roofline.crossover_batch_size(LLAMA, "bfloat16", int4, H200, H200)
    assert batch == pytest.approx(roofline.ridge_batch_size(LLAMA, "bfloat16", H200))
    assert roofline.ridge_batch_size(LLAMA, "bfloat16", H200, weight_format=int4) < batch / 3


@given(
    st.floats(0.05, 2),
    st.floats(0.05, 2),
    st.floats(0, 1e-3),
    st.sampled_from(["int8", "int4-g64"]),
)
def test_the_crossover_is_where_the_two_predictions_meet(streaming, rate, overhead_s, name):
    format = get_format(name)
    variant = roofline.Ceilings(
        H200.read_bytes_per_s * streaming, H200.flops_per_s * rate, overhead_s
    )
    batch = roofline.crossover_batch_size(LLAMA, "bfloat16", format, H200, variant, 64)

    def faster(size):
        plain = roofline.predict_tpot_s(LLAMA, "bfloat16", size, 64, H200)
        return roofline.predict_tpot_s(LLAMA, "bfloat16", size, 64, variant, format) < plain

    if batch == 1.0:
        assert not faster(1)
    elif math.isinf(batch):
        assert all(faster(size) for size in (1, 7, 100, 10_000))
    else:
        below, above = math.ceil(batch * (1 - 1e-6)) - 1, math.floor(batch * (1 + 1e-6)) + 1
        assert below < 1 or faster(below)
        assert not faster(above) or above > batch + 1


def test_keeping_the_head_plain_gains_less():
    int4 = get_format("int4-g32")
    plain, low, kept = (
        roofline.predict_tpot_s(SMOL, "bfloat16", 1, 1, H200, *how)
        for how in ((), (int4,), (int4, ("head",)))
    )
    assert low < kept < plain
    low, plain = (
        roofline.predict_ttft_s(SMOL, "bfloat16", 1, 1, H200, *how) for how in ((int4,), ())
    )
    assert low < plain


def test_bad_ceilings_and_too_few_cases_are_refused():
    with pytest.raises(UserError):
        roofline.Ceilings(0, 1)
    with pytest.raises(UserError):
        roofline.Ceilings(1, 1, overhead_s=-1)
    with pytest.raises(UserError, match="two measured cases"):
        roofline.fit_overhead([decode_cost(SMOL, "bfloat16", 1, 1)], [1], [1.0], H200)
