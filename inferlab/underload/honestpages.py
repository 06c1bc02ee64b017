"""What does the calibration page say of the load client and of others beside it?

Tables and sentences from the records of lab 46; every sentence is computed, whatever they hold.
Chapter: chapters/46_serving_under_load.md    Page: reference/calibration.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from inferlab.client.calibrate import MEDIAN_BOUND_S, P99_BOUND_S
from inferlab.records import Record
from inferlab.underload.comparison import COMPARED, LIMIT_RATIO, agreement
from inferlab.underload.peers import PEERS

LAB = "46_serving_under_load"
TITLES = {"inferlab": "inferlab", **{name: peer.title for name, peer in PEERS.items()}}
_ERRORS = {
    "ttft_error_median_s": "TTFT, median", "ttft_error_p99_s": "TTFT, p99",
    "ttft_error_max_s": "TTFT, largest", "itl_error_median_s": "ITL, median",
    "itl_error_p99_s": "ITL, p99",
}  # fmt: skip


def loaded(records: Iterable[Record]) -> list[Record]:
    """The records that hold runs of the load client."""
    return [record for record in records if record.manifest.lab == LAB]


def client_errors(records: Sequence[Record]) -> pd.DataFrame:
    """Errors of the client against the mock server's log, one row a device and crowd of streams."""
    rows = []
    for record in records:
        for case in record.cases(phase="client"):
            row = {"device": record.manifest.machine.title}
            row["streams"] = record.manifest.cases[case].params["streams"]
            row["events a second"] = f"{_value(record, case, 'events_per_s'):,.0f}"
            row |= {name: _time(_value(record, case, key)) for key, name in _ERRORS.items()}
            row["core of the client"] = f"{_value(record, case, 'client_cpu_ratio'):.0%}"
            rows.append(row)
    return pd.DataFrame(rows)


def client_verdict(record: Record) -> str:
    """One sentence: whether the client's errors are within the goal, and up to what rate."""
    kept = missed = 0
    for case in record.cases(phase="client"):
        if _within(record, case):
            kept += 1
        else:
            missed += 1
    if not kept + missed:
        return ""
    words = f"{record.manifest.machine.title}: {kept} of {kept + missed} rows are within the goal"
    for case in record.cases(phase="client-capacity"):
        rate = _value(record, case, "within_events_per_s")
        tried = _value(record, case, "tried_events_per_s")
        end = "the highest that was tried" if rate >= tried else f"{tried:,.0f} were tried"
        words += f"; highest rate of events within it: {rate:,.0f} a second ({end})"
    return words + "."


def known_delays(records: Sequence[Record]) -> pd.DataFrame:
    """What each load generator adds to times that are known, one row a device, client and crowd."""
    rows = []
    for record in records:
        for case in record.cases(phase="known-delays"):
            params = record.manifest.cases[case].params
            rows.append({
                "device": record.manifest.machine.title,
                "load generator": TITLES[params["client"]],
                "concurrency": params["concurrency"],
                "true TTFT": _time(_value(record, case, "logged_ttft_s")),
                "reported − true TTFT": _time(_value(record, case, "ttft_error_s")),
                "reported − true time per token": _time(_value(record, case, "tpot_error_s")),
            })  # fmt: skip
    return pd.DataFrame(rows)


def peers(records: Sequence[Record]) -> pd.DataFrame:
    """Ours and theirs on the same server, one row a device, tool, concurrency and quantity."""
    rows = []
    for record in records:
        for row in agreement(record).itertuples():
            known = row.low == row.low and row.rounds > 1
            rows.append({
                "device": record.manifest.machine.title,
                "server": row.server,
                "load generator": TITLES[row.peer],
                "concurrency": row.concurrency,
                "median of": COMPARED[row.metric],
                "ours, in its words": _time(row.ours),
                "theirs": _time(row.theirs),
                "theirs / ours": f"{row.ratio:.3f}",
                "95 % interval": f"{row.low:.3f} to {row.high:.3f}" if known else "–",
                "agrees": "yes" if row.agrees else "no",
            })  # fmt: skip
    return pd.DataFrame(rows)


def peers_verdict(record: Record) -> str:
    """One sentence: how many medians agree, and the one that is farthest off."""
    table = agreement(record)
    if table.empty:
        return ""
    agreed = int(table["agrees"].sum())
    far = table.loc[(table["ratio"] - 1).abs().idxmax()]
    return (
        f"{record.manifest.machine.title}: {agreed} of {len(table)} medians agree within "
        f"{LIMIT_RATIO:.0%}; the farthest is {COMPARED[far['metric']]} of {TITLES[far['peer']]} at "
        f"concurrency {far['concurrency']}, {far['ratio']:.3f} of ours."
    )


def _within(record: Record, case: str) -> bool:
    value = {key: _value(record, case, key) for key in _ERRORS}
    tails = []
    for name in ("ttft", "itl"):
        p99_s = value[f"{name}_error_p99_s"]
        # fewer than 459 requests have no p99: their largest error is the stricter demand
        tails.append(p99_s if p99_s == p99_s else _value(record, case, f"{name}_error_max_s"))
    medians = (value["ttft_error_median_s"], value["itl_error_median_s"])
    void = "void_count" in record.metrics(case) and _value(record, case, "void_count") > 0
    return max(medians) <= MEDIAN_BOUND_S and max(tails) <= P99_BOUND_S and not void


def _value(record: Record, case: str, metric: str) -> float:
    if metric not in record.metrics(case):
        return float("nan")
    return record.estimate(case, metric).value


def _time(value_s: float) -> str:
    return "–" if value_s != value_s else f"{1e3 * value_s:.2f} ms"
