"""What six other tools would report for the same trace, in their own field names and units.

Chapter: chapters/01_metrics.md  Lab: labs/01_metrics.ipynb

Each dialect is a function of a trace (and of an optional SLO) that follows one tool's rules for
empty chunks, events of several tokens, single-token answers, failures and percentiles; its
docstring names the source and says what is uncertain. The number of tokens is taken from the
trace everywhere, although some of the tools count again with a tokenizer of their own. None of them
refuses a percentile: they report what the tool would report.
"""

from collections.abc import Callable
from typing import Any

from inferlab.dialects.aiperf import aiperf
from inferlab.dialects.databricks import databricks
from inferlab.dialects.guidellm import guidellm
from inferlab.dialects.llmperf import llmperf
from inferlab.dialects.mlperf import mlperf
from inferlab.dialects.table import Reading, readings
from inferlab.dialects.vllm import vllm
from inferlab.metrics import SLO
from inferlab.trace import Trace

DIALECTS: dict[str, Callable[..., dict[str, Any]]] = {
    "vllm": vllm,
    "aiperf": aiperf,
    "guidellm": guidellm,
    "llmperf": llmperf,
    "mlperf": mlperf,
    "databricks": databricks,
}


def all_dialects(trace: Trace, slo: SLO | None = None) -> dict[str, dict[str, Any]]:
    """Every dialect's report of the trace, by the tool's name."""
    return {name: dialect(trace, slo) for name, dialect in DIALECTS.items()}


__all__ = [
    "DIALECTS",
    "Reading",
    "aiperf",
    "all_dialects",
    "databricks",
    "guidellm",
    "llmperf",
    "mlperf",
    "readings",
    "vllm",
]
