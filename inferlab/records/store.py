"""Read records from folders that nobody vouches for.

The order of the checks is the order of trust: sizes, nesting, version, schema, hashes, samples.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from inferlab.datafile import first_problem, load_yaml
from inferlab.errors import UserError
from inferlab.hardware.facts import Slug
from inferlab.paths import data_folder, shown_path
from inferlab.records.record import Record
from inferlab.records.samples import check_samples, read_samples
from inferlab.records.schema import (
    LAB_PATTERN,
    MANIFEST_FILE,
    SAMPLES_FILE,
    SCHEMA_VERSION,
    LabSlug,
    Manifest,
    RecordError,
    trace_file,
)

MAX_MANIFEST_BYTES = 4 * 2**20
MAX_FILE_BYTES = 64 * 2**20
MAX_FOLDER_BYTES = 256 * 2**20
MAX_FOLDERS = 2_000
MAX_DEPTH = 12


class RecordProblem(NamedTuple):
    """A folder that is not a readable record, and why, in one line."""

    lab: str
    device: str
    folder: Path
    reason: str


class FoundRecords(NamedTuple):
    """What lies in the records folders: what can be quoted, and what is wrong with the rest."""

    records: list[Record]
    problems: list[RecordProblem]


def default_roots() -> list[Path]:
    """Where records lie: the published ones, then this reader's own."""
    return [data_folder() / "records", data_folder() / "local"]


def load_record(folder: Path, labs_dir: Path | None = None) -> Record:
    """The record in `folder`, checked in full; RecordError names the folder and what to do."""
    folder = Path(folder)
    name = shown_path(folder)
    try:
        manifest = _read_manifest(folder)
        _check_names(folder, manifest)
        _check_files(folder, manifest)
        samples = check_samples(read_samples(folder / SAMPLES_FILE), manifest)
    except RecordError as error:
        raise RecordError(f"record {name}: {error}") from None
    except OSError as error:
        raise RecordError(f"record {name}: cannot read: {error.strerror or error}") from None
    return Record(manifest, samples, folder=folder, labs_dir=labs_dir)


def find_records(
    lab: str | None = None,
    roots: Sequence[Path] | None = None,
    labs_dir: Path | None = None,
) -> FoundRecords:
    """Every record of `lab` (of all labs when None) below `roots`, published ones first.

    Folders that cannot be read are returned as problems, for `inferlab status` to show; names
    that begin with a dot are unfinished runs and are skipped.
    """
    if lab is not None and not re.match(LAB_PATTERN, lab):
        raise RecordError(f"{lab!r} is not the name of a lab (two digits, _, a slug)")
    records, problems = [], []
    for folder in _record_folders(default_roots() if roots is None else roots, lab):
        try:
            records.append(load_record(folder, labs_dir))
        except UserError as error:
            problems.append(RecordProblem(folder.parent.name, folder.name, folder, str(error)))
    return FoundRecords(records, problems)


def _record_folders(roots: Sequence[Path], lab: str | None) -> list[Path]:
    folders: list[Path] = []
    for root in roots:
        labs = [root / lab] if lab else sorted(p for p in root.glob("*") if p.is_dir())
        for lab_folder in labs:
            if not lab_folder.name.startswith("."):
                folders += sorted(
                    p for p in lab_folder.glob("*") if p.is_dir() and not p.name.startswith(".")
                )
    if len(folders) > MAX_FOLDERS:
        raise RecordError(f"more than {MAX_FOLDERS} record folders: move old ones away")
    return folders


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    if folder.is_symlink() or not folder.is_dir():
        raise RecordError("not a folder" if not folder.is_symlink() else "is a link, not a folder")
    if not path.exists():
        raise RecordError(
            f"half written (no {MANIFEST_FILE}): remove the folder and run the lab again"
        )
    _require_plain_file(path, MAX_MANIFEST_BYTES)
    text = path.read_bytes()
    value = _parse(text)
    version = value.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"schema version {min(version, 10**9)} is newer than this inferlab reads "
            f"({SCHEMA_VERSION}): update the package"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise RecordError(f"{MANIFEST_FILE}: {first_problem(error)}") from None


