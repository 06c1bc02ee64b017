"""Does batching raise throughput, and the latency of each request? A predicate over lab 40.

A frontier case times a batch by itself, nobody waiting: `batch_size`, with `tpot_s` and
`output_tok_per_s`. A load case is a server under Poisson arrivals: `policy`, `load` (arrivals over
what it can serve one at a time), with `e2e_s`, `busy_per_request_s` as what a request costs, and
`num_batched` as the requests of a batch.
Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

from inferlab.claims.predicates import Verdict, predicate
from inferlab.records import Record
from inferlab.stats import Estimate
from inferlab.units import format_number, format_ratio

BASELINE, VARIANT = "none", "dynamic"


@predicate
def batching_trades_latency(
    record: Record, *, least_gain: float = 1.2, least_change: float = 0.05, least_batch: float = 1.1
) -> Verdict:
    """Is throughput bought with the latency of each request, or with waiting that ends?

    Throughput and cost are as claimed when the largest batch has `least_gain` times the throughput
    of a single sequence, and a request takes less of the machine's time at the highest load. The
    latency is as claimed in a setting where it rises by more than `least_change`: for a batch by
    itself its TPOT, under load the mean E2E latency of requests, beside serving one at a time. A
    load at which batches hold fewer than `least_batch` requests decides nothing: there are none.
    """
    alone = _frontier(record)
    loaded, lonely = _loaded(record, least_batch)
    if alone is None or not loaded:
        return Verdict("untested", "the record lacks a frontier or servers under load")
    size, gain, slower = alone
    evidence = {
        f"throughput, batch of {size} over 1": gain,
        f"TPOT, batch of {size} over 1": slower,
    }
    for load, (latency, cost) in loaded.items():
        at = f"dynamic over none, load {format_number(load)}"
        evidence |= {f"E2E latency, {at}": latency, f"machine time of a request, {at}": cost}
    wins = gain.value >= least_gain and loaded[max(loaded)][1].value < 1
    risen = [slower.value > 1 + least_change]
    risen += [latency.value > 1 + least_change for latency, _ in loaded.values()]
    falls: list[float] = []  # the highest loads, as far down as latency falls at each of them
    for load in reversed(loaded):
        if loaded[load][0].value >= 1 - least_change:
            break
        falls.append(load)
    where = (
        f"a batch of {size} alone: {format_ratio(gain.value)} the throughput at "
        f"{format_ratio(slower.value)} the TPOT"
    )
    where += "".join(
        f"; at load {format_number(load)}: {format_ratio(latency.value)} the latency and "
        f"{format_ratio(cost.value)} the machine time of a request"
        for load, (latency, cost) in loaded.items()
    )
    if lonely:
        where += f"; at load {', '.join(map(format_number, lonely))} batches hold one request"
    if not wins or not any(risen):
        return Verdict("fails", where, evidence)
    if falls:
        where += f"; from load {format_number(min(falls))} on batching lowers latency: waits end"
    return Verdict("holds" if all(risen) else "holds only where", where, evidence)


def _frontier(record: Record) -> tuple[int, Estimate, Estimate] | None:
    """(largest batch size, its throughput and its TPOT over those of one sequence)."""
    sizes = {
        record.manifest.cases[name].params["batch_size"]: name
        for name in record.cases(phase="frontier")
        if record.metrics(name)
    }
    if 1 not in sizes or len(sizes) < 2:
        return None
    one, largest = sizes[1], sizes[max(sizes)]
    gains = (record.ratio(one, largest, metric) for metric in ("output_tok_per_s", "tpot_s"))
    return max(sizes), *gains


def _loaded(
    record: Record, least_batch: float
) -> tuple[dict[float, tuple[Estimate, Estimate]], list[float]]:
    """Load -> (E2E latency, machine time of a request) of dynamic batches over none.

    And the loads at which batches hold fewer than `least_batch` requests.
    """
    found, lonely = {}, []
    for variant in record.cases(phase="load", policy=VARIANT, max_wait_s=0.0, lengths="equal"):
        params = record.manifest.cases[variant].params
        if "num_batched" in record.metrics(variant) and (
            record.estimate(variant, "num_batched").value < least_batch
        ):
            lonely.append(params["load"])
            continue
        same = {key: params[key] for key in ("load", "model", "lengths")}
        for baseline in record.cases(phase="load", policy=BASELINE, **same):
            if record.metrics(baseline) and record.metrics(variant):
                found[params["load"]] = (
                    record.ratio(baseline, variant, "e2e_s"),
                    record.ratio(baseline, variant, "busy_per_request_s"),
                )
    return dict(sorted(found.items())), sorted(lonely)
