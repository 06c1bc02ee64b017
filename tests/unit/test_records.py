"""A record is written all or nothing, read back whole, and summed up only from its samples."""

import errno
import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_examples import (
    CPU_DEVICE,
    LAB,
    NOON,
    cpu_machine,
    gpu_machine,
    manifest,
    samples,
    write_example,
    write_lab,
)

from inferlab.notebook import code_hash
from inferlab.records import (
    Record,
    RecordError,
    find_records,
    load_record,
    manifest_json_schema,
    record_states,
    record_status,
    reference_record,
    store,
    write,
    write_record,
)
from inferlab.records.samples import write_samples
from inferlab.records.schema import private_part
from inferlab.stats import median_interval
from inferlab.trace import Request, Trace

TRACE = Trace((Request("a", 0.0, 0.0, 3, ((0.1, 1), (0.2, 1))),), {"label": "measured"})


def test_what_is_written_is_read_back(tmp_path):
    folder = write_record(manifest(), samples(), tmp_path, traces={"torch/bs=1": TRACE})
    assert folder == tmp_path / LAB / CPU_DEVICE
    record = load_record(folder)
    pd.testing.assert_frame_equal(record.samples, samples())
    assert record.manifest.cases == manifest().cases
    assert set(record.manifest.files) == {"samples.parquet", "traces/torch@bs=1.jsonl.gz"}
    assert record.trace("torch/bs=1") == TRACE
    with pytest.raises(RecordError, match="no trace was kept"):
        record.trace("hf/bs=1")
    assert not list(folder.parent.glob(".*")), "no scratch folder stays behind"


def test_summaries_come_from_the_samples(tmp_path):
    record = load_record(write_example(tmp_path))
    values = record.values("hf/bs=1", "tpot_s")
    assert len(values) == 6, "the warm-up sample is not among them"
    assert record.estimate("hf/bs=1", "tpot_s") == median_interval(values)
    ratio = record.ratio("hf/bs=1", "torch/bs=1", "tpot_s")
    assert ratio.value == pytest.approx(0.5) and ratio.high - ratio.low < 1e-9, "drift cancels"
    assert record.oom_cases == ["torch/bs=1024"]
    assert record.cases(backend="torch") == ["torch/bs=1", "torch/bs=1024"]


def test_table_has_a_row_for_a_lost_case(tmp_path):
    table = load_record(write_example(tmp_path)).table("tpot_s").set_index("case")
    assert list(table["status"]) == ["ok", "ok", "oom"]
    assert table.loc["torch/bs=1", "predicted"] == 0.01
    assert table.loc["torch/bs=1", "n"] == 6
    assert math.isnan(table.loc["torch/bs=1024", "median"])
    assert {"backend", "batch_size", "low", "high"} <= set(table.columns)


def test_rows_of_one_batch_count_as_one_round():
    rows = [("hf/bs=1", "tpot_s", 1.0 + r + i / 100, r, "ok") for r in range(4) for i in range(8)]
    estimate = Record(manifest(), samples(rows)).estimate("hf/bs=1", "tpot_s")
    assert estimate.n == 4
    single = [row for row in rows if row[3] == 0]
    assert Record(manifest(), samples(single)).estimate("hf/bs=1", "tpot_s").n == 8


def test_cases_that_were_not_interleaved_have_no_ratio():
    cases = manifest().cases
    apart = {name: info.model_copy(update={"block": name}) for name, info in cases.items()}
    with pytest.raises(RecordError, match="were not interleaved"):
        Record(manifest(cases=apart), samples()).ratio("hf/bs=1", "torch/bs=1", "tpot_s")


def test_absent_values_say_what_there_is():
    record = Record(manifest(), samples())
    with pytest.raises(RecordError, match="no case 'x'; it has hf/bs=1"):
        record.values("x", "tpot_s")
    with pytest.raises(RecordError, match="the case ended oom"):
        record.estimate("torch/bs=1024", "tpot_s")


