"""What would show a claim about quantization to hold? Predicates over the record of lab 10.

A speed cell is a case with the parameters `variant`, `batch_size` and `context_len`; its baseline
is the cell of the plain dtype of the same block, model and shape. A quality row is a case with the
parameters `copy` (of the model), `format` and `method`; its baseline is the plain dtype.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inferlab.claims.predicates import Verdict, predicate
from inferlab.records import Record
from inferlab.stats import Estimate

BASELINE = "bfloat16"
OUR_VARIANTS = ("int8", "int4-g32")


@dataclass(frozen=True, slots=True)
class _Cell:
    """A variant's speed-up over the baseline at one batch size and context."""

    variant: str
    batch_size: int
    context_len: int
    slow: str  # case of the baseline
    speedup: Estimate

    @property
    def name(self) -> str:
        return f"{self.variant}, batch size {self.batch_size}, {self.context_len} tokens"


def _cells(record: Record, variants: Sequence[str], baseline: str) -> Iterator[_Cell]:
    shapes = ("model", "batch_size", "context_len")
    for fast, info in record.manifest.cases.items():
        if info.params.get("variant") not in variants or "tpot_s" not in record.metrics(fast):
            continue
        if any(info.params.get(key) is None for key in shapes):
            continue
        same = {key: info.params[key] for key in shapes}
        for slow in record.cases(variant=baseline, **same):
            if record.manifest.cases[slow].block == info.block and record.metrics(slow):
                yield _Cell(
                    str(info.params["variant"]), same["batch_size"], same["context_len"], slow,
                    record.ratio(fast, slow, "tpot_s"),
                )  # fmt: skip


@predicate
def faster_only_while_bandwidth_bound(
    record: Record, *, variants: Sequence[str] = OUR_VARIANTS, baseline: str = BASELINE
) -> Verdict:
    """Is no low-bit cell faster than the baseline once the baseline's step is compute-bound?

    A baseline cell is bandwidth-bound while reading its weights takes longer than computing with
    them; it states both in `predicted`, as `decode_memory_s` and `decode_compute_s`. The claim is
    about what quantization needs: that it helps in every bandwidth-bound cell is not asked, only
    counted. Faster and slower mean that the whole 95 % interval of the ratio is.
    """
    counts = {True: [0, 0, 0], False: [0, 0, 0]}  # bandwidth-bound: cells, faster, slower
    evidence, losses = {}, []
    for cell in _cells(record, variants, baseline):
        floors = record.manifest.cases[cell.slow].predicted
        if not {"decode_memory_s", "decode_compute_s"} <= set(floors):
            continue
        is_bound = floors["decode_memory_s"] >= floors["decode_compute_s"]
        faster, slower = _decided(cell.speedup)
        counts[is_bound] = [
            a + b for a, b in zip(counts[is_bound], (1, faster, slower), strict=True)
        ]
        evidence[f"speed-up, {cell.name}"] = cell.speedup
        if slower:
            losses.append(cell.batch_size)
    bound, other = counts[True], counts[False]
    if not bound[0]:
        return Verdict("untested", "the record has no bandwidth-bound cell with its floors")
    where = f"bandwidth-bound: faster in {bound[1]} of {bound[0]} cells, slower in {bound[2]}"
    if losses:
        where += f"; slower from batch size {min(losses)} on"
    if not other[0]:
        where += "; no cell is compute-bound before quantization, so the limit was not reached"
        return Verdict("untested" if bound[1] else "fails", where, evidence)
    where += f"; compute-bound: faster in {other[1]} of {other[0]} cells, slower in {other[2]}"
    if not bound[1]:
        return Verdict("fails", where, evidence)
    return Verdict("holds only where" if other[1] else "holds", where, evidence)


def _decided(ratio: Estimate) -> tuple[int, int]:
    """(1 if surely above one, 1 if surely below); without an interval the value decides."""
    low, high = (ratio.low, ratio.high) if ratio.has_interval else (ratio.value, ratio.value)
    return int(low > 1), int(high < 1)


