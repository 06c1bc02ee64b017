"""What a search for the highest rate finds, when nothing but the times of arrivals differs."""

from inferlab.lengths import Lengths
from inferlab.metrics import SLO
from inferlab.underload.cost import StepModel
from inferlab.underload.emulate import EmulatedServer
from inferlab.underload.luck import found_rates

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


def test_limits_that_nobody_can_meet_give_nothing():
    assert spread(24, 2, SLO(ttft_s=1e-4, tpot_s=1e-4)) == [0.0, 0.0]
