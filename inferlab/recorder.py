"""The one way in which a lab measures: interleaved cases in, samples and a record out.

Opened in a notebook, nothing is written: the record lives in memory and the lab compares itself
with the published ones. Under `inferlab run` every sample is journaled before the next one starts,
so a run can be interrupted at any moment and resumed, and `finish` writes the record.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from inferlab.errors import UserError
from inferlab.hardware.facts import describe_machine, device_slug
from inferlab.journal import Journal, disk_error
from inferlab.notebook import code_hash
from inferlab.profiles import Profile, current_profile
from inferlab.records import CaseInfo, Check, Manifest, ModelStamp, Record, write_record
from inferlab.records.samples import NO_METRIC
from inferlab.timing import Run, Sample, StopRule, interleave
from inferlab.trace import Trace

RUN_VARIABLE = "INFERLAB_RUN"  # set by `inferlab run`: where to write, until when


def is_recorded_run() -> bool:
    """Whether `inferlab run` is recording: a lab then takes its full depth, else a short one."""
    return bool(os.environ.get(RUN_VARIABLE))


class BudgetSpent(Exception):
    """The time budget of `inferlab run` is used up: what was measured is in the journal."""


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration to time: what to run, what it is, and what is expected of it."""

    run: Run
    params: Mapping[str, Any]
    predicted: Mapping[str, float] = field(default_factory=dict)


def partial_folder(out: Path, lab: str, device: str) -> Path:
    """Where the journal of an unfinished run lies; readers of records skip it."""
    return out / lab / f".partial-{device}"


def this_device() -> str:
    """Slug of the device that the current profile runs on."""
    return device_slug(describe_machine(current_profile().device))


