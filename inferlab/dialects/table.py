"""The same trace read by every tool, side by side in one unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferlab.units import MILLI


@dataclass(frozen=True, slots=True)
class Reading:
    """One tool's reading of a trace: means, in milliseconds; None where the tool has no such value.

    `per_token_name` is the tool's own word for the per-token value beside it; `gap_ms` is its mean
    gap between chunks; `requests` is how many it counted as completed.
    """

    tool: str
    ttft_ms: float | None
    per_token_name: str
    per_token_ms: float | None
    gap_ms: float | None
    latency_ms: float | None
    p99_ttft_ms: float | None
    output_tok_per_s: float | None
    requests: int | None


def readings(summary: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> list[Reading]:
    """One row a per-token definition, from `MetricsSummary.to_dict()` and `all_dialects(trace)`.

    GuideLLM has two rows, because it reports two per-token values.
    """
    rows = [
        _row("inferlab", "tpot_s", summary, _OURS),
        _row("vllm", "mean_tpot_ms", reports["vllm"], _VLLM),
        _row("aiperf", "inter_token_latency", reports["aiperf"], _AIPERF),
        _row("guidellm", "inter_token_latency_ms", reports["guidellm"], _GUIDELLM),
        _row(
            "guidellm",
            "time_per_output_token_ms",
            reports["guidellm"],
            {**_GUIDELLM, "per_token_ms": ("time_per_output_token_ms", "successful", "mean")},
        ),
        _row("llmperf", "inter_token_latency_s", reports["llmperf"], _LLMPERF),
        _row("mlperf", "time_to_output_token_mean", reports["mlperf"], _MLPERF),
        _row("databricks", "time_per_output_token_ms", reports["databricks"], _DATABRICKS),
    ]
    return rows


_Path = tuple[str, ...]
_Column = _Path | tuple[_Path, float]  # where the value lies, and what turns it into milliseconds
_S, _NS = 1 / MILLI, 1e-6

_OURS: dict[str, _Column] = {
    "ttft_ms": (("ttft_s", "mean"), _S),
    "per_token_ms": (("tpot_s", "mean"), _S),
    "gap_ms": (("itl_s", "mean"), _S),
    "latency_ms": (("e2e_s", "mean"), _S),
    "p99_ttft_ms": (("ttft_s", "p99"), _S),
    "output_tok_per_s": ("output_tok_per_s",),
    "requests": ("counts", "ok"),
}
_VLLM: dict[str, _Column] = {
    "ttft_ms": ("mean_ttft_ms",),
    "per_token_ms": ("mean_tpot_ms",),
    "gap_ms": ("mean_itl_ms",),
    "latency_ms": ("mean_e2el_ms",),
    "p99_ttft_ms": ("p99_ttft_ms",),
    "output_tok_per_s": ("output_throughput",),
    "requests": ("completed",),
}
_AIPERF: dict[str, _Column] = {
    "ttft_ms": ("time_to_first_token", "avg"),
    "per_token_ms": ("inter_token_latency", "avg"),
    "gap_ms": ("inter_chunk_latency", "avg"),
    "latency_ms": ("request_latency", "avg"),
    "p99_ttft_ms": ("time_to_first_token", "p99"),
    "output_tok_per_s": ("output_token_throughput", "avg"),
    "requests": ("request_count", "avg"),
}
_GUIDELLM: dict[str, _Column] = {
    "ttft_ms": ("time_to_first_token_ms", "successful", "mean"),
    "per_token_ms": ("inter_token_latency_ms", "successful", "mean"),
    "latency_ms": (("request_latency", "successful", "mean"), _S),
    "p99_ttft_ms": ("time_to_first_token_ms", "successful", "percentiles", "p99"),
    "output_tok_per_s": ("output_tokens_per_second", "successful", "mean"),
    "requests": ("request_totals", "successful"),
}
_LLMPERF: dict[str, _Column] = {
    "ttft_ms": (("ttft_s", "mean"), _S),
    "per_token_ms": (("inter_token_latency_s", "mean"), _S),
    "latency_ms": (("end_to_end_latency_s", "mean"), _S),
    "p99_ttft_ms": (("ttft_s", "quantiles", "p99"), _S),
    "output_tok_per_s": ("mean_output_throughput_token_per_s",),
    "requests": ("num_completed_requests",),
}
_MLPERF: dict[str, _Column] = {
    "ttft_ms": (("result_first_token_mean_latency_ns",), _NS),
    "per_token_ms": (("result_time_to_output_token_mean",), _NS),
    "latency_ms": (("result_mean_latency_ns",), _NS),
    "p99_ttft_ms": (("result_first_token_99.00_percentile_latency_ns",), _NS),
    "output_tok_per_s": ("result_completed_tokens_per_second",),
    "requests": ("result_query_count",),
}
_DATABRICKS: dict[str, _Column] = {
    "ttft_ms": ("time_to_first_token_ms",),
    "per_token_ms": ("time_per_output_token_ms",),
    "latency_ms": ("latency_ms",),
    "output_tok_per_s": ("output_tokens_per_second",),
    "requests": ("requests",),
}


def _row(
    tool: str, per_token_name: str, report: Mapping[str, Any], columns: Mapping[str, _Column]
) -> Reading:
    values = {name: _look_up(report, columns.get(name)) for name in _ALL}
    return Reading(tool=tool, per_token_name=per_token_name, **values)


_ALL = tuple(_OURS)


def _look_up(report: Mapping[str, Any], column: _Column | None) -> Any:
    if column is None:
        return None
    path, scale = column if isinstance(column[0], tuple) else (column, None)
    value: Any = report
    for key in path:
        value = None if value is None else value[key]
    return value if value is None or scale is None else value * scale
