"""What do the book's generated pages show: machines, runs, predictions beside measurements?

Everything comes from records and is escaped before it becomes HTML: a record is untrusted input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import pandas as pd

from inferlab.claims import Ledger, LedgerRow
from inferlab.records import Record
from inferlab.stats import Estimate
from inferlab.units import GIB, format_bytes, format_number, format_ratio

HARNESS_BLOCK = "harness"  # its cases have the parameter `loop`: bare or bench
SHOWN_METRICS = {
    "ttft_s": "TTFT", "tpot_s": "TPOT", "output_tok_per_s": "output throughput",
}  # fmt: skip
MISS_FACTOR = 2.0  # beyond it a chapter must say why
_STATISTIC = re.compile(r"_(mean|max|p\d+)_")


def html_table(table: pd.DataFrame, caption: str = "") -> Any:
    """`table` as an escaped HTML table for a page; numbers stand to the right, text to the left."""
    from IPython.display import HTML

    def cell(tag: str, column: str, value: Any) -> str:
        kind = ' class="number"' if pd.api.types.is_numeric_dtype(table[column]) else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{kind}>{escape(str(value))}</{tag}>"

    head = "".join(cell("th", column, column) for column in table.columns)
    body = "".join(
        "<tr>" + "".join(cell("td", c, row[c]) for c in table.columns) + "</tr>"
        for row in table.to_dict("records")
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return HTML(
        f'<table class="table book-table">{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def checks_table(records: Sequence[Record]) -> Any:
    """What the lab of `records` checked before it measured, and whether it passed, by device."""
    table = pd.DataFrame(
        {"device": r.manifest.machine.title, "check": c.name, "passed": "yes" if c.passed else "no"}
        for r in records
        for c in r.manifest.checks
    )
    return html_table(table, f"Checks of lab {records[0].manifest.lab[:2]} (measured)")


def note(text: str) -> Any:
    """A sentence of a page that depends on the records; escaped."""
    from IPython.display import HTML

    return HTML(f"<p>{escape(text)}</p>")


def ratio_interval(found: Estimate, digits: int = 3) -> str:
    """A ratio with its 95 % interval, where rounds differ: "1.95x [1.67, 2.01]"."""
    value = format_ratio(found.value, digits)
    if not found.has_interval or found.low == found.high:
        return value
    return f"{value} [{', '.join(format_number(end, digits) for end in (found.low, found.high))}]"


def by_device(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of each device, CPUs after GPUs, labs in order."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.manifest.device, []).append(record)
    order = sorted(groups, key=lambda d: (groups[d][0].manifest.machine.kind == "cpu", d))
    return {device: sorted(groups[device], key=lambda r: r.manifest.lab) for device in order}


def machine_facts(records: Sequence[Record]) -> pd.DataFrame:
    """What one device is: two columns, fact and value, from its newest record."""
    machine = max(records, key=lambda r: r.manifest.ended).manifest.machine
    rows: list[tuple[str, Any]] = []
    if gpu := machine.accelerator:
        rows += [
            ("device", gpu.name),
            ("device memory", f"{gpu.memory_bytes / GIB:.0f} GiB"),
            ("compute capability", gpu.compute_capability),
            ("driver", gpu.driver),
            ("CUDA of torch", gpu.cuda_runtime),
            ("clock of the multiprocessors", _hertz(gpu.sm_clock_hz, gpu.sm_clock_max_hz)),
            ("clock of the memory", _hertz(gpu.memory_clock_hz, gpu.memory_clock_max_hz)),
            ("power limit", f"{gpu.power_limit_w:.0f} W" if gpu.power_limit_w else None),
            ("error correction", {True: "on", False: "off"}.get(gpu.ecc)),
            ("throttling seen", ", ".join(gpu.throttle_reasons or []) or "none"),
        ]
    cpu = machine.cpu
    memory = f"{cpu.memory_bytes / GIB:.0f} GiB" if cpu.memory_bytes else None
    caches = [
        f"{name} {format_bytes(size, binary=True)}"
        for name, size in (("L1d", cpu.l1d_bytes), ("L2", cpu.l2_bytes), ("L3", cpu.l3_bytes))
        if size
    ]
    rows += [
        ("processor", cpu.model),
        ("cores in use", cpu.cores),
        ("host memory", memory),
        ("caches", ", ".join(caches)),
        ("vector and matrix units", ", ".join(cpu.isa)),
        ("system", f"{machine.os}, {machine.kernel}"),
        ("Python", machine.python),
        *sorted(machine.packages.items()),
    ]
    shown = [(name, value) for name, value in rows if value not in (None, "")]
    return pd.DataFrame(shown, columns=["fact", "value"])


def runs(records: Sequence[Record]) -> pd.DataFrame:
    """What was run on one device, when, and whether it may still be quoted."""
    return pd.DataFrame(
        {
            "lab": r.manifest.lab,
            "date": r.manifest.started.date().isoformat(),
            "took": f"{r.manifest.spent_s() / 60:.1f} min",
            "profile": r.manifest.profile,
            "models": ", ".join(f"{m.name} ({m.weights} weights)" for m in r.manifest.models),
            "cases": len(r.manifest.cases),
            "samples": int((r.samples["status"] == "ok").sum()),
            "lost": len(r.oom_cases),
            "state": _state(r),
            "from": {"published": "the book", "local": "this machine"}.get(r.origin, r.origin),
        }
        for r in records
    )


def predictions(record: Record) -> pd.DataFrame:
    """One row a case and quantity that was predicted and measured.

    `ratio` is predicted / measured; `error_ratio` its distance from one.
    """
    rows = []
    for case, info in record.manifest.cases.items():
        for metric in record.metrics(case):
            predicted = info.predicted.get(metric)
            if predicted is None:
                continue
            estimate: Estimate = record.estimate(case, metric)
            if not estimate.value:
                continue  # no cache, no bytes: right, and no ratio
            ratio = predicted / estimate.value
            rows.append((case, metric, predicted, estimate.value, ratio, abs(ratio - 1)))
    columns = ["case", "metric", "predicted", "measured", "ratio", "error_ratio"]
    return pd.DataFrame(rows, columns=columns)


def missed(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `predictions` that are off by more than MISS_FACTOR, either way."""
    return table[(table["ratio"] > MISS_FACTOR) | (table["ratio"] < 1 / MISS_FACTOR)]


