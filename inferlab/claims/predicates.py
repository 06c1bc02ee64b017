"""What would show a claim to hold? Pure functions from one record to a verdict.

Chapters: 02_roofline, 20_kv_cache. A predicate is named in data/claims/*.yml and gets its numbers
from there; there is no expression language.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from inferlab.records import CaseInfo, Record
from inferlab.stats import Estimate
from inferlab.units import format_bytes, format_number, format_rate

Word = Literal["holds", "fails", "holds only where", "untested"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A word, the regime it is about, and the numbers behind it (ratios unless the key says)."""

    verdict: Word
    where: str = ""
    evidence: Mapping[str, Estimate] = field(default_factory=dict)


Predicate = Callable[..., Verdict]
PREDICATES: dict[str, Predicate] = {}


def predicate(function: Predicate) -> Predicate:
    """Register `function` under its own name."""
    PREDICATES[function.__name__] = function
    return function


@dataclass(frozen=True, slots=True)
class _Phase:
    """A phase of generation: the metric that times it and the parameter that was swept."""

    name: str
    metric: str
    swept: str
    expected: str  # the bound that the claim names
    resource: str


_PHASES = (
    _Phase("decode", "tpot_s", "batch_size", "memory", "bandwidth"),
    _Phase("prefill", "ttft_s", "prompt_len", "compute", "compute"),
)


@predicate
def bound_by_phase(record: Record, *, least_share: float = 0.3) -> Verdict:
    """Is decode limited by memory bandwidth, and prefill by arithmetic?

    A case is limited by the resource whose floor is the larger one, if that floor explains at
    least `least_share` of the measured time; otherwise it is limited by overhead. A case states
    its floors in `predicted`, as `decode_memory_s` and `decode_compute_s` (or `prefill_…`), or, if
    its parameter `phase` says which phase it is, as `memory_s` and `compute_s`.
    """
    findings, evidence, counts = [], {}, [0, 0]
    for phase in _PHASES:
        cases = []
        for name, info in record.manifest.cases.items():
            floors = _floors(info, phase)
            if floors is None or phase.metric not in record.metrics(name):
                continue
            memory_s, compute_s = floors
            larger_s = max(memory_s, compute_s)
            share = _inverse(larger_s, record.estimate(name, phase.metric))
            limit = "memory" if memory_s >= compute_s else "compute"
            as_claimed = limit == phase.expected and share.value >= least_share
            cases.append((info.params.get(phase.swept), as_claimed))
            evidence[f"{phase.name}, {limit} floor / measured, {name}"] = share
        if not cases:
            return Verdict("untested", f"the record has no {phase.name} case with its floors")
        good = sum(as_claimed for _, as_claimed in cases)
        counts[0] += good
        counts[1] += len(cases)
        findings.append(
            f"{phase.name} is {phase.resource}-bound in {good} of {len(cases)} cases"
            + _boundary(phase.swept, cases)
        )
    where = "; ".join(findings)
    if counts[0] == counts[1]:
        return Verdict("holds", where, evidence)
    return Verdict("holds only where" if counts[0] else "fails", where, evidence)


def _floors(info: CaseInfo, phase: _Phase) -> tuple[float, float] | None:
    prefixes = [f"{phase.name}_"] + ([""] if info.params.get("phase") == phase.name else [])
    for prefix in prefixes:
        keys = (f"{prefix}memory_s", f"{prefix}compute_s")
        if all(key in info.predicted for key in keys):
            return info.predicted[keys[0]], info.predicted[keys[1]]
    return None


def _inverse(numerator: float, estimate: Estimate) -> Estimate:
    """numerator / estimate: the ends of the interval change places."""
    low, high = (numerator / end for end in (estimate.high, estimate.low))
    return Estimate(numerator / estimate.value, low, high, estimate.n)


def _boundary(swept: str, cases: Sequence[tuple[Any, bool]]) -> str:
    """ " (batch_size up to 4)" when the claim holds on one side of a value, else nothing."""
    good = {value for value, as_claimed in cases if as_claimed}
    bad = {value for value, as_claimed in cases if not as_claimed}
    if not good or not bad or any(not isinstance(v, int | float) for v in good | bad):
        return ""
    if max(good) < min(bad):
        return f" ({swept} up to {max(good):g})"
    if min(good) > max(bad):
        return f" ({swept} from {min(good):g})"
    return ""


