"""No record folder is taken at its word: each way to break one has its own clear line."""

import gzip
import hashlib
import json
import math
import os

import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_examples import LAB, edit_manifest, manifest, samples, write_example

from inferlab.records import (
    CaseInfo,
    ModelStamp,
    RecordError,
    find_records,
    load_record,
    store,
    write_record,
)
from inferlab.records import samples as samples_module


def restamp(folder, name="samples.parquet"):
    """Make the manifest agree with the changed file, as a forger would."""
    content = (folder / name).read_bytes()
    stamp = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    edit_manifest(folder, lambda m: m["files"].update({name: stamp}))


def set_key(*path_and_value):
    *path, last, value = path_and_value

    def change(manifest):
        for key in path:
            manifest = manifest[key]
        manifest[last] = value

    return change


def refused(folder, match):
    with pytest.raises(RecordError, match=match) as caught:
        load_record(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    assert f"{folder.parent.name}/{folder.name}" in message, "the line names the folder"
    found = find_records(LAB, [folder.parents[1]])
    assert not found.records and message in found.problems[0].reason


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_key("summary", {"tpot_s": 0.001}), "summary: unknown key"),
        (set_key("cases", "hf/bs=1", "median", 1), "unknown key"),
        (set_key("machine", "hostname", "x"), "machine.hostname: unknown key"),
        (set_key("schema_version", 2), "newer than this inferlab reads.*update"),
        (set_key("schema_version", 10**40), "newer than this inferlab reads"),
        (set_key("schema_version", "1"), "schema_version"),
        (set_key("lab", "../../etc"), "lab: String should match"),
        (set_key("lab", "91_other"), "its manifest says 91_other"),
        (set_key("device", "gpu-other"), "its manifest says"),
        (set_key("device", "../x"), "device: String should match"),
        (set_key("cases", "../../x", {}), "cases"),
        (set_key("cases", "a/../b", {}), "cases"),
        (set_key("cases", "<img src=x>", {}), "cases"),
        (set_key("cases", "/etc/passwd", {}), "cases"),
        (set_key("files", "../../../etc/passwd", {"sha256": "0" * 64, "size_bytes": 1}), "files"),
        (set_key("files", "traces/x.jsonl.gz", {"sha256": "0" * 64, "size_bytes": 1}), "no case"),
        (set_key("files", {}), "does not name samples.parquet"),
        (set_key("label", "cited"), "label"),
        (set_key("status", "fresh"), "status"),
        (set_key("status", "partial"), "needs a reason"),
        (set_key("code_hash", "abc"), "code_hash"),
        (set_key("command", "python /home/me/lab.py"), "an absolute path"),
        (set_key("config", {"server": "192.168.1.4"}), "a network address"),
        (set_key("cases", "hf/bs=1", "params", {"median": 3}), "a column of every table"),
        (set_key("cases", "hf/bs=1", "params", {"x y": 3}), "params"),
        (set_key("cases", "hf/bs=1", "predicted", {"tpot_s": -1}), "greater than or equal"),
        (set_key("models", [{"name": "a\nb", "weights": "real"}]), "models.0.name"),
        (set_key("models", [{"name": "a", "weights": "real"}] * 2), "same name"),
    ],
)
def test_a_forged_manifest_is_refused(tmp_path, change, match):
    folder = write_example(tmp_path)
    edit_manifest(folder, change)
    refused(folder, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
        ('{"a": ' * 2000 + "1" + "}" * 2000, "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ('{"schema_version": 1, "schema_version": 1}', "a key appears twice"),
        ('{"schema_version": NaN}', "NaN is not a number"),
        ('{"config": {"x": Infinity}}', "Infinity is not a number"),
        ('{"schema_version": 1}', "Field required"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path, text, match):
    folder = write_example(tmp_path)
    (folder / "manifest.json").write_text(text)
    refused(folder, match)


def test_brackets_inside_strings_are_not_depth(tmp_path):
    folder = write_example(tmp_path, command='run "[[[[[[[[[[[[[[[[[[[[[[" \\')
    assert load_record(folder)


def test_half_written(tmp_path):
    folder = write_example(tmp_path)
    (folder / "manifest.json").unlink()
    refused(folder, "half written.*run the lab again")


def test_a_manifest_over_the_cap(tmp_path, monkeypatch):
    folder = write_example(tmp_path)
    monkeypatch.setattr(store, "MAX_MANIFEST_BYTES", 100)
    refused(folder, "manifest.json is larger than 100 bytes")


def test_a_changed_samples_file(tmp_path):
    folder = write_example(tmp_path)
    with (folder / "samples.parquet").open("ab") as file:
        file.write(b"x")
    refused(folder, "sha256 differs")


def test_a_missing_samples_file(tmp_path):
    folder = write_example(tmp_path)
    (folder / "samples.parquet").unlink()
    refused(folder, "samples.parquet is missing")


def test_a_summary_beside_the_samples(tmp_path):
    folder = write_example(tmp_path)
    (folder / "summary.json").write_text('{"tpot_s": 0.001}')
    refused(folder, "summary.json is not in the manifest.*computed, never stored")


def test_links_are_not_followed(tmp_path):
    folder = write_example(tmp_path / "a")
    real = tmp_path / "samples.parquet"
    (folder / "samples.parquet").rename(real)
    os.symlink(real, folder / "samples.parquet")
    refused(folder, "is a link")
    other = write_example(tmp_path / "b")
    moved = other.rename(tmp_path / "moved")
    os.symlink(moved, other)
    refused(other, "is a link")


def test_a_folder_over_the_cap(tmp_path, monkeypatch):
    folder = write_example(tmp_path)
    monkeypatch.setattr(store, "MAX_FOLDER_BYTES", 10)
    refused(folder, "larger than 10 bytes")


ROW = ("hf/bs=1", "tpot_s", 0.1, 0, "ok")


@pytest.mark.parametrize(
    ("position", "value", "match"),
    [
        (2, math.nan, "not a finite number"),
        (2, math.inf, "not a finite number"),
        (2, -1e-9, "negative"),
        (0, "unknown", "a case that the manifest does not have"),
        (1, "tpot_ms", "ends in its SI unit"),
        (1, "<b>_s", "ends in its SI unit"),
        (1, "none", "only a lost case"),
        (3, -1, "warm-up"),
        (3, -2, "in_range"),
        (4, "great", "isin"),
    ],
)
def test_bad_samples_are_refused_by_writer_and_reader(tmp_path, position, value, match):
    row = list(ROW)
    row[position] = value
    bad = samples([ROW, tuple(row)])
    with pytest.raises(RecordError, match=match):
        write_record(manifest(), bad, tmp_path / "w")
    folder = write_example(tmp_path / "r")
    samples_module.write_samples(bad, folder / "samples.parquet")
    restamp(folder)
    refused(folder, match)


def test_the_error_of_a_client_has_either_sign(tmp_path):
    write_record(manifest(), samples([ROW, (ROW[0], "tpot_error_s", -1e-6, 0, "ok")]), tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop_columns(["round"]), "has columns"),
        (lambda t: t.append_column("median", arrow.array([1.0] * len(t))), "has columns"),
        (lambda t: t.select(["metric", "case", "value", "round", "status"]), "has columns"),
        (lambda t: t.set_column(2, "value", t["value"].cast("string")), "value must be float64"),
        (lambda t: t.set_column(3, "round", t["round"].cast("float64")), "round int64"),
        (lambda t: t.set_column(0, "case", arrow.array(range(len(t)))), "case is not text"),
        (
            lambda t: t.set_column(0, "case", arrow.array(["x" * 10_000] * len(t))),
            "more than a short name",
        ),
        (lambda t: t.set_column(3, "round", arrow.nulls(len(t), "int64")), "round"),
        (lambda t: t.set_column(0, "case", arrow.nulls(len(t), "string")), "case"),
    ],
)
def test_a_table_of_another_shape(tmp_path, change, match):
    folder = write_example(tmp_path)
    path = folder / "samples.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    restamp(folder)
    refused(folder, match)


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"not parquet" * 100, gzip.compress(b"x")],
    ids=["empty", "magic", "text", "gzip"],  # bytes as names would hold the time of compression
)
def test_a_file_that_is_no_parquet(tmp_path, content):
    folder = write_example(tmp_path)
    (folder / "samples.parquet").write_bytes(content)
    restamp(folder)
    refused(folder, "not a readable Parquet file")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_flipped_bytes_never_crash_the_reader(tmp_path_factory, data):
    folder = write_example(tmp_path_factory.mktemp("r"))
    path = folder / data.draw(st.sampled_from(["samples.parquet", "manifest.json"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    if path.name == "samples.parquet":
        restamp(folder)
    found = find_records(LAB, [folder.parents[1]])
    assert len(found.records) + len(found.problems) == 1


def test_too_many_rows_and_too_large_when_unpacked(tmp_path, monkeypatch):
    folder = write_example(tmp_path)
    monkeypatch.setattr(samples_module, "MAX_UNPACKED_BYTES", 10)
    refused(folder, "unpacks to more than 10 bytes")
    monkeypatch.setattr(samples_module, "MAX_ROWS", 3)
    refused(folder, "more than 3 samples")
    monkeypatch.setattr(samples_module, "MAX_SAMPLES_BYTES", 10)
    refused(folder, "samples.parquet is larger than 10 bytes")
    with pytest.raises(RecordError, match="more than 3 samples"):
        write_record(manifest(), samples(), tmp_path / "w")


@pytest.mark.parametrize(
    "metric", ["kld_mean", "kld_p99", "perplexity", "top1_ratio", "task_score"]
)
@pytest.mark.parametrize(
    ("models", "params", "accepted"),
    [
        ([("m", "real")], {}, True),
        ([("m", "random")], {}, False),
        ([], {}, False),
        ([("m", "real"), ("big", "random")], {}, False),
        ([("m", "real"), ("big", "random")], {"model": "m"}, True),
        ([("m", "real"), ("big", "random")], {"model": "big"}, False),
        ([("m", "real"), ("big", "random")], {"model": "unstated"}, False),
    ],
)
def test_quality_is_refused_without_real_weights(tmp_path, metric, models, params, accepted):
    record = manifest(
        models=[ModelStamp(name=name, weights=weights) for name, weights in models],
        cases={"a": CaseInfo(params=params)},
    )
    rows = samples([("a", metric, 0.5, 0, "ok")])
    if accepted:
        assert load_record(write_record(record, rows, tmp_path))
    else:
        with pytest.raises(RecordError, match="quality figure"):
            write_record(record, rows, tmp_path)


def test_html_in_a_model_name_stays_data(tmp_path):
    name = "<script>alert(1)</script>"
    folder = write_example(
        tmp_path,
        models=[ModelStamp(name=name, weights="real")],
        cases={**manifest().cases, "a": CaseInfo(params={"model": name})},
    )
    record = load_record(folder)
    assert record.manifest.models[0].name == name
    assert json.loads((folder / "manifest.json").read_text())["models"][0]["name"] == name


def test_samples_need_numbers():
    frame = pd.DataFrame([("hf/bs=1", "tpot_s", "fast", 0, "ok")], columns=samples().columns)
    with pytest.raises(RecordError, match="value"):
        samples_module.check_samples(frame, manifest())