def prediction_summary(records: Sequence[Record]) -> pd.DataFrame:
    """For each lab, device and quantity: how far off the predictions are.

    Of a quantity that has its median, other statistics (mean, percentiles, maximum) are left out.
    """
    rows = []
    for record in records:
        found = predictions(record)
        for metric, group in found.groupby("metric", sort=False):
            if _STATISTIC.sub("_median_", metric) in set(found["metric"]) - {metric}:
                continue
            rows.append(
                {
                    "lab": record.manifest.lab,
                    "quantity": SHOWN_METRICS.get(metric, metric),
                    "median predicted / measured": f"{group['ratio'].median():.2f}",
                    "median absolute error": f"{group['error_ratio'].median():.0%}",
                    "off by more than 2×": len(missed(group)),
                    "cases": len(group),
                    "device": record.manifest.machine.title,
                }
            )
    return pd.DataFrame(rows)


def harness_overhead(records: Sequence[Record]) -> pd.DataFrame:
    """TPOT through `bench` over TPOT of a bare loop of the same backend, interleaved."""
    rows = []
    for record in records:
        loops: dict[str, dict[str, str]] = {}
        for name, info in record.manifest.cases.items():
            if info.block.startswith(HARNESS_BLOCK) and "loop" in info.params:
                rest = sorted((k, str(v)) for k, v in info.params.items() if k != "loop")
                loops.setdefault(", ".join(v for _, v in rest), {})[info.params["loop"]] = name
        for what, pair in loops.items():
            if {"bare", "bench"} <= set(pair):
                ratio = record.ratio(pair["bare"], pair["bench"], "tpot_s")
                rows.append(
                    {
                        "device": record.manifest.machine.title,
                        "case": what,
                        "bench / bare loop": f"{ratio.value:.4f}",
                        "95 % interval": f"{ratio.low:.4f} to {ratio.high:.4f}",
                        "rounds": ratio.n,
                    }
                )
    return pd.DataFrame(rows)


