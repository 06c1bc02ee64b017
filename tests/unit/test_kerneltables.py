"""What a record of lab 26 says: gains by size, where they begin, and what they are made of."""

import math

import pytest
from record_examples import manifest, samples

from inferlab import kerneltables
from inferlab.records import CaseInfo, Record


def record(times, block="rows", lost=()):
    """times: (variant, size) -> (measured seconds, launching_s, work_s) of a norm."""
    cases, rows = {}, []
    for (variant, size), (seconds, launching_s, work_s) in times.items():
        name = f"add_rms_norm/{variant}/{size}"
        cases[name] = CaseInfo(
            params={"operation": "add_rms_norm", "variant": variant, "size": size,
                    "flushed": False},
            predicted={"time_s": launching_s + work_s, "launching_s": launching_s,
                       "work_s": work_s, "least_bytes": 8.0 * size},
            block=block,
        )  # fmt: skip
        if (variant, size) in lost:
            rows.append((name, "none", math.nan, 0, "oom"))
            continue
        rows += [(name, "time_s", seconds, r, "ok") for r in range(5)]
        rows += [(name, "bandwidth_share_ratio", 0.5, r, "ok") for r in range(5)]
    return Record(manifest(cases=cases), samples(rows))


TIMES = {
    ("eager", 1): (5.0, 9.0, 1.0), ("compile", 1): (10.0, 6.0, 0.5),
    ("eager", 100): (100.0, 9.0, 91.0), ("compile", 100): (50.0, 6.0, 34.0),
}  # fmt: skip


def test_gains_pair_sizes_and_carry_predictions():
    table = kerneltables.gains(record(TIMES), "add_rms_norm", "rows")
    assert list(table["variant"]) == ["compile", "compile"]
    assert list(table["median"]) == [0.5, 2.0] and list(table["size"]) == [1, 100]
    assert list(table["predicted"]) == pytest.approx([10 / 6.5, 2.5])


def test_lost_sizes_and_other_blocks_are_left_out():
    table = kerneltables.gains(record(TIMES, lost={("eager", 100)}), "add_rms_norm", "rows")
    assert list(table["size"]) == [1]
    assert kerneltables.gains(record(TIMES), "add_rms_norm", "other").empty


def test_a_crossing_in_words():
    found = kerneltables.crossing(
        kerneltables.gains(record(TIMES), "add_rms_norm", "rows"), "compile"
    )
    assert found.value == pytest.approx(10.0) and found.predicted == 0.0
    assert found.words() == "from 10 rows on [10, 10]"
    assert kerneltables.crossing_words(0) == "at every size measured"
    assert kerneltables.crossing_words(math.inf) == "at no size measured"
    crossing = kerneltables.Crossing(8.0, 0.0, math.inf, 4.0)
    assert crossing.words("tokens") == "from 8.0 tokens on [below all, above all]"
    empty = kerneltables.gains(record(TIMES), "swiglu", "rows")
    assert kerneltables.crossing(empty, "compile") is None


def test_savings_move_from_launches_to_work():
    found = kerneltables.savings(record(TIMES), "add_rms_norm", "compile")
    assert list(found["size"]) == [1, 100]
    assert list(found["launch_s"]) == [3.0, 3.0] and list(found["work_s"]) == [0.5, 57.0]


def test_shares_carry_their_bytes():
    found = kerneltables.shares(record(TIMES), "add_rms_norm", ("compile",))
    assert list(found["least_bytes"]) == [8.0, 800.0] and set(found["median"]) == {0.5}
    assert not found["flushed"].any()
    other = record(TIMES, block="widths")  # other dtypes, measured for another question
    assert kerneltables.shares(other, "add_rms_norm", ("compile",)).empty
    assert kerneltables.block_of("decode_attention") == "decode"


def test_names_of_sizes():
    assert kerneltables.size_name("decode_attention") == "context"
    assert kerneltables.size_name("swiglu") == "rows"
