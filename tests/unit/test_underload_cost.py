"""Two straight lines predict a server: checked against each other and against an emulated one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.errors import UserError
from inferlab.lengths import Lengths, constant
from inferlab.metrics import SLO, summarize
from inferlab.models.config import get_config
from inferlab.roofline import Ceilings
from inferlab.underload import cost
from inferlab.underload.emulate import EmulatedServer
from inferlab.workload import poisson_times

MODEL = cost.StepModel(decode_s=0.012, row_s=0.001, prefill_s=0.012, token_s=0.0005)
LENGTHS = constant(32, 16).sample(400, 0)
ASKED = cost.demand(MODEL, LENGTHS)
SERVER = EmulatedServer(MODEL, max_num_seqs=8, cache_tokens=4096)


def test_lines_are_fitted_through_steps():
    decode = {b: MODEL.step_s(b) for b in (1, 4, 8)}
    prefill = {n: MODEL.read_s(n) for n in (16, 64, 256)}
    found = cost.fit_steps(decode, prefill)
    assert found.step_s(6) == pytest.approx(MODEL.step_s(6))
    assert found.read_s(100) == pytest.approx(MODEL.read_s(100))
    with pytest.raises(UserError, match="two sizes"):
        cost.fit_steps({1: 0.1}, prefill)
    with pytest.raises(UserError, match="above 0 s"):
        cost.fit_steps(decode, {1: 0.0, 2: 1.0})
    with pytest.raises(UserError, match="negative"):
        cost.StepModel(-1.0, 0, 0, 0)


def test_demand_is_that_of_the_mean_request():
    asked = cost.demand(MODEL, [Lengths(10, 3), Lengths(30, 5)])
    assert asked.read_s == pytest.approx(MODEL.read_s(20))
    assert (asked.decode_steps, asked.output_len) == (3, 4)
    with pytest.raises(UserError, match="at least one request"):
        cost.demand(MODEL, [])


def test_a_crowd_leaves_at_the_capacity():
    crowd = SERVER.open_loop(LENGTHS, np.zeros(400))
    rate = summarize(crowd, warmup=0).requests_per_s
    assert rate == pytest.approx(cost.capacity_req_per_s(MODEL, ASKED, 8), rel=0.3)
    # all prompts of a step share its fixed part, so an emulated crowd is never slower
    assert rate >= cost.capacity_req_per_s(MODEL, ASKED, 8)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_tpot_below_capacity_is_that_of_an_emulated_server(share):
    rate = share * cost.capacity_req_per_s(MODEL, ASKED, 8)
    trace = SERVER.open_loop(LENGTHS, poisson_times(400, rate, 1))
    expected = cost.expected_tpot_s(MODEL, ASKED, rate)
    assert summarize(trace).tpot_s.mean == pytest.approx(expected, rel=0.15)


def test_beyond_capacity_waits_grow_and_throughput_does_not():
    full = cost.capacity_req_per_s(MODEL, ASKED, 8)
    calm, crowded, more = (
        summarize(SERVER.open_loop(LENGTHS, poisson_times(400, factor * full, 3)))
        for factor in (0.5, 1.6, 2.4)
    )
    assert more.ttft_s.p95 > crowded.ttft_s.p95 > 10 * calm.ttft_s.p95
    assert more.output_tok_per_s < 1.15 * crowded.output_tok_per_s


@given(st.floats(0.013, 1.0))
def test_the_largest_rate_meets_its_limit(limit_s):
    rate = cost.rate_within_tpot(MODEL, ASKED, limit_s, 8)
    full = cost.capacity_req_per_s(MODEL, ASKED, 8)
    assert 0 <= rate <= full
    if 0 < rate < full:
        assert cost.expected_tpot_s(MODEL, ASKED, rate) == pytest.approx(limit_s)
    assert cost.rate_within_tpot(MODEL, ASKED, 0.5 * MODEL.step_s(1), 8) == 0


def test_the_knee_is_where_throughput_over_latency_is_largest():
    knee = cost.knee_req_per_s(MODEL, ASKED, 1000)

    def power(rate):
        return rate / (ASKED.read_s + ASKED.decode_steps * cost.expected_tpot_s(MODEL, ASKED, rate))

    assert power(knee) > max(power(0.95 * knee), power(1.05 * knee))
    assert cost.knee_req_per_s(MODEL, ASKED, 1) == cost.capacity_req_per_s(MODEL, ASKED, 1)
    free = cost.Demand(read_s=0.0, decode_steps=10, output_len=11)
    pole = 1 / (10 * MODEL.row_s)
    assert cost.knee_req_per_s(MODEL, free, 1000) == pytest.approx(pole / 2)


def test_an_emulated_server_finds_its_largest_rate():
    full = cost.capacity_req_per_s(MODEL, ASKED, 8)
    limits = SLO(ttft_s=1.0, tpot_s=2 * MODEL.step_s(1))
    rate = SERVER.max_rate(LENGTHS, limits, 0.9, 2 * full)
    by_hand = cost.rate_within_tpot(MODEL, ASKED, limits.tpot_s, 8)
    assert 0.5 * by_hand < rate < 1.5 * by_hand
    assert SERVER.max_rate(LENGTHS, SLO(tpot_s=1e-6), 0.9, full) == 0


def test_no_batch_is_large_enough_beyond_the_pole():
    pole = 1 / (ASKED.read_s + ASKED.decode_steps * MODEL.row_s)
    assert cost.expected_tpot_s(MODEL, ASKED, pole * 1.01) == math.inf
    with pytest.raises(UserError, match="negative"):
        cost.expected_tpot_s(MODEL, ASKED, -1)
    with pytest.raises(UserError, match="max_num_seqs"):
        cost.capacity_req_per_s(MODEL, ASKED, 0)


@pytest.mark.parametrize("clients", [1, 4, 8])
def test_a_closed_loop_has_the_rate_of_its_clients(clients):
    trace = SERVER.closed_loop(LENGTHS, clients)
    summary = summarize(trace)
    expected = cost.capacity_req_per_s(MODEL, ASKED, clients)  # that of a batch of their number
    assert summary.requests_per_s == pytest.approx(expected, rel=0.3)
    assert summary.e2e_s.mean == pytest.approx(clients / expected, rel=0.3)  # Little's law
    first = [r.scheduled for r in trace.requests[:clients]]
    assert first == [0.0] * clients and trace.meta["label"] == "emulated"


def test_a_closed_loop_hides_the_queue_that_an_open_one_shows():
    closed = summarize(SERVER.closed_loop(LENGTHS, 8))
    opened = summarize(SERVER.open_loop(LENGTHS, poisson_times(400, closed.requests_per_s, 2)))
    assert opened.ttft_s.p95 > 2 * closed.ttft_s.p95


def test_chunks_ride_along_with_decodes():
    chunked = EmulatedServer(MODEL, 8, 4096, chunk_size=16)
    lengths = [*constant(16, 40).sample(2, 0), Lengths(320, 2)]
    gaps = {
        name: summarize(server.open_loop(lengths, [0.0, 0.0, 0.2])).itl_s.max
        for name, server in (("whole", SERVER), ("chunks", chunked))
    }
    assert gaps["whole"] > MODEL.read_s(320) > 2 * gaps["chunks"]


def test_what_an_emulated_server_refuses():
    with pytest.raises(UserError, match="as many times"):
        SERVER.open_loop(LENGTHS, [0.0])
    with pytest.raises(UserError, match="a client"):
        SERVER.closed_loop(LENGTHS, 0)


def test_a_hit_leaves_the_last_block_to_read():
    assert cost.hit_gain(MODEL, 33, 16) == pytest.approx(MODEL.read_s(1) / MODEL.read_s(33))
    assert cost.hit_gain(MODEL, 32, 16) == pytest.approx(MODEL.read_s(16) / MODEL.read_s(32))


def test_the_roofline_of_a_whole_run_lies_below_that_of_its_decode_steps():
    config = get_config("llama-3.1-8b")
    ceilings = Ceilings(4.8e12, 989e12)
    some = cost.roofline_tok_per_s(config, "bfloat16", 128, 128, 64, ceilings)
    many = cost.roofline_tok_per_s(config, "bfloat16", 128, 128, 256, ceilings)
    longer = cost.roofline_tok_per_s(config, "bfloat16", 1000, 1000, 256, ceilings)
    assert 64 / (16e9 / 4.8e12) > some > 0 and many > 2 * some and longer < many
