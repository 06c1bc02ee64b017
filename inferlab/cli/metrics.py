"""`inferlab metrics FILE`: fold a saved trace, by our definitions and by six other tools'."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferlab.cli.output import one_line, print_json, stdout_console
from inferlab.errors import UserError

if TYPE_CHECKING:
    from inferlab.metrics import SLO

_Limit = Annotated[float | None, typer.Option(help="Limit in ms that a good request meets.")]


def metrics(
    file: Annotated[Path, typer.Argument(help="A trace: inferlab.trace/1, .jsonl or .jsonl.gz.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    slo_ttft_ms: _Limit = None,
    slo_tpot_ms: _Limit = None,
    slo_e2e_ms: _Limit = None,
    warmup: Annotated[
        int, typer.Option(help="Leave out this many requests, the first by scheduled time.")
    ] = 0,
) -> None:
    """Fold a saved trace, in every dialect.

    Our metrics are under "inferlab"; under "vllm", "aiperf", "guidellm", "llmperf", "mlperf" and
    "databricks" is what each tool would report for the same trace, in its own fields and units.
    """
    from inferlab.dialects import all_dialects
    from inferlab.metrics import summarize, without_warmup
    from inferlab.trace import TraceError, load_trace

    slo = slo_in_ms(slo_ttft_ms, slo_tpot_ms, slo_e2e_ms)
    trace = load_trace(file)
    try:
        summary = summarize(trace, slo=slo, warmup=warmup).to_dict()
    except TraceError:
        raise
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    reports = all_dialects(without_warmup(trace, warmup), slo)
    if json:
        print_json({"inferlab": summary, **reports})
    else:
        _print_tables(file, summary, reports)


def slo_in_ms(ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None) -> "SLO | None":
    """The limits in seconds; None where there is none."""
    from inferlab.metrics import SLO

    limits = [None if limit is None else limit / 1e3 for limit in (ttft_ms, tpot_ms, e2e_ms)]
    return SLO(*limits) if any(limit is not None for limit in limits) else None


def _print_tables(file: Path, summary: dict[str, Any], reports: dict[str, dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from inferlab.dialects import readings
    from inferlab.units import format_number, format_seconds

    console = stdout_console()
    counts, window = summary["counts"], summary["window"]
    name, label = escape(one_line(file.name)), escape(one_line(summary["label"] or "none"))
    console.print(
        f"[bold]{name}[/bold]: {counts['requests']} requests, {counts['ok']} completed, "
        f"{counts['failed']} failed, {counts['warmup_excluded']} left out as warm-up; "
        f"{counts['output_tokens']} output tokens in {format_seconds(window['duration_s'])}; "
        f"label: {label}",
        highlight=False,
    )
    ours = Table(title="inferlab", title_justify="left", title_style="bold")
    for name in ("", "count", "mean", "median", "p90", "p95", "p99", "max"):
        ours.add_column(name, justify="left" if not name else "right")
    for key, title in (
        ("ttft_s", "TTFT, from scheduled"),
        ("ttft_from_sent_s", "TTFT, from sent"),
        ("tpot_s", "TPOT"),
        ("itl_s", "ITL, pooled gaps"),
        ("e2e_s", "E2E, from scheduled"),
    ):
        block = summary[key]
        cells = [
            "refused" if name in block["refused"] else format_seconds(block[name])
            for name in ("mean", "median", "p90", "p95", "p99", "max")
        ]
        ours.add_row(title, str(block["count"]), *cells)
    console.print(ours)

    table = Table(title="The same trace by each tool's definitions (means)", title_justify="left")
    table.title_style = "bold"
    table.add_column("", overflow="fold")
    table.add_column("per-token value, its name", overflow="fold")
    for name in ("ms", "TTFT ms", "gap ms", "E2E ms", "p99 TTFT ms", "tok/s", "requests"):
        table.add_column(name, justify="right")
    for row in readings(summary, reports):
        values = (row.per_token_ms, row.ttft_ms, row.gap_ms, row.latency_ms, row.p99_ttft_ms)
        cells = [format_number(value) for value in (*values, row.output_tok_per_s)]
        table.add_row(row.tool, row.per_token_name, *cells, str(row.requests))
    console.print(table)
    for reason in sorted({reason for block in summary.values() for reason in _refusals(block)}):
        console.print(f"refused: {reason}", highlight=False)
    if summary["goodput"] is not None:
        goodput = summary["goodput"]
        console.print(
            f"goodput: {goodput['good_requests']} of {counts['requests']} requests meet the SLO, "
            f"{format_number(goodput['requests_per_s'])} requests/s",
            highlight=False,
        )


def _refusals(block: Any) -> list[str]:
    return list(block["refused"].values()) if isinstance(block, dict) and "refused" in block else []
