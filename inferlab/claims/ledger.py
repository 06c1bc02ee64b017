"""The ledger: claims with their sources, and a verdict for every device that has a record."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

import inferlab.claims.batching  # noqa: F401  its predicates register themselves
import inferlab.claims.continuous  # noqa: F401  its predicates register themselves
import inferlab.claims.fusion  # noqa: F401  its predicates register themselves
import inferlab.claims.graphs  # noqa: F401  its predicates register themselves
import inferlab.claims.layouts  # noqa: F401  its predicates register themselves
import inferlab.claims.paging  # noqa: F401  its predicates register themselves
import inferlab.claims.quant  # noqa: F401  its predicates register themselves
import inferlab.claims.underload  # noqa: F401  its predicates register themselves
from inferlab.claims.predicates import PREDICATES, Verdict
from inferlab.datafile import DataError, load_yaml
from inferlab.errors import UserError
from inferlab.paths import data_folder, shown_path
from inferlab.records import Record
from inferlab.records.schema import LabSlug

SOURCES_FILE = "sources.yml"

Line = Annotated[str, StringConstraints(min_length=1, max_length=600)]
ClaimId = Annotated[str, StringConstraints(max_length=60, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
SourceKey = Annotated[str, StringConstraints(pattern=r"^[A-Z]$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """An essay that the claims are paraphrased from."""

    title: Line
    date: str | None = None


class PredicateCall(_Strict):
    """A registered predicate and its numbers."""

    name: str
    params: dict[str, bool | int | float | str | list[str]] = {}

    @model_validator(mode="after")
    def _fits(self) -> PredicateCall:
        if self.name not in PREDICATES:
            raise ValueError(f"no predicate {self.name!r}; known: {', '.join(sorted(PREDICATES))}")
        try:
            inspect.signature(PREDICATES[self.name]).bind(None, **self.params)
        except TypeError as error:
            raise ValueError(f"predicate {self.name}: {error}") from None
        return self


class Claim(_Strict):
    """One claim in our words; `lab` is the one that tests it."""

    id: ClaimId
    claim: Line
    source: Annotated[list[SourceKey], Field(min_length=1)]
    chapters: Annotated[list[LabSlug], Field(min_length=1)]
    lab: LabSlug
    question: Line | None = None  # what the source leaves open
    predicate: PredicateCall | None = None  # None until its lab exists


class _ClaimsFile(_Strict):
    claims: list[Claim]


class _SourcesFile(_Strict):
    sources: dict[SourceKey, Source]


@dataclass(frozen=True, slots=True)
class Ledger:
    """All claims in the order of their files, and the sources they name."""

    claims: tuple[Claim, ...]
    sources: dict[str, Source]

    def get(self, claim_id: str) -> Claim:
        """The claim called `claim_id`."""
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise DataError(f"no claim {claim_id!r} in the ledger (data/claims)")


@dataclass(frozen=True, slots=True)
class DeviceVerdict:
    """What one record says about a claim."""

    device: str
    title: str
    origin: str  # published | local | memory
    is_stale: bool
    verdict: Verdict
    provenance: str


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A claim as the page shows it. Texts are plain: escape them before HTML."""

    id: str
    claim: str
    question: str | None
    sources: tuple[str, ...]
    chapters: tuple[str, ...]
    lab: str
    verdicts: tuple[DeviceVerdict, ...]

    @property
    def summary(self) -> str:
        """One word over all devices: the common one, `differs by device`, or `untested`."""
        words = {d.verdict.verdict for d in self.verdicts} - {"untested"}
        if not words:
            return "untested"
        return words.pop() if len(words) == 1 else "differs by device"


def load_ledger(folder: Path | None = None) -> Ledger:
    """Every claim of data/claims/*.yml; DataError for unknown keys, sources, or repeated ids."""
    folder = folder or data_folder() / "claims"
    sources = load_yaml(folder / SOURCES_FILE, _SourcesFile).sources
    claims: dict[str, Claim] = {}
    for path in sorted(folder.glob("*.yml")):
        if path.name == SOURCES_FILE:
            continue
        for claim in load_yaml(path, _ClaimsFile).claims:
            if claim.id in claims:
                raise DataError(f"{shown_path(path)}: claim {claim.id} is already in the ledger")
            if unknown := sorted(set(claim.source) - set(sources)):
                raise DataError(f"{shown_path(path)}: {claim.id}: no source {unknown[0]!r}")
            claims[claim.id] = claim
    return Ledger(tuple(claims.values()), dict(sources))


def judge(claim: Claim, record: Record) -> Verdict:
    """The verdict of `record` on `claim`; a run whose checks failed says nothing."""
    if claim.predicate is None:
        return Verdict("untested", f"lab {claim.lab} does not exist yet")
    if record.manifest.status == "invalid":
        return Verdict("untested", "the record is invalid: " + "; ".join(record.manifest.reasons))
    arguments: dict[str, Any] = dict(claim.predicate.params)
    try:
        return PREDICATES[claim.predicate.name](record, **arguments)
    except (UserError, ArithmeticError) as error:
        return Verdict("untested", f"the record does not allow a verdict: {error}")


def ledger_table(records: Sequence[Record], ledger: Ledger | None = None) -> list[LedgerRow]:
    """One row a claim, with a verdict for each record of its lab, computed now."""
    ledger = ledger or load_ledger()
    rows = []
    for claim in ledger.claims:
        verdicts = tuple(
            DeviceVerdict(
                record.manifest.device,
                record.manifest.machine.title,
                record.origin,
                record.is_stale,
                judge(claim, record),
                record.provenance,
            )
            for record in records
            if record.manifest.lab == claim.lab and claim.predicate
        )
        titles = tuple(ledger.sources[key].title for key in claim.source)
        rows.append(
            LedgerRow(
                claim.id, claim.claim, claim.question, titles, tuple(claim.chapters), claim.lab,
                verdicts,
            )
        )  # fmt: skip
    return rows
