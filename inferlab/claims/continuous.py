"""What would show that continuous batching avoids the idle time of static batches? Lab 41.

A case of phase "mix" has the parameters `mix`, `cv` (spread of the output lengths), `variant`
(static, continuous, ...) and `longest_over_mean`; its metrics are those of a whole line of
requests, served from one store.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from inferlab.claims.predicates import Verdict, predicate
from inferlab.records import Record
from inferlab.units import format_ratio

BASELINE, VARIANT = "static", "continuous"


@predicate
def continuous_avoids_idle(record: Record, *, least_gain: float = 1.1) -> Verdict:
    """For which spread of lengths does continuous batching write `least_gain` times as much?

    A mix is as claimed when the whole 95 % interval of the ratio of output throughputs is at or
    above `least_gain` (the value, where rounds are too few for an interval). Beside it stands what
    a static batch waits for: its longest answer over the mean.
    """
    found = []
    for name in record.cases(phase="mix", variant=VARIANT):
        params = record.manifest.cases[name].params
        for other in record.cases(phase="mix", variant=BASELINE, mix=params["mix"]):
            same_block = record.manifest.cases[other].block == record.manifest.cases[name].block
            if same_block and record.metrics(name) and record.metrics(other):
                ratio = record.ratio(other, name, "output_tok_per_s")
                found.append((params["cv"], params["longest_over_mean"], ratio))
    if not found:
        return Verdict("untested", "the record has no mix that both policies served")
    found.sort(key=lambda row: row[0])
    good = {
        cv: (ratio.low if ratio.has_interval else ratio.value) >= least_gain
        for cv, _, ratio in found
    }
    evidence = {f"continuous over static, cv {cv:.2f}": ratio for cv, _, ratio in found}
    where = "; ".join(
        f"cv {cv:.2f}, longest {format_ratio(longest)} the mean: {format_ratio(ratio.value)}"
        for cv, longest, ratio in found
    )
    where = f"output over static batches: {where}"
    if all(good.values()):
        return Verdict("holds", where, evidence)
    return Verdict("holds only where" if any(good.values()) else "fails", where, evidence)