def verdicts(rows: Sequence[LedgerRow]) -> pd.DataFrame:
    """One row a claim and device: the verdict, its regime, and whether the record is stale."""
    return pd.DataFrame(
        {
            "claim": row.claim,
            "device": found.title,
            "verdict": found.verdict.verdict + (" (stale record)" if found.is_stale else ""),
            "where": found.verdict.where,
        }
        for row in rows
        for found in row.verdicts
        if found.verdict.verdict != "untested"
    )


def claims(rows: Sequence[LedgerRow]) -> pd.DataFrame:
    """The whole ledger, one row a claim."""
    return pd.DataFrame(
        {
            "claim": row.claim + (f" ({row.question})" if row.question else ""),
            "source": ", ".join(row.sources),
            "lab": row.lab,
            "verdict": row.summary,
        }
        for row in rows
    )


def claim_sources(ledger: Ledger) -> pd.DataFrame:
    """The essays behind the ledger and how many claims each has."""
    return pd.DataFrame(
        {
            "source": source.title,
            "date": source.date or "",
            "claims": sum(key in claim.source for claim in ledger.claims),
        }
        for key, source in ledger.sources.items()
    )


def _state(record: Record) -> str:
    words = [] if record.manifest.status == "complete" else [record.manifest.status]
    return ", ".join([*words, "stale" if record.is_stale else "fresh"])


def _hertz(now: float | None, most: float | None) -> str | None:
    if not now and not most:
        return None
    parts = [f"{now / 1e6:.0f} MHz" if now else "", f"at most {most / 1e6:.0f} MHz" if most else ""]
    return ", ".join(part for part in parts if part)


def landing_figure(records: Sequence[Record]) -> tuple[Any, str]:
    """Measured against predicted TTFT and TPOT of every case of `records`, and its caption.

    One colour and marker a device, TPOT filled and TTFT open; where both agree, they lie on the
    dashed line. Without records the figure says so.
    """
    import matplotlib.pyplot as plt

    from inferlab import plots

    figure, ax = plots.figure(5.4, 4.7)
    plt.close(figure)  # the page places it; the cell must not draw it a second time
    parts = [predictions(r).assign(device=r.manifest.machine.title) for r in records]
    table = pd.concat(parts) if parts else pd.DataFrame(columns=["metric"])
    table = table[table["metric"].isin(["ttft_s", "tpot_s"])]
    if table.empty:
        words = "no record of lab 02 yet:\nrun inferlab run 02_roofline"
        ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
        return figure, "There is no record of lab 02 to draw yet."
    ends = [table[["predicted", "measured"]].min().min() * 700,
            table[["predicted", "measured"]].max().max() * 1400]  # fmt: skip
    ax.plot(ends, ends, color=plots.INK, lw=1.2, ls="--", label="prediction = measurement")
    cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for number, (device, group) in enumerate(table.groupby("device", sort=False)):
        color, marker = cycle[number % len(cycle)], "osD^vP"[number % 6]
        for metric, face in (("tpot_s", color), ("ttft_s", "none")):
            rows = group[group["metric"] == metric]
            ax.plot(rows["predicted"] * 1e3, rows["measured"] * 1e3, marker, color=color, mfc=face,
                    mew=1.4, label=device if face == color else None)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    ax.set(xlabel="predicted (ms), log scale", ylabel="measured (ms), log scale")
    ax.legend(fontsize=10, loc="upper left")
    plots.label_badge(ax, "measured")
    return figure, plots.caption(list(records), f"{len(table)} cases: TPOT filled, TTFT open.")
