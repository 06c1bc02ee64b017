"""What would show that starting fewer operators makes a step faster? A predicate over lab 27.

The launch part of the claim that fusing kernels cuts launch overhead and memory movement; the
movement is judged by lab 26. A rung of the ladder is a case with the parameters `rung`, `before`
and `model`; it states `host_s`, what starting its operators takes, in `predicted`.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

from inferlab.claims.predicates import Verdict, predicate
from inferlab.records import Record
from inferlab.stats import Estimate
from inferlab.units import format_seconds


@predicate
def fewer_launches_are_faster(record: Record, *, least_cut: float = 0.2) -> Verdict:
    """Is each rung that cuts the host's time by `least_cut` or more faster than the one before?

    Faster means that the whole 95 % interval of the ratio is; slower likewise. The evidence holds
    the speed-up of each such rung, and what the estimate of the host's time says it should save.
    """
    faster, slower, open_, evidence = [], [], [], {}
    for case, info in record.manifest.cases.items():
        pair = _before(record, case)
        if pair is None or "tpot_s" not in record.metrics(case):
            continue
        host, host_before = (record.manifest.cases[one].predicted["host_s"] for one in (case, pair))
        if host > (1 - least_cut) * host_before:
            continue
        speedup = record.ratio(case, pair, "tpot_s")
        name = f"{info.params['rung']} against {info.params['before']}, {info.params['model']}"
        saved = record.estimate(pair, "tpot_s").value - record.estimate(case, "tpot_s").value
        evidence[f"speed-up, {name}"] = speedup
        evidence[f"saved / host time saved, {name}"] = _exact(saved / (host_before - host))
        words = f"{name} (estimate saves {format_seconds(host_before - host)} a step)"
        if speedup.low > 1:
            faster.append(words)
        elif speedup.high < 1:
            slower.append(words)
        else:
            open_.append(words)
    if not evidence:
        return Verdict("untested", "no rung of the record starts fewer operators than its baseline")
    where = "; ".join(
        f"{word}: {', '.join(found)}"
        for word, found in (("faster", faster), ("slower", slower), ("no difference", open_))
        if found
    )
    if not slower and not open_:
        return Verdict("holds", where, evidence)
    return Verdict("holds only where" if faster else "fails", where, evidence)


def _before(record: Record, case: str) -> str | None:
    """The case of the same model that `case` differs from in one thing."""
    info = record.manifest.cases[case]
    if not info.params.get("before") or "host_s" not in info.predicted:
        return None
    same = {"rung": info.params["before"], "model": info.params.get("model")}
    for other in record.cases(**same):
        found = record.manifest.cases[other]
        if found.block == info.block and "host_s" in found.predicted and record.metrics(other):
            return other
    return None


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value, 1)