def _parse(text: bytes) -> dict[str, Any]:
    """JSON without deep nesting, repeated keys, NaN or infinities."""
    depth = deepest = 0
    for mark in re.finditer(rb"[][{}]", re.sub(rb'"(?:[^"\\]|\\.)*"', b"", text)):
        depth += 1 if mark[0] in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise RecordError(f"{MANIFEST_FILE} is nested deeper than {MAX_DEPTH} levels")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise RecordError(f"{MANIFEST_FILE}: a key appears twice")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise RecordError(f"{MANIFEST_FILE}: {name} is not a number of a record")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise RecordError(f"{MANIFEST_FILE} is not valid JSON: remove the folder and run the lab "
                          "again") from None  # fmt: skip
    if not isinstance(value, dict):
        raise RecordError(f"{MANIFEST_FILE} is not a JSON object")
    return value


def _check_names(folder: Path, manifest: Manifest) -> None:
    if (manifest.lab, manifest.device) != (folder.parent.name, folder.name):
        raise RecordError(
            f"its manifest says {manifest.lab}/{manifest.device}: a record lies in "
            "<lab>/<device>/ of its own names"
        )
    if SAMPLES_FILE not in manifest.files:
        raise RecordError(f"{MANIFEST_FILE}: files does not name {SAMPLES_FILE}")
    known = {SAMPLES_FILE, *(trace_file(case) for case in manifest.cases)}
    if strange := sorted(set(manifest.files) - known):
        raise RecordError(f"{MANIFEST_FILE}: {strange[0]} belongs to no case")


def _check_files(folder: Path, manifest: Manifest) -> None:
    present = {
        path.relative_to(folder).as_posix()
        for path in [*folder.iterdir(), *(folder / "traces").glob("*")]
        if path.name != "traces" and not path.name.startswith(".")
    } - {MANIFEST_FILE}
    if extra := sorted(present - set(manifest.files)):
        raise RecordError(
            f"{ascii(extra[0])[1:-1][:80]} is not in the manifest: remove it (summaries are "
            "computed, never stored)"
        )
    total = 0
    for name, stamp in manifest.files.items():
        path = folder / name
        if not path.exists():
            raise RecordError(f"{name} is missing: restore it, or run the lab again")
        total += _require_plain_file(path, MAX_FILE_BYTES)
        if total > MAX_FOLDER_BYTES:
            raise RecordError(f"larger than {MAX_FOLDER_BYTES:,} bytes")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != stamp.sha256 or path.stat().st_size != stamp.size_bytes:
            raise RecordError(
                f"{name} is not the file that the manifest describes (sha256 differs): "
                "restore it, or run the lab again"
            )


def _require_plain_file(path: Path, max_bytes: int) -> int:
    facts = path.lstat()
    if not stat.S_ISREG(facts.st_mode) or path.parent.is_symlink():
        raise RecordError(f"{path.name} is a link or not a regular file")
    if facts.st_size > max_bytes:
        raise RecordError(f"{path.name} is larger than {max_bytes:,} bytes")
    return facts.st_size


class _Reference(BaseModel):
    """data/reference.yml: which device's records the chapters quote."""

    model_config = ConfigDict(extra="forbid")

    device: Slug
    labs: dict[LabSlug, Slug] = {}


def reference_device(lab: str) -> str | None:
    """Device whose record of `lab` the chapters quote (data/reference.yml); None if not stated."""
    path = data_folder() / "reference.yml"
    if not path.exists():
        return None
    reference = load_yaml(path, _Reference)
    return reference.labs.get(lab, reference.device)


def reference_record(
    lab: str, roots: Sequence[Path] | None = None, labs_dir: Path | None = None
) -> Record:
    """The published record of `lab` that sentences and figures quote.

    It is the device that data/reference.yml names (one CPU by default: the one that every reader
    can come close to), not the fastest; without that file, the first published CPU record. A
    bad folder or a missing one raises RecordError: a chapter never falls back in silence.
    """
    roots = default_roots()[:1] if roots is None else roots
    device = reference_device(lab)
    found = find_records(lab, roots, labs_dir)
    for record in found.records:
        if record.manifest.device == device or (
            device is None and record.manifest.machine.kind == "cpu"
        ):
            return record
    for problem in found.problems:
        if device is None or problem.device == device:
            raise RecordError(problem.reason)
    raise RecordError(
        f"no published record of {lab} on {device or 'a CPU'}: run `inferlab run {lab} "
        "--out data/records`, or name another device in data/reference.yml"
    )