@predicate
def kv_outgrows_weights(
    record: Record, *, uncached: Sequence[str] = ("none", "no_cache")
) -> Verdict:
    """From how many tokens on does the KV cache take more memory than the weights?

    The cache grows by the same bytes a token and sequence, so they cross at weights / (bytes per
    token), counted over the whole batch. A case states `kv_bytes` (measured, or predicted from the
    model's shape) and `weight_bytes` (likewise); `context_len` and `batch_size` are parameters. The
    claim fails on a device that cannot hold the weights twice: they fill it first.
    """
    models: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name, info in record.manifest.cases.items():
        tokens = _tokens_held(info)
        kv, weights = (_bytes_of(record, name, key) for key in ("kv_bytes", "weight_bytes"))
        if info.params.get("cache") not in uncached and tokens and kv and weights:
            models[str(info.params.get("model", "the model"))].append((tokens, kv, weights))
    if not models:
        return Verdict("untested", "the record has no case with kv_bytes and weight_bytes")
    machine = record.manifest.machine
    memory = machine.accelerator.memory_bytes if machine.accelerator else machine.cpu.memory_bytes
    findings, evidence, words = [], {}, set()
    for model, cases in models.items():
        tokens, kv, weights = max(cases)
        crossover = weights * tokens / kv
        evidence[f"tokens at which the cache equals the weights, {model}"] = _exact(crossover)
        evidence[f"KV cache / weights, largest case measured, {model}"] = _exact(kv / weights)
        if memory and 2 * weights > memory:
            words.add("fails")
            findings.append(
                f"{model}: weights of {format_bytes(weights)} leave no room for as large a cache"
            )
            continue
        words.add("holds" if all(k > w for _, k, w in cases) else "holds only where")
        findings.append(
            f"{model}: batch size × context above {format_number(crossover)} tokens "
            f"({format_number(tokens)} measured at most)"
        )
    word = words.pop() if len(words) == 1 else "holds only where"
    return Verdict(word, "; ".join(findings), evidence)


def _tokens_held(info: CaseInfo) -> float:
    sizes = (info.params.get("batch_size"), info.params.get("context_len"))
    return sizes[0] * sizes[1] if all(isinstance(s, int | float) for s in sizes) else 0


def _bytes_of(record: Record, case: str, key: str) -> float | None:
    if key in record.metrics(case):
        return record.estimate(case, key).value
    return record.manifest.cases[case].predicted.get(key)


def _exact(value: float) -> Estimate:
    """A number that follows from shapes, not from timing: no interval to speak of."""
    return Estimate(value, value, value, 1)


@predicate
def needs_bandwidth_ratio(
    record: Record, *, latency_ratio: float, throughput_ratio: float, probe: str = "probe/"
) -> Verdict:
    """What would "x times lower latency" of another device ask of its memory?

    A bandwidth-bound decode step of the same bytes gets `latency_ratio` times shorter only with as
    many times the read bandwidth. This record cannot test a claim about other devices; it says
    what the claim needs, measured from here. At equal concurrency, throughput rises as latency
    falls, so unequal ratios come from two different operating points.
    """
    where = "no record of the two accelerators that the source compares"
    if throughput_ratio != latency_ratio:
        points = latency_ratio / throughput_ratio
        where += (
            f"; {format_number(latency_ratio)}× lower latency with only "
            f"{format_number(throughput_ratio)}× throughput means {format_number(points)}× fewer "
            "requests in flight: two operating points, not one"
        )
    probes = [
        (record.manifest.cases[name].params.get("working_set_bytes") or 0, name)
        for name in record.manifest.cases
        if name.startswith(probe) and "read_bytes_per_s" in record.metrics(name)
    ]
    if not probes:
        return Verdict("untested", where)
    # The largest working set is the one that no cache serves.
    here = record.estimate(max(probes)[1], "read_bytes_per_s")
    needed = Estimate(*(latency_ratio * v for v in (here.value, here.low, here.high)), here.n)
    where += f"; from this device's reads it would take {format_rate(needed.value, 'B/s')}"
    evidence = {
        "read bandwidth measured here, bytes per second": here,
        "read bandwidth that the claim would need, bytes per second": needed,
    }
    return Verdict("untested", where, evidence)
