"""What does a record of lab 41 say: gains by spread, the eight cells, budgets, chunks?

Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inferlab.continuous.ladder import TECHNIQUES, Cell, Ratio, all_cells
from inferlab.errors import UserError
from inferlab.records import CaseInfo, Record
from inferlab.stats import Estimate

THROUGHPUT = "output_tok_per_s"


@dataclass(frozen=True, slots=True)
class Gain:
    """One variant over another on one mix of lengths: measured, emulated, and what was known."""

    cv: float  # of the output lengths
    longest_over_mean: float
    measured: Estimate
    emulated: float | None  # of the real schedule with predicted steps


def gains(record: Record, variant: str = "continuous", baseline: str = "static") -> list[Gain]:
    """Output throughput of `variant` over `baseline` for each mix that has both, by spread."""
    found = []
    for name in record.cases(phase="mix", variant=variant):
        info = record.manifest.cases[name]
        for other in record.cases(phase="mix", variant=baseline, mix=info.params["mix"]):
            if not (record.metrics(name) and record.metrics(other)):
                continue
            found.append(
                Gain(
                    info.params["cv"], info.params["longest_over_mean"],
                    record.ratio(other, name, THROUGHPUT),
                    _predicted_ratio(record.manifest.cases[other], info),
                )
            )  # fmt: skip
    return sorted(found, key=lambda gain: gain.cv)


def _predicted_ratio(baseline: CaseInfo, variant: CaseInfo) -> float | None:
    both = [info.predicted.get(THROUGHPUT) for info in (baseline, variant)]
    return both[1] / both[0] if all(both) else None


def cube(record: Record) -> dict[Cell, str]:
    """The case of each of the eight cells; UserError when one is missing.

    A case of phase "cube" lists in its parameter `on` the techniques that are switched on.
    """
    found = {frozenset(record.manifest.cases[name].params["on"].split("+")) - {""}: name
             for name in record.cases(phase="cube") if record.metrics(name)}  # fmt: skip
    missing = [cell for cell in all_cells() if cell not in found]
    if missing:
        words = " and ".join(sorted(missing[0])) or "nothing"
        raise UserError(f"the record has no cell with {words} switched on: run the whole cube")
    return found


def measured_ratio(record: Record) -> Ratio:
    """Ratios of throughput between cells, each the median over rounds of paired runs.

    Medians of ratios do not multiply exactly: what is left over says how well they are known.
    """
    cells = cube(record)
    return lambda baseline, variant: record.ratio(cells[baseline], cells[variant], THROUGHPUT).value


def emulated_ratio(record: Record) -> Ratio:
    """The same from the predictions that stood before the run."""
    cells = cube(record)
    value = {cell: record.manifest.cases[name].predicted[THROUGHPUT]
             for cell, name in cells.items()}  # fmt: skip
    return lambda baseline, variant: value[variant] / value[baseline]


def edges(record: Record) -> list[tuple[str, Cell, Estimate]]:
    """(technique, what was on already, its factor): the twelve edges of the cube."""
    cells = cube(record)
    return [
        (technique, cell, record.ratio(cells[cell], cells[cell | {technique}], THROUGHPUT))
        for technique in TECHNIQUES
        for cell in all_cells()
        if technique not in cell
    ]


@dataclass(frozen=True, slots=True)
class Choice:
    """The setting of one policy that gives most within a budget of time per token."""

    case: str
    max_num_seqs: int
    tpot_p95_s: float
    output_tok_per_s: float


def best_within(
    record: Record, policy: str, budget_s: float, most_seqs: int | None = None
) -> Choice | None:
    """The most output that `policy` gives with a p95 TPOT of at most `budget_s`; None: never.

    `most_seqs`: with no more rows than that, each of which takes memory.
    """
    found = []
    for name in record.cases(phase="budget", policy=policy):
        if not record.metrics(name):
            continue
        tpot_s = record.estimate(name, "tpot_p95_s").value
        rows = record.manifest.cases[name].params["max_num_seqs"]
        if tpot_s <= budget_s and rows <= (most_seqs or rows):
            found.append(Choice(name, rows, tpot_s, record.estimate(name, THROUGHPUT).value))
    return max(found, key=lambda choice: choice.output_tok_per_s, default=None)


def gain_within(record: Record, budget_s: float, most_seqs: int | None = None) -> Estimate | None:
    """Continuous over static, each at its best size within one budget; None when one has none."""
    best = [best_within(record, policy, budget_s, most_seqs) for policy in ("static", "continuous")]
    if None in best:
        return None
    return record.ratio(best[0].case, best[1].case, THROUGHPUT)


def budget_of(record: Record, max_num_seqs: int) -> float:
    """The p95 TPOT that continuous batching of that size had: a budget that it meets."""
    for name in record.cases(phase="budget", policy="continuous", max_num_seqs=max_num_seqs):
        return record.estimate(name, "tpot_p95_s").value
    raise UserError(f"the record has no continuous run with {max_num_seqs} sequences")


@dataclass(frozen=True, slots=True)
class Intrusion:
    """What a long prompt did to the others at one chunk size (0: read in a step of its own)."""

    chunk_size: int
    tail_q: float
    itl_tail: Estimate
    itl_median: Estimate
    ttft: Estimate
    kept: Estimate  # throughput over that without chunks
    predicted: Mapping[str, float]


def intrusions(record: Record) -> list[Intrusion]:
    """One row a chunk size, whole prompts first, then from small to large."""
    names = {record.manifest.cases[name].params["chunk_size"]: name
             for name in record.cases(phase="intruder") if record.metrics(name)}  # fmt: skip
    if 0 not in names:
        raise UserError("the record has no intruder that is read whole: nothing to compare with")
    return [
        Intrusion(
            size, record.manifest.cases[name].params["tail_q"],
            record.estimate(name, "itl_tail_s"), record.estimate(name, "itl_median_s"),
            record.estimate(name, "ttft_s"), record.ratio(names[0], name, THROUGHPUT),
            record.manifest.cases[name].predicted,
        )
        for size, name in sorted(names.items())
    ]  # fmt: skip


def engine_over_bare(record: Record, cache: str = "static") -> Estimate:
    """Decode throughput of the full engine over that of a bare loop with that cache."""
    engine, bare = (record.cases(phase="steady", loop=loop) for loop in ("engine", f"bare {cache}"))
    if not engine or not bare:
        raise UserError(f"the record has no engine beside a bare loop with the {cache} cache")
    return record.ratio(bare[0], engine[0], "step_tok_per_s")
