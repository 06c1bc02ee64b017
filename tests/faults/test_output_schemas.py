"""What each verb's --json holds, case by case, and with which exit code."""

import json

import pytest
from hostile import the_error
from record_examples import CPU_DEVICE, LAB, write_example, write_lab
from tiny_models import tiny

from inferlab import paths
from inferlab.hardware.facts import Machine
from inferlab.models import config

METRICS = {"ttft_s", "tpot_s", "output_tok_per_s", "mbu_ratio"}


@pytest.fixture
def measure(call, monkeypatch):
    """Measure a tiny preset; one parsed object a line."""
    monkeypatch.setitem(config.PRESETS, "tiny", tiny("tiny", max_context_len=256))

    def run(*arguments):
        code, out, err = call(
            "measure", "--model", "tiny", "--weights", "random", "--rounds", "3",
            "--time-cap-s", "0.1", "--json", *arguments,
        )  # fmt: skip
        assert code == 0, err
        assert out.endswith("\n") and out.count("\n") == len(out.splitlines())
        return [json.loads(line) for line in out.splitlines()]

    return run


@pytest.mark.parametrize("backend", ["hf", "torch"])
def test_measure_prints_one_object_a_case(measure, backend):
    cases = measure(
        "--backend", backend, "--dtype", "bfloat16", "--batch-size", "1,4",
        "--prompt-len", "64", "--output-len", "64",
    )  # fmt: skip
    assert [case["batch_size"] for case in cases] == [1, 4]
    for case in cases:
        assert case["label"] == "measured" and case["status"] == "ok"
        assert (case["backend"], case["model"], case["dtype"]) == (backend, "tiny", "bfloat16")
        assert (case["prompt_len"], case["output_len"], case["weights"]) == (64, 64, "random")
        assert set(case["predicted"]) >= METRICS
        assert all(value > 0 for value in case["predicted"].values())
        assert set(case["measured"]) == METRICS
        for found in case["measured"].values():
            assert set(found) == {"median", "low", "high", "n"}
            assert found["n"] >= 3 and 0 < found["low"] <= found["median"] <= found["high"]
        machine = Machine.model_validate(case["machine"])
        assert machine.kind == "cpu" and machine.packages["torch"]
        assert case["ceilings"]["read_bytes_per_s"] > 0


def test_both_backends_take_turns(measure):
    cases = measure("--backend", "hf,torch", "--batch-size", "1", "--output-len", "3")
    assert [case["backend"] for case in cases] == ["hf", "torch"]


def test_output_of_one_token_has_no_tpot(measure, call):
    (case,) = measure("--batch-size", "1", "--prompt-len", "8", "--output-len", "1")
    assert set(case["measured"]) == {"ttft_s", "output_tok_per_s"}
    arguments = ("--batch-size", "1", "--prompt-len", "8", "--output-len", "1", "--rounds", "3")
    code, out, _ = call("measure", "--model", "tiny", "--weights", "random", *arguments)
    assert code == 0 and "undefined" in out


def test_doctor(call):
    code, out, err = call("doctor", "--json", "--no-probe")
    report = json.loads(out)
    assert set(report) == {"ready", "findings"} and err == ""
    for finding in report["findings"]:
        assert set(finding) == {"name", "state", "detail", "fix"}
        assert finding["state"] in ("ok", "warn", "fail")
        assert finding["fix"] or finding["state"] == "ok", finding["name"]
    names = [finding["name"] for finding in report["findings"]]
    assert {"python", "torch", "cuda", "memory", "disk", "model", "profile"} <= set(names)
    failed = any(finding["state"] == "fail" for finding in report["findings"])
    assert report["ready"] is not failed and code == int(failed)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "book_root", lambda: tmp_path)
    (tmp_path / "data" / "records").mkdir(parents=True)
    write_lab(tmp_path / "labs", LAB, "x = 1")
    return tmp_path


def test_status(call, root):
    missing = {
        "lab": LAB, "device": "", "state": "missing", "reasons": ["not measured yet"],
        "folder": None, "origin": "",
    }  # fmt: skip
    code, out, err = call("status", "--json")
    assert (code, err, json.loads(out)) == (0, "", [missing])
    write_example(root / "data" / "records")
    write_example(root / "data" / "local", device="cpu-mine-2c")
    code, out, err = call("status", "--json")
    first, second = json.loads(out)
    assert code == 0 and set(first) == set(missing)
    assert (first["state"], first["origin"], first["device"]) == ("stale", "published", CPU_DEVICE)
    assert (second["origin"], second["folder"]) == ("local", f"data/local/{LAB}/cpu-mine-2c")


def test_report(call, root):
    code, out, err = call("report", "--json")
    assert (code, out) == (2, "") and "`inferlab run 02_roofline`" in the_error(err)
    write_example(root / "data" / "records")
    code, out, err = call("report", "--json", "90")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert set(rows[0]) == {
        "lab", "device", "origin", "label", "stale", "case", "metric", "status", "predicted",
        "median", "low", "high", "n",
    }  # fmt: skip
    by_case = {row["case"]: row for row in rows}
    assert by_case["torch/bs=1"]["n"] == 6 and by_case["torch/bs=1"]["median"] > 0
    lost = by_case["torch/bs=1024"]
    assert (lost["status"], lost["median"], lost["n"]) == ("oom", None, 0)
    code, out, err = call("report", "--json", "77")
    assert (code, out) == (2, "") and "choose from" in the_error(err)
