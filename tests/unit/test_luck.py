"""What a search for the highest rate finds, when nothing but the times of arrivals differs."""

from inferlab.lengths import Lengths
from inferlab.metrics import SLO
from inferlab.underload.cost import StepModel
from inferlab.underload.emulate import EmulatedServer
from inferlab.underload.luck import found_rates, ttft_gaps

SERVER = EmulatedServer(StepModel(0.010, 0.001, 0.020, 0.0), max_num_seqs=8, cache_tokens=8192)
ONE, LIMITS = Lengths(32, 16), SLO(ttft_s=0.2, tpot_s=0.020)


def spread(count, draws=12, slo=LIMITS):
    rates = found_rates(SERVER, ONE, slo, 0.9, 5.0, lambda _: count, draws)
    assert rates == sorted(rates) and len(rates) == draws
    return rates


def test_more_requests_leave_less_to_luck():
    few, many = spread(24), spread(600)
    assert few[-1] / few[0] > 1.5 * many[-1] / many[0]


def test_the_same_draws_find_the_same():
    assert spread(24, 3) == spread(24, 3)


def test_one_run_of_bursts_is_a_draw_and_all_draws_wait_longer_than_a_metronome():
    rung = {"family": "conv", "num_requests": 60, "divisor": 32, "rate_req_per_s": 15.0}
    even, bursts = ({**rung, "traffic": t} for t in ("constant-even", "conv-bursts"))
    gaps = ttft_gaps(SERVER, bursts, even, q=90, draws=8)
    assert gaps == sorted(gaps) and len(gaps) == 8 and 1 < gaps[0] < 0.8 * gaps[-1]
    assert ttft_gaps(SERVER, even, even, q=90, draws=2) == [1.0, 1.0]


def test_limits_that_nobody_can_meet_give_nothing():
    assert spread(24, 2, SLO(ttft_s=1e-4, tpot_s=1e-4)) == [0.0, 0.0]
