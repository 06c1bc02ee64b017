"""What does a request that comes late do to those who are writing?

Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from inferlab.continuous.emulate import Emulated, StepSeconds, emulate
from inferlab.continuous.setting import Setting
from inferlab.continuous.tails import highest_percentile
from inferlab.lengths import Lengths
from inferlab.metrics import itl_s, ttft_s
from inferlab.stats import percentile
from inferlab.trace import Trace


@dataclass(frozen=True, slots=True)
class Late:
    """A request that comes when the first of the others has written `after_tokens` tokens."""

    lengths: Lengths
    after_tokens: int


def intruder_metrics(trace: Trace) -> dict[str, float]:
    """Gaps of all requests but the last, the last one's TTFT, and the throughput of all."""
    *others, intruder = trace.requests
    gaps = [gap for request in others for gap in itl_s(request)]
    tokens = sum(r.output_tokens for r in trace.requests)
    wall_s = max(request.events[-1][0] for request in trace.requests)
    return {
        "itl_tail_s": percentile(gaps, highest_percentile(len(gaps))),
        "itl_max_s": max(gaps),
        "itl_median_s": statistics.median(gaps),
        "ttft_s": ttft_s(intruder),
        "output_tok_per_s": tokens / wall_s,
        "wall_s": wall_s,
    }


def emulate_late(
    requests: Sequence[Lengths], late: Late, setting: Setting, step_s: StepSeconds
) -> Emulated:
    """The same emulated: `late` is due when the first request has `after_tokens` tokens."""
    alone = emulate(requests, setting, step_s)
    due = alone.trace.requests[0].events[late.after_tokens - 1][0]
    return emulate([*requests, late.lengths], setting, step_s, [0.0] * len(requests) + [due])
