"""The host's share of a step: laws that were put in come out; nonsense is refused."""

import dataclasses
import math

import pandas as pd
import pytest
from record_examples import cpu_machine, manifest

from inferlab import stepcost
from inferlab.errors import UserError
from inferlab.models.config import get_config
from inferlab.models.cost import decode_cost
from inferlab.records import CaseInfo, Record
from inferlab.roofline import Ceilings, floor_s

SMALL = get_config("smollm2-135m")
CEILINGS = Ceilings(1e10, 1e15)


def record_of(seconds, sizes=None, rounds=5):
    """Cases that take `seconds` on a machine that drifts; floors as if 1e9 bytes took a second."""
    cases, rows = {}, []
    for index, (name, value) in enumerate(seconds.items()):
        read = (sizes or {}).get(name, 1e6 * 4**index)
        cases[name] = CaseInfo(
            params={"read_bytes": read}, predicted={"floor_s": read / 1e9}, block="size"
        )
        rows += [(name, "step_s", value * (1 + r / 10), r, "ok") for r in range(rounds)]
    samples = pd.DataFrame(rows, columns=["case", "metric", "value", "round", "status"])
    return Record(manifest(cases=cases, machine=cpu_machine()), samples)


def test_a_narrow_copy_has_the_same_depth_and_reads_less():
    sizes = []
    for width in (64, 192, 384, 576):
        copy = stepcost.scaled(SMALL, width)
        assert copy.num_layers == SMALL.num_layers and copy.head_dim == SMALL.head_dim
        assert copy.num_q_heads * copy.head_dim == width and copy.source is None
        sizes.append(decode_cost(copy, "bfloat16", 1, 16).bytes)
    assert sizes == sorted(sizes)
    same = stepcost.scaled(SMALL, 576)
    assert decode_cost(same, "bfloat16", 1, 16) == decode_cost(SMALL, "bfloat16", 1, 16)
    llama = get_config("llama-3.1-8b")
    assert stepcost.scaled(llama, 512).group_size == llama.group_size


@pytest.mark.parametrize("width", [0, 63, 100])
def test_a_width_that_is_no_multiple_of_a_head_is_refused(width):
    with pytest.raises(UserError, match="multiple of 64"):
        stepcost.scaled(SMALL, width)


@pytest.mark.parametrize("layers", [0, 31])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(UserError, match="choose 1 to 30"):
        stepcost.shallow(SMALL, layers)
    assert stepcost.shallow(SMALL, 2).num_layers == 2


def test_host_time_adds_up_on_a_cpu_and_hides_on_a_gpu():
    cost = decode_cost(SMALL, "bfloat16", 1, 512)
    floor, host = floor_s(cost, CEILINGS), stepcost.launch_bound_s(700, 5e-6)
    assert stepcost.predict_step_s(cost, CEILINGS, host, False) == floor + host
    assert stepcost.predict_step_s(cost, CEILINGS, host, True) == max(floor, host)


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_at_the_turning_bytes_the_floor_is_that_share_of_the_step(overlaps, share):
    size = stepcost.turning_bytes(CEILINGS, 3e-3, overlaps, share)
    floor = size / CEILINGS.read_bytes_per_s
    step = max(floor, 3e-3) if overlaps else floor + 3e-3
    assert floor / step == pytest.approx(share)


def test_bad_numbers_are_refused():
    with pytest.raises(UserError, match="negative"):
        stepcost.launch_bound_s(-1, 1e-6)
    with pytest.raises(UserError, match="between 0 and 1"):
        stepcost.turning_bytes(CEILINGS, 1e-3, True, 1.0)
    with pytest.raises(UserError, match="at least 1"):
        stepcost.padded_ratio(0, 128)
    with pytest.raises(UserError, match="at least 1"):
        stepcost.num_graphs(128, 0)


def test_buckets():
    assert stepcost.padded_ratio(128, 128) == 1
    assert stepcost.padded_ratio(129, 128) == 256 / 129
    assert stepcost.num_graphs(4096, 128, 4) == 128
    assert stepcost.num_graphs(4097, 128) == 33


def test_compiling_pays_after_its_cost_over_the_saving():
    assert stepcost.breakeven_tokens(20, 0.013, 0.011) == pytest.approx(10_000)
    assert stepcost.breakeven_tokens(20, 0.011, 0.011) == math.inf
    record = record_of({"slow": 0.013, "fast": 0.011})
    found = stepcost.breakeven(record, "slow", "fast", 20, "step_s")
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(20 / (0.002 * 1.2))
    assert stepcost.breakeven(record, "fast", "slow", 20, "step_s").value == math.inf


def test_the_turning_point_of_a_straight_law_is_found():
    sizes = {f"s{i}": 1e6 * 2**i for i in range(8)}
    host = 0.02  # the floor is half of the step where reading takes as long: 2e7 bytes
    record = record_of({n: host + b / 1e9 for n, b in sizes.items()}, sizes, rounds=1)
    found = stepcost.measured_turning_bytes(record, list(reversed(sizes)))
    assert found.value == pytest.approx(2e7, rel=0.05)
    assert stepcost.reaches(record, list(sizes))


def test_a_sweep_that_never_turns_says_its_end():
    sizes = {"a": 1e6, "b": 2e6}
    slow = record_of({"a": 1, "b": 1}, sizes)
    assert stepcost.measured_turning_bytes(slow, ["a", "b"]).value == pytest.approx(2e6)
    assert not stepcost.reaches(slow, ["a", "b"])
    fast = record_of({"a": 1e-3, "b": 2e-3}, sizes, rounds=1)
    assert stepcost.measured_turning_bytes(fast, ["a", "b"]).value == pytest.approx(1e6)
    with pytest.raises(UserError, match="two sizes"):
        stepcost.measured_turning_bytes(slow, ["a"])


def test_share_of_the_floor_needs_a_floor():
    record = record_of({"a": 0.002}, rounds=1)
    assert stepcost.floor_share(record, "a", "step_s").value == pytest.approx(0.5)
    with pytest.raises(UserError, match="states no ceiling_s"):
        stepcost.floor_share(record, "a", "step_s", "ceiling_s")


def test_a_floor_that_was_measured_counts_before_the_predicted_one():
    record = record_of({"a": 0.002}, rounds=1)
    predicted = stepcost.measured_floor_s(record, "a")
    rows = record.samples[record.samples["metric"] == "step_s"].assign(metric="floor_s", value=5e-4)
    both = dataclasses.replace(record, samples=pd.concat([record.samples, rows]))
    assert predicted == record.manifest.cases["a"].predicted["floor_s"] != 5e-4
    assert stepcost.measured_floor_s(both, "a") == pytest.approx(5e-4)
    assert stepcost.floor_share(both, "a", "step_s").value == pytest.approx(0.25)
