"""How far apart are the tools' per-token values, and from which answer length on do they agree?

For one answer of N tokens with one token an event, the largest value is (TTFT + (N - 1) TPOT) / N
(GuideLLM's TPOT, LLMPerf) and the smallest (N - 1) TPOT / N (Databricks' formula). Their ratio is
1 + r / (N - 1) with r = TTFT / TPOT, or N / (N - 1) where r is below 1.
Chapter: chapters/01_metrics.md    Lab: labs/01_metrics.ipynb
"""

import math

from inferlab.dialects.table import readings
from inferlab.errors import UserError
from inferlab.metrics import summarize
from inferlab.trace import Trace


def per_token_s(trace: Trace) -> dict[str, float]:
    """Mean seconds a token by "tool: the tool's own word", where the tool has a value."""
    from inferlab.dialects import all_dialects

    rows = readings(summarize(trace).to_dict(), all_dialects(trace))
    return {
        f"{row.tool}: {row.per_token_name}": row.per_token_ms / 1e3
        for row in rows
        if row.per_token_ms is not None
    }


def spread_ratio(trace: Trace) -> float:
    """Largest over smallest per-token value of all tools."""
    values = [value for value in per_token_s(trace).values() if value > 0]
    if not any(request.output_tokens > 1 for request in trace.requests):
        raise UserError("no answer of this trace has two tokens: there is no time per token")
    return max(values) / min(values)


def predicted_spread_ratio(ttft_to_tpot_ratio: float, output_len: int) -> float:
    """The ratio that an answer of `output_len` tokens will show."""
    if output_len < 2:
        raise UserError("an answer needs at least two tokens to have a time per token")
    return 1 + max(ttft_to_tpot_ratio, 1.0) / (output_len - 1)


def output_len_for_spread(ttft_to_tpot_ratio: float, limit_ratio: float) -> int:
    """Smallest number of tokens from which all definitions agree to within `limit_ratio`."""
    if limit_ratio <= 1:
        raise UserError("the limit must be above 1: the definitions never agree exactly")
    # a whole number that floating point leaves just above itself must not be rounded up
    return 1 + math.ceil(max(ttft_to_tpot_ratio, 1.0) / (limit_ratio - 1) - 1e-9)
