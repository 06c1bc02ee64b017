"""What was measured, where, with what, and may it still be quoted?

One folder per lab and device: `manifest.json`, `samples.parquet`, `traces/`. The manifest is
written last; a folder without it does not exist. Readers take no folder's word for anything.
"""

from inferlab.records.record import Record
from inferlab.records.samples import SAMPLES_SCHEMA
from inferlab.records.schema import (
    SCHEMA_VERSION,
    CaseInfo,
    Check,
    Manifest,
    ModelStamp,
    RecordError,
    manifest_json_schema,
)
from inferlab.records.status import RecordState, record_states, record_status
from inferlab.records.store import (
    FoundRecords,
    RecordProblem,
    find_records,
    load_record,
    reference_device,
    reference_record,
)
from inferlab.records.write import write_record

__all__ = [
    "SAMPLES_SCHEMA",
    "SCHEMA_VERSION",
    "CaseInfo",
    "Check",
    "FoundRecords",
    "Manifest",
    "ModelStamp",
    "Record",
    "RecordError",
    "RecordProblem",
    "RecordState",
    "find_records",
    "load_record",
    "manifest_json_schema",
    "record_states",
    "record_status",
    "reference_device",
    "reference_record",
    "write_record",
]