@predicate
def latency_cut_within(
    record: Record,
    *,
    low: float,
    high: float,
    variants: Sequence[str] = OUR_VARIANTS,
    baseline: str = BASELINE,
) -> Verdict:
    """Does a low-bit decode step take a share between `low` and `high` less time, in every cell?"""
    inside, evidence, cuts = [], {}, []
    for cell in _cells(record, variants, baseline):
        found = cell.speedup
        cut = Estimate(1 - 1 / found.value, 1 - 1 / found.low, 1 - 1 / found.high, found.n)
        evidence[f"share of the time saved, {cell.name}"] = cut
        cuts.append(cut.value)
        if low <= cut.value <= high:
            inside.append(cell)
    if not cuts:
        return Verdict("untested", "the record has no low-bit cell beside a baseline")
    where = (
        f"{len(inside)} of {len(cuts)} cells lie inside; "
        f"the share saved runs from {min(cuts):.0%} to {max(cuts):.0%}"
    )
    if inside:
        sizes = sorted({cell.batch_size for cell in inside})
        names = sorted({cell.variant for cell in inside})
        where += f"; inside: {', '.join(names)} at batch size {', '.join(map(str, sizes))}"
    word = "holds" if len(inside) == len(cuts) else "holds only where" if inside else "fails"
    return Verdict(word, where, evidence)


@predicate
def accuracy_lost_within(
    record: Record, *, at_most: float, copy: str = "rotated", baseline: str = BASELINE
) -> Verdict:
    """Is the share of questions lost to quantization at most `at_most`, for each format?

    Paired by question: a row counts how many answers became wrong and how many became right
    (`num_flips_worse`, `num_flips_better` of `num_questions`). The standard error is that of the
    paired difference; a row whose interval of two of them holds `at_most` decides nothing. What
    users notice is not measured.
    """
    groups: dict[str, list[str]] = {"within": [], "above": [], "undecided": []}
    evidence, errors = {}, []
    for name, label in _rows(record, copy, baseline, "num_flips_worse"):
        worse, better, n = (
            record.estimate(name, f"num_{key}").value
            for key in ("flips_worse", "flips_better", "questions")
        )
        lost = (worse - better) / n
        error = math.sqrt(max(worse + better - (worse - better) ** 2 / n, 1.0)) / n
        errors.append(error)
        low, high = lost - 1.96 * error, lost + 1.96 * error
        evidence[f"share of questions lost, {label}"] = Estimate(lost, low, high, int(n))
        word = "within" if high <= at_most else "above" if low > at_most else "undecided"
        groups[word].append(label)
    if not errors:
        return Verdict("untested", f"the record has no task score of a quantized {copy} copy")
    found = [f"{word}: {', '.join(labels)}" for word, labels in groups.items() if labels]
    where = "; ".join(found) + f"; standard error of a difference up to {max(errors):.1%}"
    if not groups["within"] and not groups["above"]:
        return Verdict("untested", where, evidence)
    if not groups["above"] and not groups["undecided"]:
        return Verdict("holds", where, evidence)
    return Verdict("holds only where" if groups["within"] else "fails", where, evidence)


@predicate
def indistinguishable(
    record: Record,
    *,
    least_top1: float,
    most_perplexity: float,
    copy: str = "rotated",
    baseline: str = BASELINE,
) -> Verdict:
    """Which formats choose the same next token and keep the perplexity, within stated bounds?

    A row passes when its top-1 agreement is at least `least_top1` and its perplexity at most
    `most_perplexity` times the baseline's.
    """
    plain = [
        name
        for name in record.cases(copy=copy, format=baseline)
        if "perplexity" in record.metrics(name)
    ]
    if not plain:
        return Verdict("untested", f"the record has no unquantized {copy} copy with a perplexity")
    base = record.estimate(plain[0], "perplexity").value
    passed, failed, evidence = [], [], {}
    for name, label in _rows(record, copy, baseline, "top1_ratio"):
        top1 = record.estimate(name, "top1_ratio")
        growth = record.estimate(name, "perplexity").value / base
        evidence[f"top-1 agreement, {label}"] = top1
        evidence[f"perplexity over the baseline's, {label}"] = Estimate(growth, growth, growth, 1)
        good = top1.value >= least_top1 and growth <= most_perplexity
        (passed if good else failed).append(label)
    if not passed and not failed:
        return Verdict("untested", f"the record has no quantized {copy} copy")
    where = f"within the bounds: {', '.join(passed) or 'none'}"
    if failed:
        where += f"; outside: {', '.join(failed)}"
    word = "holds" if not failed else "holds only where" if passed else "fails"
    return Verdict(word, where, evidence)


def _rows(record: Record, copy: str, baseline: str, metric: str) -> Iterator[tuple[str, str]]:
    """(case, label) of the quantized quality rows on one copy that have `metric`."""
    for name in record.cases(copy=copy):
        params = record.manifest.cases[name].params
        if params.get("format") not in (None, baseline) and metric in record.metrics(name):
            yield name, f"{params['format']} {params.get('method', '')}".strip()
