"""Record folders that nobody vouches for, as a reader meets them: status, report, pages."""

import json
import os

import pytest
from hostile import only_error, the_error
from record_examples import (
    CPU_DEVICE,
    LAB,
    cpu_machine,
    edit_manifest,
    manifest,
    write_example,
    write_lab,
)

from inferlab import pages, paths
from inferlab.hardware.facts import Cpu
from inferlab.records import CaseInfo, ModelStamp, find_records

HTML = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A book with one lab and one good record."""
    monkeypatch.setattr(paths, "book_root", lambda: tmp_path)
    write_lab(tmp_path / "labs", LAB, "x = 1")
    write_example(tmp_path / "data" / "records", device="cpu-good-2c")
    return tmp_path


def half_written(folder):
    (folder / "manifest.json").unlink()


def newer_schema(folder):
    edit_manifest(folder, lambda m: m.update(schema_version=99))


def forged_summary(folder):
    edit_manifest(folder, lambda m: m.update(summary={"tpot_s": 1e-6}))


def summary_beside(folder):
    (folder / "summary.json").write_text('{"tpot_s": 1e-6}')


def forged_samples(folder):
    with (folder / "samples.parquet").open("ab") as file:
        file.write(b"\0")


def deep_json(folder):
    (folder / "manifest.json").write_text("[" * 100_000)


def escape_in_model_name(folder):
    edit_manifest(folder, lambda m: m["models"][0].update(name="a\x1b[31m"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (half_written, "half written (no manifest.json): remove the folder and run"),
        (newer_schema, "newer than this inferlab reads (1): update"),
        (forged_summary, "summary: unknown key"),
        (summary_beside, "summary.json is not in the manifest"),
        (forged_samples, "sha256 differs"),
        (deep_json, "nested deeper"),
        (escape_in_model_name, "models.0.name"),
    ],
)
def test_a_bad_record(call, root, fault, words):
    fault(write_example(root / "data" / "records"))
    code, out, err = call("status", "--json")
    states = {state["device"]: state for state in json.loads(out)}
    assert (code, err) == (1, "")
    assert states["cpu-good-2c"]["state"] == "stale"  # its lab is another one than it measured
    bad = states[CPU_DEVICE]
    assert bad["state"] == "bad" and words in bad["reasons"][0]
    assert bad["folder"] == f"data/records/{LAB}/{CPU_DEVICE}"
    code, out, _ = call("status")
    assert code == 1 and "bad" in out and "\x1b" not in out
    code, out, err = call("report", "--json")
    assert code == 0 and {row["device"] for row in json.loads(out)} == {"cpu-good-2c"}
    assert err.startswith("note: left out: record ") and words in err and err.count("\n") == 1


def test_a_bad_record_alone_is_no_report(call, root):
    half_written(root / "data" / "records" / LAB / "cpu-good-2c")
    code, out, err = call("report", "--json")
    assert (code, out) == (2, "") and "no records to report" in the_error(err)


def test_terminal_escapes_in_a_folder_name(call, root):
    os.mkdir(root / "data" / "records" / LAB / "\x1b[31m[red]x")
    code, out, _ = call("status")
    assert code == 1 and "\x1b" not in out
    code, out, err = call("report")
    assert code == 0 and "\x1b" not in out + err


def test_html_and_markup_in_names(call, root):
    records = root / "data" / "records"
    info = CaseInfo(params={"model": HTML}, predicted={"tpot_s": 0.02}, block="[red]b")
    write_example(
        records,
        machine=cpu_machine(cpu=Cpu(model=f"[red]{HTML}", cores=2)),
        models=[ModelStamp(name=HTML, weights="real")],
        cases={**manifest().cases, "hf/bs=1": info},
    )
    (record,) = [
        r for r in find_records(LAB, [records]).records if r.manifest.models[0].name == HTML
    ]
    for table in (pages.runs([record]), pages.machine_facts([record]), record.table("tpot_s"),
                  pages.prediction_summary([record]), pages.predictions(record)):  # fmt: skip
        shown = pages.html_table(table, caption=record.provenance).data
        assert "<script" not in shown and "<img" not in shown and "&lt;script&gt;" in shown
    for verb in ("status", "report"):
        for extra in ((), ("--json",)):
            code, out, err = call(verb, *extra)
            assert (code, err) == (0, "") and "\x1b" not in out


def test_records_of_no_folder(call, root):
    code, out, err = call("status", "--json", "--records", root / "nowhere")
    assert (code, out) == (2, "") and "no folder" in only_error(err)
