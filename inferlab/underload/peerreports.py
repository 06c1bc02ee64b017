"""What did another load generator report, and what would it have reported of our trace?

Both sides are read with the same table: a peer's JSON and our `dialects` report have the same
fields. So a definition that differs (GuideLLM's "inter-token latency" is a TPOT) never looks like a
measurement that differs.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferlab.dialects import DIALECTS
from inferlab.errors import MeasurementError
from inferlab.trace import Trace

REPORT_FILES = {
    "aiperf": "profile_export_aiperf.json", "guidellm": "guidellm.json", "vllm": "vllm.json",
}  # fmt: skip

# Ours -> (fields of the report, what turns the value into seconds or a count). The names: ttft_s,
# tpot_s (per request, first token excluded), itl_s (gaps between chunks), e2e_s are medians.
_MS = 1e-3
FIELDS: dict[str, dict[str, tuple[tuple[str, ...], float]]] = {
    "aiperf": {
        "ttft_s": (("time_to_first_token", "p50"), _MS),
        "tpot_s": (("inter_token_latency", "p50"), _MS),
        "itl_s": (("inter_chunk_latency", "p50"), _MS),
        "e2e_s": (("request_latency", "p50"), _MS),
        "output_tok_per_s": (("output_token_throughput", "avg"), 1.0),
        "prompt_tokens": (("input_sequence_length", "avg"), 1.0),
        "output_tokens": (("output_sequence_length", "avg"), 1.0),
        "requests": (("request_count", "avg"), 1.0),
    },
    "guidellm": {
        "ttft_s": (("time_to_first_token_ms", "successful", "median"), _MS),
        "tpot_s": (("inter_token_latency_ms", "successful", "median"), _MS),
        "e2e_s": (("request_latency", "successful", "median"), 1.0),
        "output_tok_per_s": (("output_tokens_per_second", "successful", "mean"), 1.0),
        "prompt_tokens": (("prompt_token_count", "successful", "mean"), 1.0),
        "output_tokens": (("output_token_count", "successful", "mean"), 1.0),
        "requests": (("request_totals", "successful"), 1.0),
    },
    "vllm": {
        "ttft_s": (("median_ttft_ms",), _MS),
        "tpot_s": (("median_tpot_ms",), _MS),
        "itl_s": (("median_itl_ms",), _MS),
        "e2e_s": (("median_e2el_ms",), _MS),
        "output_tok_per_s": (("output_throughput",), 1.0),
        "input_total": (("total_input_tokens",), 1.0),
        "output_total": (("total_output_tokens",), 1.0),
        "requests": (("completed",), 1.0),
    },
}


def load_report(name: str, folder: Path, num_requests: int, output_len: int) -> dict[str, Any]:
    """The report that a peer wrote into `folder`, in the layout of its dialect.

    MeasurementError when it is missing or unreadable, when it counts fewer requests than
    `num_requests` (a median of those that survived would flatter), or when their answers did not
    have `output_len` tokens.
    """
    path = folder / REPORT_FILES[name]
    try:
        report = json.loads(path.read_text())
        if name == "guidellm":
            report = report["benchmarks"][0]["metrics"]
        values = read_report(name, report)
        finished, tokens = values["requests"], values["output_tokens"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise MeasurementError(
            f"{name} wrote no report that can be read ({type(error).__name__}): "
            "another version than the pinned one?"
        ) from error
    if finished != num_requests:
        raise MeasurementError(f"{name} finished {finished:.0f} of {num_requests} requests")
    if abs(tokens - output_len) > 1e-6:
        raise MeasurementError(
            f"{name} counted {tokens:g} tokens an answer, not {output_len}: the server must ignore "
            "the end-of-sequence token and report usage"
        )
    return report


def read_report(name: str, report: Mapping[str, Any]) -> dict[str, float]:
    """A peer's report, or our dialect of it, as seconds and counts under our names.

    Values that the report lacks are left out; tokens are means of a request.
    """
    values: dict[str, float] = {}
    for ours, (path, scale) in FIELDS[name].items():
        value: Any = report
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            values[ours] = scale * value
    for total, each in (("input_total", "prompt_tokens"), ("output_total", "output_tokens")):
        if total in values:
            values[each] = values.pop(total) / max(values.get("requests", 0.0), 1.0)
    return values


def as_reported_by(name: str, trace: Trace) -> dict[str, float]:
    """What the peer would have said of our trace, read as its own report is."""
    return read_report(name, DIALECTS[name](trace))
