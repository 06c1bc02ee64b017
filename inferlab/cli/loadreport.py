"""What `load` prints and saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferlab.cli.output import one_line, stdout_console

if TYPE_CHECKING:
    from inferlab.load.point import LoadPoint

_COLUMNS = (
    "offered\nreq/s", "answered\nreq/s", "ok", "TTFT\nmedian", "TTFT\np95", "TPOT\nmedian",
    "TPOT\np95", "ITL\np99", "output\ntok/s", "good\nreq/s", "good",
)  # fmt: skip


def print_points(points: list[LoadPoint], result: dict[str, Any]) -> None:
    """A table with a line for each point, and below it what must be known to read it."""
    from rich.table import Table

    from inferlab.load.report import notes
    from inferlab.units import format_number

    console = stdout_console()
    table = Table(title=one_line(_title(points[0])), title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for point in points:
        table.add_row(*_cells(point), style="dim" if point.is_void else "")
    console.print(table)
    for point in points:
        where = f"{point.plan.rate_req_per_s:.3g} req/s: " if len(points) > 1 else ""
        for note in notes(point):
            console.print(where + note, highlight=False, markup=False)
    verdict = points[-1].run.verdict
    console.print(
        f"client: {verdict.late_sends} of {verdict.sends} sends late, "
        f"{format_number(100 * verdict.cpu_ratio)} % of a core, {len(points)} run(s)",
        highlight=False,
    )
    if result:
        rate = format_number(result["max_rate_req_per_s"])
        fails = format_number(result["failing_rate_req_per_s"])
        share = f"{result['goodput_ratio']:.0%}"
        console.print(
            f"max rate with {share} of requests within the SLO: {rate} req/s (fails at {fails})",
            highlight=False,
        )
        if not result["complete"]:
            console.print(
                f"the search is incomplete, it ended {result['why']}", highlight=False, markup=False
            )


def _title(point: LoadPoint) -> str:
    plan = point.plan
    is_open = plan.concurrency is None
    loop = f"open loop, {plan.arrivals}" if is_open else f"closed loop of {plan.concurrency}"
    return f"{plan.model[:60]}, {loop}, {point.mix}"


def _cells(point: LoadPoint) -> list[str]:
    from inferlab.units import format_number, format_seconds

    summary = point.summary
    if summary is None:
        return ["-"] * len(_COLUMNS)
    good = summary.goodput
    return [
        "" if point.plan.concurrency else format_number(point.offered_req_per_s),
        format_number(summary.requests_per_s),
        f"{summary.counts['ok']}/{summary.counts['requests']}",
        format_seconds(summary.ttft_s.median),
        format_seconds(summary.ttft_s.p95),
        format_seconds(summary.tpot_s.median),
        format_seconds(summary.tpot_s.p95),
        format_seconds(summary.itl_s.p99),
        format_number(summary.output_tok_per_s),
        "" if good is None else format_number(good.requests_per_s),
        "" if good is None else f"{good.attainment_ratio:.0%}",
    ]
