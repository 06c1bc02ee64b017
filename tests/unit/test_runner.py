"""`inferlab run` with real child processes: kills, interruptions, budgets, broken labs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from inferlab.errors import UserError
from inferlab.recorder import partial_folder, this_device
from inferlab.records import find_records
from inferlab.runner import resolve_labs, run_labs

SETUP = """
import os, signal, sys, time
from pathlib import Path
from inferlab.profiles import current_profile
from inferlab.recorder import Case, Recorder
from inferlab.timing import StopRule
LABS = Path({labs!r})
LAB = {lab!r}
recorder = Recorder(LAB, {{"seed": 0}}, current_profile(), labs_dir=LABS)
log = (LABS / (LAB + ".log")).open("a")
def steady(name):
    def run():
        print(name, file=log, flush=True)
        time.sleep(0.01)
        return {{"step_s": 0.01}}
    return Case(run, {{}})
STOP = StopRule(min_rounds=3, max_rounds=3)
"""


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setenv("INFERLAB_PROFILE", "tiny")


def make_lab(labs: Path, lab: str, body: str) -> None:
    cells = [SETUP.format(labs=str(labs), lab=lab), body, "recorder.finish()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    labs.mkdir(exist_ok=True)
    nbformat.write(notebook, labs / f"{lab}.ipynb")


def only_record(lab, out, labs):
    (record,) = find_records(lab, [out], labs).records
    return record


def test_a_lab_leaves_a_record_and_is_not_run_twice(tmp_path):
    labs, out = tmp_path / "labs", tmp_path / "out"
    make_lab(labs, "90_good", 'recorder.measure("b", {"a": steady("a")}, STOP)')
    (result,) = run_labs(["90_good"], labs, out)
    assert result.outcome == "measured"
    assert only_record("90_good", out, labs).manifest.status == "complete"
    assert run_labs(["90_good"], labs, out)[0].outcome == "fresh"
    assert run_labs(["90_good"], labs, out, force=True)[0].outcome == "measured"


def test_a_case_killed_for_memory_costs_one_case(tmp_path):
    labs, out = tmp_path / "labs", tmp_path / "out"
    body = """
def killed():
    os.kill(os.getpid(), signal.SIGKILL)
cases = {"a": steady("a"), "big": Case(killed, {}), "c": steady("c")}
recorder.measure("first", {"before": steady("before")}, STOP)
recorder.measure("b", cases, STOP)
"""
    make_lab(labs, "91_killed", body)
    (result,) = run_labs(["91_killed"], labs, out)
    assert result.outcome == "measured"
    assert "big" in result.detail
    record = only_record("91_killed", out, labs)
    assert record.oom_cases == ["big"]
    assert len(record.values("a", "step_s")) == len(record.values("c", "step_s")) == 3
    # a warm-up and three rounds, once: what was finished before the kill is not run again
    assert (labs / "91_killed.log").read_text().split().count("before") == 4


def test_a_broken_lab_fails_alone(tmp_path, capfd):
    labs, out = tmp_path / "labs", tmp_path / "out"
    make_lab(labs, "92_broken", "raise ZeroDivisionError")
    make_lab(labs, "93_good", 'recorder.measure("b", {"a": steady("a")}, STOP)')
    outcomes = [r.outcome for r in run_labs(["92_broken", "93_good"], labs, out)]
    assert outcomes == ["failed", "measured"]
    assert "92_broken.ipynb, code cell 2" in capfd.readouterr().err


def test_a_budget_leaves_a_partial_record_and_the_rest_is_not_started(tmp_path):
    labs, out = tmp_path / "labs", tmp_path / "out"
    slow = 'recorder.measure("b", {"a": steady("a")}, StopRule(min_rounds=3000, max_rounds=3000))'
    make_lab(labs, "94_slow", slow)
    make_lab(labs, "95_next", 'recorder.measure("b", {"a": steady("a")}, STOP)')
    outcomes = [r.outcome for r in run_labs(["94_slow", "95_next"], labs, out, budget_s=4)]
    assert outcomes == ["partial", "not started"]
    assert only_record("94_slow", out, labs).manifest.status == "partial"


def start(labs, out, lab):
    code = (
        "import sys, pathlib; from inferlab.runner import run_labs;"
        f"run_labs(['{lab}'], pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(labs), str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(path: Path, lines: int) -> None:
    for _ in range(600):
        if path.exists() and path.read_text().count("\n") >= lines:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never had {lines} lines")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_loses_no_finished_case(tmp_path, how):
    labs, out = tmp_path / "labs", tmp_path / "out"
    body = """
recorder.measure("one", {"a": steady("a")}, STOP)
if not (LABS / "go").exists():
    time.sleep(60)
recorder.measure("two", {"b": steady("b")}, STOP)
"""
    make_lab(labs, "96_long", body)
    process = start(labs, out, "96_long")
    wait_for(labs / "96_long.log", 4)
    time.sleep(0.3)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        os.kill(process.pid, how)
    process.wait(timeout=20)
    journal = partial_folder(out, "96_long", this_device()) / "journal.jsonl"
    assert journal.read_text().count('"status": "ok"') == 3
    (labs / "go").touch()
    (result,) = run_labs(["96_long"], labs, out)  # the lock is free: the child died too
    assert result.outcome == "measured"
    assert (labs / "96_long.log").read_text().split().count("a") == 4
    assert len(only_record("96_long", out, labs).values("b", "step_s")) == 3


def test_two_runs_at_once_are_refused(tmp_path):
    labs, out = tmp_path / "labs", tmp_path / "out"
    make_lab(labs, "97_long", 'recorder.measure("b", {"a": steady("a")}, STOP); time.sleep(60)')
    process = start(labs, out, "97_long")
    wait_for(labs / "97_long.log", 1)
    with pytest.raises(UserError, match="another run is writing"):
        run_labs(["97_long"], labs, out)
    process.kill()
    process.wait(timeout=20)


def test_unknown_labs_name_what_exists(tmp_path):
    labs = tmp_path / "labs"
    make_lab(labs, "90_good", "")
    assert resolve_labs(["90"], labs) == ["90_good"]
    with pytest.raises(UserError, match="choose from 90_good"):
        resolve_labs(["91"], labs)
    with pytest.raises(UserError, match="no labs in"):
        resolve_labs(["90"], tmp_path / "nowhere")
