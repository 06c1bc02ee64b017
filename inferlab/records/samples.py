"""What may the raw samples of a record be, and how are they read from a file nobody vouches for?

Long format, one row a value: case, metric (SI, unit as suffix), value, round (-1 while warming
up), status. A lost case (out of memory, error, timeout) is one row without a value.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pandera.pandas as pa
import pyarrow
import pyarrow.parquet as pq

from inferlab.records.schema import (
    CASE_PATTERN,
    Manifest,
    RecordError,
    is_metric_name,
    is_quality,
)

MAX_ROWS = 500_000
MAX_SAMPLES_BYTES = 32 * 2**20
MAX_UNPACKED_BYTES = 128 * 2**20
COLUMNS = ("case", "metric", "value", "round", "status")
STATUSES = ("ok", "warmup", "oom", "error", "timeout")
LOST = ("oom", "error", "timeout")
NO_METRIC = "none"  # a lost case has no value to name

_TEXT = ("case", "metric", "status")


def _may_be_negative(metric: pd.Series) -> pd.Series:
    # A mean KL divergence close to zero can come out just below it in floating point; what a client
    # reports, less what is true, has either sign.
    is_error = metric.str.contains("_error_")
    return metric.str.startswith("kld_") | metric.str.endswith(("_nats", "_c")) | is_error


SAMPLES_SCHEMA = pa.DataFrameSchema(
    {
        "case": pa.Column(str, pa.Check.str_matches(CASE_PATTERN)),
        "metric": pa.Column(
            str,
            pa.Check(
                lambda metric: metric.map(
                    {m: m == NO_METRIC or is_metric_name(m) for m in metric.unique()}
                ),
                error="a metric's name ends in its SI unit (_s, _bytes, _tok_per_s, _ratio ...)",
            ),
        ),
        "value": pa.Column(float, nullable=True),
        "round": pa.Column("int64", pa.Check.in_range(-1, 10_000_000)),
        "status": pa.Column(str, pa.Check.isin(STATUSES)),
    },
    checks=[
        pa.Check(
            lambda rows: rows["value"].map(math.isfinite) | rows["status"].isin(LOST),
            error="a value with status ok or warmup is not a finite number",
        ),
        pa.Check(
            lambda rows: ~(rows["value"] < 0) | _may_be_negative(rows["metric"]),
            error="a time, size, count or rate is negative",
        ),
        pa.Check(lambda rows: ~rows["value"].map(math.isinf), error="a value is infinite"),
        pa.Check(
            lambda rows: (rows["status"] != "ok") | (rows["round"] >= 0),
            error="a sample of round -1 (warm-up) has status ok",
        ),
        pa.Check(
            lambda rows: (rows["metric"] != NO_METRIC) | rows["status"].isin(LOST),
            error="only a lost case may go without a metric",
        ),
    ],
    strict=True,
    ordered=True,
)


def check_samples(samples: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """The samples, refused unless they obey SAMPLES_SCHEMA and fit the manifest.

    Every row belongs to a case of the manifest, and no quality figure comes from random weights.
    Raises RecordError (without the folder's name: the caller knows it).
    """
    if len(samples) > MAX_ROWS:
        raise RecordError(f"more than {MAX_ROWS:,} samples")
    try:
        checked = SAMPLES_SCHEMA.validate(_with_types(samples))
    except pa.errors.SchemaError as error:
        raise RecordError(f"samples: {_one_line(error)}") from None
    if unknown := sorted(set(checked["case"].unique()) - set(manifest.cases)):
        raise RecordError(f"samples of a case that the manifest does not have: {unknown[0]!r}")
    pairs = checked[["case", "metric"]].drop_duplicates()
    for case, metric in pairs[pairs["metric"].map(is_quality)].itertuples(index=False):
        if not manifest.has_real_weights(case):
            raise RecordError(
                f"{metric} of case {case!r} is a quality figure, but the weights of its model are "
                "random or not stated: measure quality on real weights only"
            )
    return checked


def _with_types(samples: pd.DataFrame) -> pd.DataFrame:
    """Whole-number values as floats, and types for a table that has no rows to show them."""
    if samples.empty:
        types = {"value": "float64", "round": "int64"}
        return samples.astype({c: types.get(c, "str") for c in samples.columns})
    typed = samples.copy()
    for name, kinds, dtype in (("value", "iuf", "float64"), ("round", "iu", "int64")):
        if name in typed and typed[name].dtype.kind in kinds:
            typed[name] = typed[name].astype(dtype)
    return typed


def _one_line(error: pa.errors.SchemaError) -> str:
    text = str(getattr(error.check, "error", None) or error)
    return " ".join(text.split())[:300]


def write_samples(samples: pd.DataFrame, path: Path) -> None:
    """Write checked samples as Parquet; the bytes carry no pandas metadata."""
    table = pyarrow.Table.from_pandas(samples, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path, compression="zstd")


def read_samples(path: Path) -> pd.DataFrame:
    """Samples of the Parquet file at `path`, within the caps; RecordError when it is no such file.

    Text columns stay dictionaries until their sizes are known, so that a small file cannot unpack
    into a large table.
    """
    if path.stat().st_size > MAX_SAMPLES_BYTES:
        raise RecordError(f"{path.name} is larger than {MAX_SAMPLES_BYTES:,} bytes")
    try:
        file = pq.ParquetFile(path, read_dictionary=list(_TEXT))
        facts, names = file.metadata, tuple(file.schema_arrow.names)
        if facts.num_rows > MAX_ROWS:
            raise RecordError(f"{path.name} holds more than {MAX_ROWS:,} samples")
        groups = (facts.row_group(i) for i in range(facts.num_row_groups))
        if sum(max(group.total_byte_size, 0) for group in groups) > MAX_UNPACKED_BYTES:
            raise RecordError(f"{path.name} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
        if names != COLUMNS:
            raise RecordError(f"{path.name} has columns {list(names)[:8]}, not {list(COLUMNS)}")
        table = file.read()
        kinds = (table.schema.field("value").type, table.schema.field("round").type)
        if kinds != (pyarrow.float64(), pyarrow.int64()):
            raise RecordError(f"{path.name}: value must be float64 and round int64")
        columns = {}
        for name in _TEXT:
            column = table.column(name)
            if not pyarrow.types.is_dictionary(column.type):
                raise RecordError(f"{path.name}: column {name} is not text")
            column = column.unify_dictionaries()
            words = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
            if any(not isinstance(word, str) or len(word) > 200 for word in words):
                raise RecordError(f"{path.name}: column {name} holds more than a short name")
            columns[name] = pd.Series(column.cast(pyarrow.string()).to_pylist(), dtype="str")
        columns["value"] = table.column("value").to_pandas()
        columns["round"] = table.column("round").to_pandas()
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
        raise RecordError(f"{path.name} is not a readable Parquet file of samples "
                          f"({type(error).__name__})") from None  # fmt: skip
    return pd.DataFrame(columns)[list(COLUMNS)]