def test_provenance_is_one_line(tmp_path):
    record = load_record(
        write_example(tmp_path, status="partial", reasons=["time budget"]), tmp_path
    )
    assert record.provenance == (
        "Example, 2 cores · 2026-01-02 · inferlab 0.1.0, torch 2.13.0 · measured · partial · stale"
    )


def test_a_new_record_replaces_the_old_one(tmp_path):
    write_example(tmp_path)
    folder = write_example(tmp_path, status="invalid", reasons=["check failed"])
    assert load_record(folder).manifest.status == "invalid"
    assert [p.name for p in folder.parent.iterdir()] == [CPU_DEVICE]


def test_an_empty_record_of_a_machine_that_could_run_nothing(tmp_path):
    folder = write_record(manifest(), samples([]), tmp_path)
    assert load_record(folder).table("tpot_s").empty


# -- faults while writing ---------------------------------------------------------------------


@pytest.mark.parametrize("step", ["write_samples", "_write_manifest", "_sync", "_replace"])
def test_a_full_disk_leaves_the_old_record(tmp_path, monkeypatch, step):
    folder = write_example(tmp_path)
    before = (folder / "manifest.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, step, full)
    with pytest.raises(OSError, match="No space"):
        write_example(tmp_path, status="invalid", reasons=["x"])
    assert (folder / "manifest.json").read_bytes() == before
    assert load_record(folder) and not list(folder.parent.glob(".new-*"))


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    folder = write_example(tmp_path)
    folder.rename(folder.with_name(f".previous-{folder.name}"))
    (folder.parent / ".new-dead").mkdir()
    write.recover(folder)
    assert load_record(folder)
    write_example(tmp_path)
    assert [p.name for p in folder.parent.iterdir()] == [CPU_DEVICE]


def test_a_kill_in_the_middle_of_writing_leaves_no_record(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
import record_examples
from inferlab.records import write
write._write_manifest = lambda *_: os.kill(os.getpid(), 9)
record_examples.write_example(__import__("pathlib").Path({str(tmp_path)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    assert find_records(LAB, [tmp_path]) == ([], [])
    assert load_record(write_example(tmp_path))


def test_private_words_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(write.socket, "gethostname", lambda: "snowflake.example.org")
    with pytest.raises(RecordError, match="host name"):
        write_example(tmp_path, command="inferlab run on snowflake")
    with pytest.raises(RecordError, match="meta of a trace holds an absolute path"):
        trace = Trace(TRACE.requests, {"url": "/home/me/model"})
        write_record(manifest(), samples(), tmp_path, traces={"hf/bs=1": trace})
    assert not (tmp_path / LAB / CPU_DEVICE).exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("loaded /home/me/x", "an absolute path"),
        ("~/models/x", "an absolute path"),
        ("C:\\models", "an absolute path"),
        ("file:///x", "an absolute path"),
        ("http://10.0.0.7:8000/v1", "a network address"),
        ("me@example.org", "an e-mail address"),
        ("HuggingFaceTB/SmolLM2-135M at 3.5 tok/s, 1/2, torch 2.13.0", None),
        ("inferlab run 02_roofline --out data/records", None),
        ("<script>alert(1)</script>", None),
    ],
)
def test_private_parts_are_recognised(text, what):
    assert private_part(text) == what


# -- finding, status, reference ---------------------------------------------------------------


def _labs(tmp_path):
    labs = tmp_path / "labs"
    return labs, code_hash(write_lab(labs, LAB, "x = 1"))


def test_states_fresh_stale_missing_bad(tmp_path):
    labs, digest = _labs(tmp_path)
    root = tmp_path / "records"
    assert record_status(LAB, [root], labs) == "missing"
    write_example(root, code_hash=digest)
    assert record_status(LAB, [root], labs) == "fresh"
    write_lab(labs, LAB, "x = 2")
    (state,) = record_states(LAB, [root], labs)
    assert state.state == "stale" and "code" in state.reasons[0]
    (root / LAB / "nvidia-h200").mkdir()
    assert record_status(LAB, [root], labs) == "bad", "the worst of all devices"
    assert record_status(LAB, [root], labs, device=CPU_DEVICE) == "stale"
    assert record_status(LAB, [root], labs, device="nvidia-t4") == "missing"


def test_an_invalid_record_says_why(tmp_path):
    labs, digest = _labs(tmp_path)
    write_example(tmp_path, code_hash=digest, status="invalid", reasons=["check failed: equality"])
    (state,) = record_states(LAB, [tmp_path], labs)
    assert state.state == "fresh" and state.reasons == ("invalid: check failed: equality",)


def test_bad_folders_are_problems_not_crashes(tmp_path):
    write_example(tmp_path)
    (tmp_path / LAB / "half").mkdir()
    (tmp_path / LAB / ".partial-x").mkdir()
    (tmp_path / "stray.txt").write_text("x")
    (tmp_path / "not a lab" / "x").mkdir(parents=True)
    found = find_records(roots=[tmp_path, tmp_path / "nowhere"])
    assert [r.manifest.device for r in found.records] == [CPU_DEVICE]
    assert {p.device for p in found.problems} == {"half", "x"}
    assert all("half written" in p.reason for p in found.problems)
    with pytest.raises(RecordError, match="not the name of a lab"):
        find_records("../secrets")


def test_the_reference_is_the_named_device_not_the_fastest(tmp_path, monkeypatch):
    (tmp_path / "data" / "records").mkdir(parents=True)
    root = tmp_path / "data" / "records"
    monkeypatch.setattr(store, "data_folder", lambda: tmp_path / "data")
    with pytest.raises(RecordError, match="no published record"):
        reference_record(LAB)
    write_example(root)
    write_example(root, device="nvidia-h200", machine=gpu_machine())
    assert reference_record(LAB).manifest.device == CPU_DEVICE
    named = tmp_path / "data" / "reference.yml"
    named.write_text(f"device: {CPU_DEVICE}\nlabs:\n  {LAB}: nvidia-h200\n")
    assert reference_record(LAB).manifest.device == "nvidia-h200"
    (root / LAB / "nvidia-h200" / "manifest.json").unlink()
    with pytest.raises(RecordError, match="half written"):
        reference_record(LAB)


def test_the_exported_schema_is_current():
    path = store.data_folder() / "schema.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(manifest_json_schema())), (
        "run `python -m inferlab.records > data/schema.json`"
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["hf/bs=1", "torch/bs=1"]),
            st.sampled_from(["tpot_s", "kv_bytes", "output_tok_per_s"]),
            st.floats(0, 1e15, allow_nan=False),
            st.integers(0, 50),
            st.just("ok"),
        ),
        max_size=30,
    )
)
def test_any_valid_samples_survive_the_file(tmp_path_factory, rows):
    folder = write_record(manifest(), samples(rows), tmp_path_factory.mktemp("r"))
    record = load_record(folder)
    assert [tuple(row) for row in record.samples.itertuples(index=False)] == rows
    for case, metric in {row[:2] for row in rows}:
        expected = [row[2] for row in rows if row[:2] == (case, metric)]
        np.testing.assert_array_equal(record.values(case, metric), expected)


def test_the_bytes_of_samples_do_not_depend_on_pandas(tmp_path):
    frame = samples()
    frame.index = frame.index[::-1]
    frame.attrs["note"] = "x"
    write_samples(samples(), tmp_path / "a")
    write_samples(frame, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_start_and_end_agree():
    with pytest.raises(ValueError, match="ended is before started"):
        manifest(ended=NOON.replace(year=2020))
    with pytest.raises(ValueError, match="timezone"):
        manifest(started=NOON.replace(tzinfo=None))
    assert cpu_machine().title == "Example, 2 cores"
