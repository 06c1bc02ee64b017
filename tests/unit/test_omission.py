"""The stall's arithmetic against the simulated server, and the law of the definitions' spread."""

import numpy as np
import pytest

from inferlab.dialects.spread import (
    output_len_for_spread,
    per_token_s,
    predicted_spread_ratio,
    spread_ratio,
)
from inferlab.errors import UserError
from inferlab.metrics import summarize, tpot_s
from inferlab.omission import StallScenario
from inferlab.stats import percentile
from inferlab.trace import Request, Trace
from inferlab.trace.rechunk import rechunk


def one_answer(ttft=0.5, tpot=0.02, tokens=11):
    events = tuple((ttft + tpot * step, 1) for step in range(tokens))
    return Trace((Request("a", 0.0, 0.0, 9, events),), {"label": "measured"})


@pytest.mark.parametrize("stall_s", [1.0, 2.0, 4.0])
def test_the_predicted_tail_is_what_the_open_client_sees(stall_s):
    scenario = StallScenario(num_requests=4000, stall_s=stall_s * 4)
    seen = summarize(scenario.run("open"))
    assert scenario.predicted_ttft_s(99) == pytest.approx(seen.ttft_s.p99, rel=0.2)
    late = sum(r.events[0][0] - r.scheduled > 0.3 for r in scenario.run("open").requests)
    assert scenario.delayed_requests == pytest.approx(late, rel=0.25)


def test_the_waiting_client_sees_an_undisturbed_p99():
    scenario = StallScenario()
    fooled = summarize(scenario.run("waiting"))
    assert fooled.ttft_from_sent_s.p99 == pytest.approx(scenario.undisturbed_ttft_s, rel=0.01)
    assert fooled.ttft_s.p99 > 100 * fooled.ttft_from_sent_s.p99


def test_a_stall_short_enough_is_hidden_from_p99():
    for factor, hidden in ((0.5, True), (2.0, False)):
        scenario = StallScenario(num_requests=4000)
        stall_s = factor * scenario.longest_hidden_stall_s(99)
        seen = summarize(StallScenario(num_requests=4000, stall_s=stall_s).run("open"))
        assert (seen.ttft_s.p99 < 0.2) == hidden


def test_a_queue_that_grows_without_end_is_refused():
    with pytest.raises(UserError, match="capacity"):
        StallScenario(rate_req_per_s=30.0)


@pytest.mark.parametrize("ttft", [0.005, 0.02, 0.5, 3.0])
@pytest.mark.parametrize("tokens", [2, 7, 100])
def test_the_spread_of_the_definitions_is_one_plus_r_over_gaps(ttft, tokens):
    trace = one_answer(ttft, 0.02, tokens)
    assert spread_ratio(trace) == pytest.approx(predicted_spread_ratio(ttft / 0.02, tokens))


def test_the_length_from_which_definitions_agree():
    assert output_len_for_spread(10, 1.05) == 201
    assert predicted_spread_ratio(10, 201) == pytest.approx(1.05)
    with pytest.raises(UserError):
        output_len_for_spread(10, 1.0)
    with pytest.raises(UserError):
        spread_ratio(one_answer(tokens=1))


def test_rechunking_keeps_tokens_and_ends_and_moves_gaps():
    trace = one_answer(tokens=10)
    pairs = rechunk(trace, 2, empty_at_ratio=0.5)
    before, after = trace.requests[0], pairs.requests[0]
    assert [tokens for _, tokens in after.events] == [0, 1, 2, 2, 2, 2, 1]
    assert after.events[0][0] == pytest.approx(0.25)
    assert after.output_tokens == before.output_tokens and tpot_s(after) == tpot_s(before)
    assert pairs.meta["label"] == "emulated" and trace.meta["label"] == "measured"
    own, moved = per_token_s(trace), per_token_s(pairs)
    assert moved["vllm: mean_tpot_ms"] > 2 * own["vllm: mean_tpot_ms"]
    assert moved["aiperf: inter_token_latency"] == pytest.approx(own["aiperf: inter_token_latency"])


@pytest.mark.parametrize("wrong", [{"events_per_chunk": 0}, {"events_per_chunk": 1.5},
                                   {"events_per_chunk": 2, "empty_at_ratio": 1.1}])  # fmt: skip
def test_impossible_chunks_are_refused(wrong):
    with pytest.raises(UserError):
        rechunk(one_answer(), **wrong)


def test_a_percentile_band_holds_its_promise():
    """The order statistics that `stats` names enclose the true p99 in about 95 of 100 samples."""
    from inferlab.stats import percentile_interval

    rng = np.random.default_rng(3)
    band = percentile_interval(1000, 99)
    draws = np.sort(rng.exponential(size=(2000, 1000)))
    truth = -np.log(0.01)
    inside = (draws[:, band.low_rank - 1] <= truth) & (truth <= draws[:, band.high_rank - 1])
    assert inside.mean() == pytest.approx(band.coverage, abs=0.02)
    assert percentile(draws[0], 99) <= draws[0].max()


def test_an_even_pace_without_a_stall_leaves_nothing_to_hide():
    scenario = StallScenario(num_requests=500, stall_s=0.0, even_pace=True)
    for client in ("open", "waiting"):
        seen = summarize(scenario.run(client))
        expected = pytest.approx(scenario.predicted_ttft_s(99))
        for quantity in (seen.ttft_s, seen.ttft_from_sent_s):
            assert [quantity.mean, quantity.median, quantity.p99] == [expected] * 3
