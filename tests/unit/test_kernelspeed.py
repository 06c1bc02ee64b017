"""Predictions for separate and fused operators: monotone, additive, and honest at their ends."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab import kernelspeed
from inferlab.errors import UserError
from inferlab.kernelcost import KernelCost, Operator, cost
from inferlab.models.config import get_config

SMALL = get_config("smollm2-135m")


def rates(**changes):
    fields = {
        "read": ((1000, 100.0), (100_000, 10.0)), "copy": ((1000, 50.0), (100_000, 5.0)),
        "numbers_per_s": 1e9, "exponentials_per_s": 1e8, "flops_per_s": 1e10,
        "launch_s": {"eager": 1.0, "compile": 3.0, "triton": 2.0, "graph": 0.25},
    }  # fmt: skip
    return kernelspeed.Rates(**{**fields, **changes})


def test_bandwidth_between_and_beyond_working_sets():
    table = rates().read
    assert kernelspeed.rate_at(table, 1) == kernelspeed.rate_at(table, 1000) == 100.0
    assert kernelspeed.rate_at(table, 10_000) == pytest.approx(math.sqrt(1000.0))
    assert kernelspeed.rate_at(table, 1e9) == 10.0
    with pytest.raises(UserError, match="no bandwidth was measured"):
        kernelspeed.rate_at((), 5)


def test_bytes_in_pairs_move_at_the_rate_of_a_copy():
    assert rates().memory_s(Operator("read", 100, 0)) == 1.0
    assert rates().memory_s(Operator("copy", 50, 50)) == 2.0
    assert rates().memory_s(Operator("norm", 100, 50)) == pytest.approx(100 / 50 + 50 / 100)
    assert rates().memory_s(Operator("fill", 0, 100)) == 2.0
    assert rates().memory_s(Operator("nothing", 0, 0)) == 0.0
    assert rates().memory_s(Operator("read", 100, 0), cold=True) == 10.0


def test_each_operator_takes_the_longer_of_moving_and_computing_and_a_launch():
    moves, computes = Operator("a", 100, 0), Operator("b", 100, 0, exponentials=1e9)
    both = KernelCost((moves, computes))
    assert rates().work_s(both) == 1.0 + 10.0
    assert rates().predict_s(both) == 11.0 + 2.0
    assert rates(overlaps=True).predict_s(both) == 11.0
    assert rates().predict_device_s(both) == pytest.approx(10.0 + 10.0 + 0.5)
    assert rates().floor_s(both) == 2.0
    assert rates().bandwidth_share(both, 4.0) == 0.5


def test_a_launch_that_was_not_measured_is_refused():
    bare = rates(launch_s={"eager": 1.0})
    with pytest.raises(UserError, match="launch cost of 'compile' was not measured"):
        bare.predict_s(cost("swiglu", "compile", SMALL, "bfloat16", 4))


@pytest.mark.parametrize(
    ("gains", "at"),
    [
        ({1: 2.0, 10: 3.0}, 0.0),
        ({1: 0.5, 10: 0.9}, math.inf),
        ({1: 0.5, 100: 2.0}, 10.0),
        ({1: 2.0, 10: 0.5, 1000: 2.0}, 100.0),  # only what stays counts
        ({1: 0.5, 10: 2.0, 100: 0.9}, math.inf),
    ],
)
def test_a_crossover_is_where_a_gain_stays_above_one(gains, at):
    assert kernelspeed.crossover_size(gains) == pytest.approx(at)


@pytest.mark.parametrize("gains", [{}, {1: 0.0}])
def test_a_crossover_needs_gains(gains):
    with pytest.raises(UserError, match="gains above zero"):
        kernelspeed.crossover_size(gains)


def test_a_predicted_crossover_solves_the_straight_lines():
    """Launches 2 against 12 and 3 against 1 second a row: they meet at 5 rows."""
    lines = {"eager": lambda n: 2.0 + 3 * n, "compile": lambda n: 12.0 + n}
    found = kernelspeed.predicted_crossover(
        lambda variant, size: lines[variant](size), "eager", "compile", 1, 64
    )
    assert found == pytest.approx(5.0, rel=0.02)


def test_a_row_saves_launches_and_many_rows_save_work():
    machine = rates(
        read=((1 << 18, 1e11), (1 << 28, 2e10)), copy=((1 << 18, 1e11), (1 << 28, 1e10)),
        numbers_per_s=3e9, exponentials_per_s=3e9, launch_s={"eager": 1e-6, "compile": 3e-6},
    )  # fmt: skip

    def saved(rows):
        pair = [cost("add_rms_norm", v, SMALL, "bfloat16", rows) for v in ("eager", "compile")]
        (launching, fewer), (working, less) = (
            [seconds(each) for each in pair] for seconds in (machine.launching_s, machine.work_s)
        )
        return launching - fewer, working - less

    assert saved(1)[0] == pytest.approx(6e-6) and saved(1)[1] < 2e-6
    assert saved(4096)[0] == pytest.approx(6e-6) and saved(4096)[1] > 1e-3


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(max_examples=50, deadline=None)
def test_more_rows_never_take_less_time(one, other):
    low, high = sorted((one, other))
    machine = rates(read=((1, 1e10),), copy=((1, 5e9),))
    for variant in ("eager", "compile"):
        few, many = (
            machine.predict_s(cost("rope_store", variant, SMALL, "bfloat16", rows))
            for rows in (low, high)
        )
        assert few <= many