class Recorder:
    """Samples of one lab on this machine."""

    def __init__(self, lab: str, config: Any, profile: Profile, *, labs_dir: Path | None = None):
        settings = json.loads(os.environ.get(RUN_VARIABLE) or "null")
        self.lab = lab
        self.config = _plain(config)
        self.profile = profile
        self.machine = describe_machine(profile.device)
        self.device = device_slug(self.machine)
        self.labs_dir = labs_dir
        self._cases: dict[str, CaseInfo] = {}
        self._samples: list[Sample] = []
        self._checks: list[Check] = []
        self._models: list[ModelStamp] = []
        self._traces: dict[str, Trace] = {}
        self._started = time.time()
        self._settings = settings
        self._journal: Journal | None = None
        self._deadline = math.inf
        if settings:
            self._open_journal(settings)

    def _open_journal(self, settings: Mapping[str, Any]) -> None:
        self._out = Path(settings["out"])
        self._journal = Journal(
            partial_folder(self._out, self.lab, self.device), self._fingerprint()
        )
        self._started = self._journal.started
        if settings["deadline"] is not None:
            self._deadline = time.monotonic() + settings["deadline"] - time.time()
        if self._journal.set_aside:
            print(
                f"    the lab, its configuration or this machine changed since the last run: "
                f"its samples are set aside in {self._journal.set_aside.name}"
            )
        elif self._journal.samples:
            print(f"    resuming: {len(self._journal.samples)} samples are already measured")

    def _fingerprint(self) -> str:
        facts = {
            "code": code_hash(self.lab, self.labs_dir),
            "config": self.config,
            "device": self.device,
            "packages": self.machine.packages,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def model(self, name: str, weights: str, revision: str = "", sha256: str = "") -> None:
        """Say which weights the lab used: `real` with their hash, or `random`."""
        stamp = ModelStamp(name=name, weights=weights, revision=revision, sha256=sha256)
        if stamp not in self._models:
            self._models.append(stamp)

    def measure(
        self, block: str, cases: Mapping[str, Case], stop: StopRule | None = None
    ) -> Record:
        """Time `cases` in turn until `stop` is satisfied; returns the record so far.

        Every case runs once in each round, so ratios within a block pair samples that lie next
        to each other in time. An out-of-memory case becomes a row with status `oom`.
        """
        stop = stop or StopRule()
        for key, case in cases.items():
            if key in self._cases:
                raise UserError(f"case {key!r} of {self.lab} is measured twice: rename one")
            self._cases[key] = CaseInfo(
                params=_plain(case.params), predicted=dict(case.predicted), block=block
            )
        done: dict[str, list[dict[str, float]]] = {}
        runs = {key: case.run for key, case in cases.items()}
        if self._journal:
            done = self._adopt(cases, self._journal)
            runs = {k: run for k, run in runs.items() if k not in self._journal.dropped()}
        start = self._journal.begin if self._journal else None
        for sample in interleave(runs, stop, done=done, on_start=start, deadline=self._deadline):
            self._samples.append(sample)
            if self._journal:
                self._journal.add(sample)
        if time.monotonic() > self._deadline:
            reason = f"time budget spent in block {block!r}"
            self._write(self.record("partial", [reason]))
            raise BudgetSpent(f"{reason}; run again to resume")
        return self.record()

    def _adopt(
        self, cases: Mapping[str, Case], journal: Journal
    ) -> dict[str, list[dict[str, float]]]:
        """Take over what an interrupted run measured of `cases`."""
        self._samples += [sample for sample in journal.samples if sample.case in cases]
        for case, why in journal.killed.items():
            if case in cases:
                self._samples.append(Sample(case, 0, "oom", detail=why))
        return journal.finished_rounds()

    def check(self, name: str, passed: bool, detail: str = "") -> None:
        """Keep the outcome of a correctness check in the record; a failed one invalidates it."""
        self._checks.append(Check(name=name, passed=bool(passed), detail=detail))

    def attach_trace(self, case: str, trace: Trace) -> None:
        """Keep the whole event log of a case beside its samples."""
        self._traces[case] = trace

    def record(self, status: str = "complete", reasons: Sequence[str] = ()) -> Record:
        """What has been measured so far, as a record in memory; a failed check makes it invalid."""
        if failed := [f"check failed: {c.name}" for c in self._checks if not c.passed]:
            status, reasons = "invalid", [*reasons, *failed]
        manifest = Manifest(
            lab=self.lab,
            device=self.device,
            label="measured",
            status=status,
            reasons=list(reasons),
            code_hash=code_hash(self.lab, self.labs_dir),
            command=(self._settings or {}).get("command", "notebook"),
            config=self.config,
            profile=self.profile.name,
            machine=self.machine,
            models=self._models,
            started=_utc(self._started),
            ended=_utc(time.time()),
            cases=self._cases,
            checks=self._checks,
        )
        return Record(manifest, _frame(self._samples), self._traces, labs_dir=self.labs_dir)

    def finish(self) -> Record:
        """Write the record if `inferlab run` asked for one; returns it in any case."""
        record = self.record()
        if self._journal is not None:
            self._write(record)
            self._journal.close()
            shutil.rmtree(partial_folder(self._out, self.lab, self.device))
        return record

    def _write(self, record: Record) -> None:
        try:
            folder = write_record(record.manifest, record.samples, self._out, record.traces)
        except OSError as error:
            raise disk_error(error, "the record", self._out) from error
        print(f"    {record.manifest.status} record: {folder.relative_to(self._out)}")


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass or mapping as JSON-ready data."""
    data = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else dict(value)
    return json.loads(json.dumps(data, allow_nan=False))


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(round(seconds), tz=datetime.UTC)


def _frame(samples: list[Sample]) -> pd.DataFrame:
    """Samples in long form: one row a metric, one row without a value for a lost case."""
    rows = [
        (s.case, metric, value, s.round, s.status)
        for s in samples
        for metric, value in (s.values or {NO_METRIC: math.nan}).items()
    ]
    return pd.DataFrame(rows, columns=["case", "metric", "value", "round", "status"])
