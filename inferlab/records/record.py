"""What was measured on one device, with every summary computed from the raw samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from inferlab.errors import UserError
from inferlab.notebook import code_hash
from inferlab.records.samples import LOST
from inferlab.records.schema import TABLE_COLUMNS, Manifest, RecordError, trace_file, utc_day
from inferlab.stats import Estimate, median_interval, paired_ratio
from inferlab.trace import Trace, load_trace


@dataclass(frozen=True)
class Record:
    """One lab on one device. `folder` is None while the record lives in memory only."""

    manifest: Manifest
    samples: pd.DataFrame
    traces: Mapping[str, Trace] = field(default_factory=dict)
    folder: Path | None = None
    labs_dir: Path | None = None

    @property
    def is_stale(self) -> bool:
        """Whether the lab's code or the package changed since, or the lab cannot be found."""
        return self.stale_reason is not None

    @property
    def stale_reason(self) -> str | None:
        """Why the record no longer speaks for the lab; None while it does."""
        try:
            now = code_hash(self.manifest.lab, self.labs_dir)
        except UserError as error:
            return f"its lab cannot be read ({error})"
        if now != self.manifest.code_hash:
            return "the lab's code or the package version changed since it was measured"
        return None

    @property
    def origin(self) -> str:
        """`published` (data/records), `local` (data/local), or `memory`."""
        if self.folder is None:
            return "memory"
        return "local" if self.folder.parents[1].name == "local" else "published"

    @property
    def provenance(self) -> str:
        """One line for a caption: device, date, versions, label, and what is wrong, if anything."""
        manifest, packages = self.manifest, self.manifest.machine.packages
        versions = ", ".join(
            f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages
        )
        parts = [
            manifest.machine.title,
            utc_day(manifest.started),
            f"inferlab {manifest.package_version}{', ' + versions if versions else ''}",
            manifest.label,
        ]
        if manifest.status != "complete":
            parts.append(manifest.status)
        if self.is_stale:
            parts.append("stale")
        return " · ".join(parts)

    @property
    def oom_cases(self) -> list[str]:
        """Cases that did not fit in memory, in the manifest's order."""
        lost = set(self.samples.loc[self.samples["status"] == "oom", "case"])
        return [case for case in self.manifest.cases if case in lost]

    def cases(self, **params: object) -> list[str]:
        """Cases whose parameters equal `params`, in the manifest's order."""
        return [
            name
            for name, info in self.manifest.cases.items()
            if all(info.params.get(key) == value for key, value in params.items())
        ]

    def metrics(self, case: str) -> list[str]:
        """Metrics with valid samples of `case`."""
        return list(dict.fromkeys(self._rows(case)["metric"]))

    def values(self, case: str, metric: str) -> np.ndarray:
        """Raw valid values, in the order they were measured; warm-up left out."""
        rows = self._rows(case)
        found = rows.loc[rows["metric"] == metric, "value"].to_numpy()
        if not len(found):
            raise RecordError(self._absence(case, metric))
        return found

    def estimate(self, case: str, metric: str) -> Estimate:
        """Median and its 95 % interval over rounds.

        The rows of a batch share their steps, so values of one round are reduced to their median
        first; n counts rounds. A case of a single round falls back on its raw values.
        """
        rounds = self._by_round(case, metric)
        values = rounds.to_numpy() if len(rounds) > 1 else self.values(case, metric)
        return median_interval(values)

    def ratio(self, baseline: str, variant: str, metric: str) -> Estimate:
        """variant / baseline, paired by round, with its 95 % interval.

        Only cases of one block were interleaved; others drifted apart in time and are refused.
        """
        below, above = (self._by_round(case, metric) for case in (baseline, variant))
        blocks = {self.manifest.cases[case].block for case in (baseline, variant)}
        if len(blocks) > 1:
            raise RecordError(
                f"{baseline} and {variant} were not interleaved (blocks {sorted(blocks)}): "
                "measure them in one block to form their ratio"
            )
        common = below.index.intersection(above.index)
        if common.empty:
            raise RecordError(f"{baseline} and {variant} have no round in common for {metric}")
        return paired_ratio(below[common].to_numpy(), above[common].to_numpy())

    def table(self, metric: str) -> pd.DataFrame:
        """One row a case: its parameters, then median, low, high, n, predicted.

        Cases lost for memory, time or an error have their status and no values; cases that never
        had the metric are left out.
        """
        rows = []
        for name, info in self.manifest.cases.items():
            lost = self._lost_status(name)
            if metric in self.metrics(name):
                estimate, status = self.estimate(name, metric), "ok"
            elif lost and (metric in info.predicted or not info.predicted):
                estimate, status = Estimate(math.nan, math.nan, math.nan, 0), lost
            else:
                continue
            rows.append(
                {
                    "case": name, "block": info.block, **info.params, "status": status,
                    "median": estimate.value, "low": estimate.low, "high": estimate.high,
                    "n": estimate.n, "predicted": info.predicted.get(metric, math.nan),
                }
            )  # fmt: skip
        keys = dict.fromkeys(key for row in rows for key in row if key not in TABLE_COLUMNS)
        columns = ["case", "block", *keys, *TABLE_COLUMNS[2:]]
        return pd.DataFrame(rows, columns=columns)

    def has_trace(self, case: str) -> bool:
        """Whether the event log of `case` was kept."""
        stored = self.folder is not None and trace_file(case) in self.manifest.files
        return case in self.traces or stored

    def trace(self, case: str) -> Trace:
        """The event log that was kept of `case`."""
        if not self.has_trace(case):
            raise RecordError(f"no trace was kept of case {case!r} of {self.manifest.lab}")
        if case in self.traces:
            return self.traces[case]
        return load_trace(self.folder / trace_file(case))

    def _rows(self, case: str) -> pd.DataFrame:
        if case not in self.manifest.cases:
            raise RecordError(self._absence(case, None))
        return self.samples[(self.samples["case"] == case) & (self.samples["status"] == "ok")]

    def _by_round(self, case: str, metric: str) -> pd.Series:
        rows = self._rows(case)
        rows = rows[rows["metric"] == metric]
        if rows.empty:
            raise RecordError(self._absence(case, metric))
        return rows.groupby("round")["value"].median()

    def _lost_status(self, case: str) -> str | None:
        rows = self.samples[self.samples["case"] == case]
        lost = [status for status in rows["status"] if status in LOST]
        return lost[-1] if lost else None

    def _absence(self, case: str, metric: str | None) -> str:
        where = f"record {self.manifest.lab}/{self.manifest.device}"
        if case not in self.manifest.cases:
            known = ", ".join(list(self.manifest.cases)[:6])
            return f"{where} has no case {case!r}; it has {known or 'none'}"
        lost = self._lost_status(case)
        return f"{where} has no {metric} of {case!r}" + (f": the case ended {lost}" if lost else "")
