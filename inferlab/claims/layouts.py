"""What would show a claim about sharing keys and values to hold? A predicate over lab 21's record.

A case at the largest batch has the parameters `phase` = room (what fits: `num_seqs`) or capacity
(steps of that many sequences), and `layout`; its baseline is the layout that shares nothing.
Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

from inferlab.claims.predicates import Verdict, predicate
from inferlab.records import Record
from inferlab.stats import Estimate

BASELINE = "mha"
SHARING = ("gqa", "mqa")


@predicate
def sharing_raises_throughput(
    record: Record, *, least_cut: float = 2.0, same: float = 0.05
) -> Verdict:
    """Does sharing key/value heads cut the cache, and do batch capacity and throughput follow?

    Holds when every sharing layout cuts the bytes of a token by `least_cut` or more, fits more
    sequences, and writes surely more tokens a second with all of them than the baseline does with
    all of its own. Where one sequence at the shortest context gains less than `same`, the claim
    holds only where memory is full of sequences.
    """
    evidence: dict[str, Estimate] = {}
    findings, good = [], 0
    for name in SHARING:
        found = _gains(record, name)
        if found is None:
            continue
        cut, seqs, rate = found
        evidence[f"{name}: cache bytes saved, times"] = cut
        evidence[f"{name}: sequences that fit, times"] = seqs
        evidence[f"{name}: throughput at the largest batch, times"] = rate
        sure = rate.low > 1 if rate.has_interval else rate.value > 1
        good += cut.value >= least_cut and seqs.value > 1 and sure
        findings.append(
            f"{name}: bytes of a token / {cut.value:.1f}, sequences × {seqs.value:.1f}, "
            f"throughput × {rate.value:.1f}"
        )
    if not findings:
        return Verdict(
            "untested", "the record has no sharing layout beside one that shares nothing"
        )
    where = "at a full budget of cache memory, against mha: " + "; ".join(findings)
    if good < len(findings):
        return Verdict("holds only where" if good else "fails", where, evidence)
    alone = _alone(record)
    if alone is None:
        return Verdict("holds", where, evidence)
    length, gain = alone
    evidence[f"one sequence of {length} tokens, gqa: speed-up"] = gain
    where += f"; one sequence of {length} tokens: speed-up {gain.value:.2f}"
    return Verdict("holds only where" if gain.value < 1 + same else "holds", where, evidence)


def _gains(record: Record, name: str) -> tuple[Estimate, Estimate, Estimate] | None:
    """(cut of a token's bytes, gain in sequences, gain in throughput) over the baseline."""
    pairs = {}
    for phase in ("room", "capacity"):
        slow = record.cases(phase=phase, layout=BASELINE)
        fast = record.cases(phase=phase, layout=name)
        if not slow or not fast or not all(record.metrics(case) for case in (slow[0], fast[0])):
            return None
        pairs[phase] = slow[0], fast[0]
    slow, fast = pairs["capacity"]
    rate = record.ratio(slow, fast, "output_tok_per_s")
    per_token = [
        record.estimate(case, "kv_bytes").value / record.manifest.cases[case].params["batch_size"]
        for case in (slow, fast)
    ]
    cut = per_token[0] / per_token[1]
    num_seqs = [record.estimate(case, "num_seqs").value for case in pairs["room"]]
    seqs = num_seqs[1] / num_seqs[0]
    return _exact(cut), _exact(seqs), rate


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value, 1)


def _alone(record: Record) -> tuple[int, Estimate] | None:
    """(context, speed-up of gqa over the baseline) of one sequence at the shortest context."""
    rows = {
        record.manifest.cases[case].params["context_len"]: case
        for case in record.cases(phase="context", layout="gqa", batch_size=1)
        if record.metrics(case)
    }
    if not rows:
        return None
    length = min(rows)
    slow = record.cases(phase="context", layout=BASELINE, batch_size=1, context_len=length)
    if not slow or not record.metrics(slow[0]):
        return None
    return length, record.ratio(rows[length], slow[0], "tpot_s")
