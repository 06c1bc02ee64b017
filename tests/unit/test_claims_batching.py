"""The claim that batching buys throughput with latency: judged alone and under load."""

import pytest
from record_examples import manifest, samples

from inferlab.claims import judge, load_ledger
from inferlab.claims.batching import batching_trades_latency
from inferlab.records import CaseInfo, Record


def record(frontier, loads, batch=None):
    """Frontier {batch: (tok/s, TPOT)}; loads {load: (E2E none, E2E dynamic, busy dynamic)}.

    `batch`: load -> requests of a dynamic batch.
    """
    cases, rows = {}, []

    def add(name, params, block, **metrics):
        cases[name] = CaseInfo(params=params, predicted={}, block=block)
        rows.extend(
            (name, metric, value * (1 + r / 100), r, "ok")
            for metric, value in metrics.items()
            for r in range(5)
        )

    for size, (rate, tpot) in frontier.items():
        params = {"phase": "frontier", "batch_size": size, "model": "m"}
        add(f"b{size}", params, "frontier", output_tok_per_s=rate, tpot_s=tpot)
    for load, (alone, batched, busy) in loads.items():
        same = {"phase": "load", "load": load, "model": "m", "lengths": "equal"}
        for policy, latency, cost in (("none", alone, 1.0), ("dynamic", batched, busy)):
            params = same | {"policy": policy, "max_wait_s": 0.0}
            more = {"num_batched": batch[load]} if batch and policy == "dynamic" else {}
            add(f"{load}/{policy}", params, f"load/{load}", e2e_s=latency, busy_per_request_s=cost,
                **more)  # fmt: skip
    return Record(manifest(cases=cases), samples(rows))


FRONTIER = {1: (100, 0.010), 16: (800, 0.020)}


@pytest.mark.parametrize(
    ("frontier", "loads", "word"),
    [
        (FRONTIER, {0.3: (0.1, 0.2, 0.9), 2.0: (0.1, 0.2, 0.4)}, "holds"),
        (FRONTIER, {0.3: (0.1, 0.1, 0.9), 2.0: (1.0, 0.2, 0.4)}, "holds only where"),
        ({1: (100, 0.01), 16: (105, 0.15)}, {2.0: (0.1, 0.2, 0.4)}, "fails"),  # nothing won
        ({1: (100, 0.01), 16: (1600, 0.01)}, {2.0: (1.0, 0.2, 0.4)}, "fails"),  # no price
        (FRONTIER, {2.0: (0.1, 0.2, 1.1)}, "fails"),  # not cheaper
        (FRONTIER, {}, "untested"),
        ({1: (100, 0.01)}, {2.0: (0.1, 0.2, 0.4)}, "untested"),
    ],
)
def test_what_the_record_decides(frontier, loads, word):
    assert batching_trades_latency(record(frontier, loads)).verdict == word


def test_the_verdict_says_from_where_latency_falls():
    found = batching_trades_latency(record(FRONTIER, {0.3: (0.1, 0.11, 0.9), 2.0: (1.0, 0.2, 0.4)}))
    assert "from load 2.00 on batching lowers latency" in found.where
    assert found.evidence["throughput, batch of 16 over 1"].value == pytest.approx(8)
    assert found.evidence["E2E latency, dynamic over none, load 2.00"].value == pytest.approx(0.2)


def test_from_a_load_on_means_at_all_higher_ones_too():
    dip = {0.3: (0.2, 0.1, 0.9), 0.8: (0.1, 0.11, 0.9), 2.0: (1.0, 0.2, 0.4)}
    assert "from load 2.00 on" in batching_trades_latency(record(FRONTIER, dip)).where
    risen = {0.3: (0.2, 0.1, 0.9), 2.0: (0.1, 0.2, 0.4)}
    assert "lowers latency" not in batching_trades_latency(record(FRONTIER, risen)).where


def test_a_load_without_batches_decides_nothing():
    lone = record(FRONTIER, {0.3: (0.2, 0.1, 0.9), 2.0: (1.0, 0.2, 0.4)}, batch={0.3: 1.02, 2.0: 4})
    found = batching_trades_latency(lone)
    assert "at load 0.300 batches hold one request" in found.where
    assert "from load 2.00 on" in found.where
    assert not any("load 0.300" in name for name in found.evidence)


def test_the_ledger_names_it():
    claim = load_ledger().get("batch-latency")
    assert judge(claim, record(FRONTIER, {2.0: (1.0, 0.2, 0.4)})).verdict == "holds only where"
