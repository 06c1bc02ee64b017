"""What does a record say about its run? The manifest, and what its names and numbers may be.

`data/schema.json` is this schema as JSON Schema (`python -m inferlab.records` prints it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

import inferlab
from inferlab.errors import UserError
from inferlab.hardware.facts import Machine, Name, Slug

SCHEMA_VERSION = 1
MAX_CASES = 2_000
SAMPLES_FILE = "samples.parquet"
MANIFEST_FILE = "manifest.json"

# Every segment begins with a letter or digit, so `..`, a leading slash and hidden names cannot be.
CASE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._=+,-]*(/[A-Za-z0-9][A-Za-z0-9._=+,-]*)*$"
LAB_PATTERN = r"^[0-9]{2}_[a-z0-9]+(_[a-z0-9]+)*$"
FILE_PATTERN = r"^(samples\.parquet|traces/[A-Za-z0-9][A-Za-z0-9._=+,@-]*\.jsonl\.gz)$"
UNIT_SUFFIXES = (
    "_s", "_bytes", "_flops", "_flops_per_s", "_bytes_per_s", "_tok_per_s", "_req_per_s",
    "_ratio", "_count", "_tokens", "_steps", "_hz", "_w", "_j", "_c", "_nats",
)  # fmt: skip
QUALITY_METRICS = ("perplexity", "top1_ratio", "task_score")
TABLE_COLUMNS = ("case", "block", "status", "median", "low", "high", "n", "predicted")

CaseName = Annotated[str, StringConstraints(max_length=120, pattern=CASE_PATTERN)]
LabSlug = Annotated[str, StringConstraints(max_length=60, pattern=LAB_PATTERN)]
FileName = Annotated[str, StringConstraints(max_length=160, pattern=FILE_PATTERN)]
Key = Annotated[str, StringConstraints(max_length=60, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Text = Annotated[str, StringConstraints(max_length=2000)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Scalar = bool | int | float | Name | None

_PRIVATE = (
    (re.compile(r"(?<![\w.:/])(~|/[A-Za-z0-9_.-]+)/[A-Za-z0-9_.-]+"), "an absolute path"),
    (re.compile(r"\b[A-Za-z]:\\|file://"), "an absolute path"),
    (re.compile(r"(?<![\d.])\d{1,3}(\.\d{1,3}){3}(?![\d.])"), "a network address"),
    (re.compile(r"\b[\w.+-]+@[\w-]+\.[A-Za-z]{2,}\b"), "an e-mail address"),
)


class RecordError(UserError):
    """A record that may not be read, or may not be written; names the folder and what to do."""


class Part(BaseModel):
    """Strict base: an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CaseInfo(Part):
    """One configuration: what it is, and what was expected of it before it ran."""

    params: dict[Key, Scalar] = {}
    predicted: dict[Key, Annotated[float, Field(ge=0)]] = {}
    block: Name = ""  # cases of one block were interleaved: only they may be paired

    @field_validator("params")
    @classmethod
    def _no_reserved_names(cls, params: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(set(params) & set(TABLE_COLUMNS)):
            raise ValueError(f"{taken[0]!r} is a column of every table; rename the parameter")
        return params


class Check(Part):
    """The outcome of one correctness check of the lab."""

    name: Name
    passed: bool
    detail: Text = ""


class ModelStamp(Part):
    """Which weights ran. Speed does not depend on their values; quality does."""

    name: Annotated[Name, Field(min_length=1)]
    weights: Literal["real", "random"]
    revision: Name = ""
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""


class FileStamp(Part):
    """A file of the record's folder, as it was written."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class Manifest(Part):
    """Everything about a run except its samples. Summaries are never stored, always computed."""

    schema_version: Literal[1] = SCHEMA_VERSION
    lab: LabSlug
    device: Slug
    label: Literal["measured", "emulated"] = "measured"
    status: Literal["complete", "partial", "invalid"]
    reasons: list[Text] = []  # why not complete
    code_hash: Sha256
    package_version: Name = inferlab.__version__
    command: Text = ""
    profile: Name = ""
    config: dict[Key, JsonValue] = {}
    machine: Machine
    models: list[ModelStamp] = []
    seeds: dict[Key, int] = {}
    inputs: dict[Name, Sha256] = {}  # frozen texts and data sets, by name
    started: AwareDatetime
    ended: AwareDatetime
    cases: Annotated[dict[CaseName, CaseInfo], Field(max_length=MAX_CASES)] = {}
    checks: list[Check] = []
    files: dict[FileName, FileStamp] = {}  # filled in by the writer

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        if self.ended < self.started:
            raise ValueError("ended is before started")
        if self.status != "complete" and not self.reasons:
            raise ValueError(f"status {self.status} needs a reason")
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError("two entries of models have the same name")
        for text in _free_texts(self):
            if what := private_part(text):
                raise ValueError(f"holds {what}; a record names no host, user, path or address")
        return self

    def has_real_weights(self, case: str) -> bool:
        """Whether `case` is known to have used real weights; needed for a quality figure.

        The case's parameter `model` says which model it used; without it, every model of the
        record must be real.
        """
        weights = {model.name: model.weights for model in self.models}
        used = self.cases[case].params.get("model")
        if used in weights:
            return weights[used] == "real"
        return bool(weights) and set(weights.values()) == {"real"}

    def spent_s(self) -> float:
        """Seconds from start to end of the run."""
        return (self.ended - self.started).total_seconds()


def is_quality(metric: str) -> bool:
    """Whether the metric says how good answers are, and so means nothing for random weights."""
    return metric.startswith("kld_") or metric in QUALITY_METRICS


def is_metric_name(metric: str) -> bool:
    """Whether the name states its unit by an SI suffix, or is a known quality metric."""
    return bool(re.fullmatch(r"[a-z][a-z0-9_]{0,59}", metric)) and (
        metric.endswith(UNIT_SUFFIXES) or metric.startswith("num_") or is_quality(metric)
    )


def trace_file(case: str) -> str:
    """File of a case's trace inside the record's folder; a slash of the name becomes `@`."""
    return f"traces/{case.replace('/', '@')}.jsonl.gz"


def private_part(text: str) -> str | None:
    """What in `text` may not stand in a record ("an absolute path"), or None."""
    return next((what for pattern, what in _PRIVATE if pattern.search(text)), None)


def _free_texts(manifest: Manifest) -> Iterator[str]:
    """Strings of the manifest that a lab writes freely."""
    yield manifest.command
    yield manifest.profile
    yield from manifest.reasons
    for check in manifest.checks:
        yield from (check.name, check.detail)
    for case in manifest.cases.values():
        yield case.block
        yield from _strings(case.params)
    yield from _strings(manifest.config)
    yield from manifest.inputs
    yield from (manifest.machine.os, manifest.machine.cpu.model)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def manifest_json_schema() -> dict[str, Any]:
    """JSON Schema of manifest.json, as exported to data/schema.json."""
    schema = Manifest.model_json_schema()
    # A default that changes with every release would make the exported file stale.
    schema["properties"]["package_version"].pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def utc_day(moment: datetime) -> str:
    """The date of `moment` as a provenance line shows it."""
    return moment.date().isoformat()
