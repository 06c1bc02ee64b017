"""What would show that paging the KV cache enlarges batches? A predicate over the record of lab 22.

A served case has the parameters `mix` (whose lengths), `policy` (how the store was reserved) and
`store_tokens`; its metrics are those of a run through a store that was really allocated.
Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

from inferlab.claims.predicates import Verdict, predicate
from inferlab.records import Record
from inferlab.stats import Estimate
from inferlab.units import format_ratio

BASELINE, VARIANT = "maximum", "paged"


@predicate
def paging_enlarges_batches(
    record: Record, *, least_gain: float = 2.0, most_waste: float = 0.1
) -> Verdict:
    """For which lengths does paging end the waste and run a much larger batch in the same store?

    A mix is as claimed when paging runs at least `least_gain` times the sequences of a reservation
    for the maximum and leaves at most `most_waste` of what it lends empty. What the larger batch
    gives in tokens a second is reported beside it: that is another matter.
    """
    findings, evidence, good = [], {}, []
    for paged in record.cases(phase="served", policy=VARIANT):
        params = record.manifest.cases[paged].params
        same = {key: params[key] for key in ("mix", "store_tokens", "model")}
        baselines = [
            name
            for name in record.cases(phase="served", policy=BASELINE, **same)
            if record.manifest.cases[name].block == record.manifest.cases[paged].block
            and record.metrics(name)
        ]
        if not baselines or not record.metrics(paged):
            continue
        seqs = record.ratio(baselines[0], paged, "num_seqs")
        speed = record.ratio(baselines[0], paged, "output_tok_per_s")
        waste = {name: record.estimate(name, "waste_ratio") for name in (baselines[0], paged)}
        evidence |= {
            f"running sequences, paged over maximum, {params['mix']}": seqs,
            f"output throughput, paged over maximum, {params['mix']}": speed,
            f"waste of maximum, {params['mix']}": waste[baselines[0]],
            f"waste of paged, {params['mix']}": waste[paged],
        }
        good.append(seqs.value >= least_gain and waste[paged].value <= most_waste)
        findings.append(_finding(params["mix"], seqs, speed, waste[baselines[0]], waste[paged]))
    if not findings:
        return Verdict(
            "untested", "the record has no paged run beside one reserved for the maximum"
        )
    word = "holds" if all(good) else "holds only where" if any(good) else "fails"
    return Verdict(word, "; ".join(findings), evidence)


def _finding(mix: str, seqs: Estimate, speed: Estimate, reserved: Estimate, paged: Estimate) -> str:
    return (
        f"{mix}: {format_ratio(seqs.value)} the running sequences, {format_ratio(speed.value)} the "
        f"output, waste {reserved.value:.0%} to {paged.value:.0%}"
    )
