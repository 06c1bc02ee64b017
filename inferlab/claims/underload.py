"""What would show that a convenient benchmark hides real traffic's tails? A predicate over lab 46.

A case of the ladder has the parameters `phase` "tail", `family` (requests of one mean length),
`traffic` (lengths and arrivals) and `is_convenient`; all of a family have one mean rate and mean
lengths. Which percentile is judged follows from the number of requests: p99 where there are enough.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections.abc import Iterator

from inferlab.claims.predicates import Verdict, predicate
from inferlab.records import Record
from inferlab.stats import Estimate
from inferlab.units import format_ratio

LATENCIES = ("ttft", "tpot")
PERCENTILES = ("p99", "p95")  # the first that both cases have


@predicate
def traffic_moves_the_tail(
    record: Record, *, least_gap: float = 1.5, throughput_band: float = 0.1
) -> Verdict:
    """Do a server's tails under traffic of another shape differ from those of a convenient run?

    Traffic moves a tail when its TTFT or its TPOT is at least `least_gap` times that of the
    convenient case of its family, at the same mean rate and mean lengths. Whether the throughput
    would have told, is noted: it would not if it agrees within `throughput_band`. Runs that the
    client called void are named and decide nothing.
    """
    moved, kept, void, evidence = [], [], [], {}
    for case, baseline in pairs(record):
        traffic = record.manifest.cases[case].params["traffic"]
        if is_void(record, case) or is_void(record, baseline):
            void.append(traffic)
            continue
        gaps = dict(gaps_of(record, case, baseline))
        if not gaps:
            continue
        evidence |= {f"{name} over a convenient run, {traffic}": gap for name, gap in gaps.items()}
        largest = max(gaps, key=lambda name: gaps[name].value)
        same = record.ratio(baseline, case, "output_tok_per_s")
        evidence[f"output throughput over a convenient run, {traffic}"] = same
        told = "" if abs(same.value - 1) <= throughput_band else ", which its throughput shows too"
        words = f"{traffic}: {largest} {format_ratio(gaps[largest].value)}{told}"
        (moved if gaps[largest].value >= least_gap else kept).append(words)
    if not evidence:
        why = f"the client called void: {', '.join(void)}" if void else (
            "the record has no traffic beside a convenient run of the same means")  # fmt: skip
        return Verdict("untested", why)
    where = "; ".join(
        f"{word} {', '.join(found)}"
        for word, found in (
            ("tails moved by", moved),
            ("not by", kept),
            ("left out as void:", void),
        )
        if found
    )
    word = "holds" if not kept else "holds only where" if moved else "fails"
    return Verdict(word, where, evidence)


def is_void(record: Record, case: str) -> bool:
    """Whether the client could not vouch for a run of `case`."""
    return "void_count" in record.metrics(case) and max(record.values(case, "void_count")) > 0


def pairs(record: Record) -> Iterator[tuple[str, str]]:
    """(case, convenient case of its family) for every other traffic that was measured."""
    for case in record.cases(phase="tail", is_convenient=False):
        info = record.manifest.cases[case]
        for baseline in record.cases(
            phase="tail", is_convenient=True, family=info.params.get("family")
        ):
            same_block = record.manifest.cases[baseline].block == info.block
            if same_block and record.metrics(case) and record.metrics(baseline):
                yield case, baseline


def gaps_of(record: Record, case: str, baseline: str) -> Iterator[tuple[str, Estimate]]:
    """(p99 of TTFT, ratio) and so on: the outermost percentile that both cases have."""
    for latency in LATENCIES:
        for percentile in PERCENTILES:
            metric = f"{latency}_{percentile}_s"
            if all(metric in record.metrics(one) for one in (case, baseline)):
                yield f"{percentile} of {latency.upper()}", record.ratio(baseline, case, metric)
                break
