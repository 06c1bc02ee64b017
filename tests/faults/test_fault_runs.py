"""`inferlab run` interrupted, killed, started twice or elsewhere: no finished case is lost."""

import json
import os
import signal
import subprocess
import time

import pytest
from hostile import only_error, the_error

LONG = """
recorder.measure("one", {"a": steady("a")}, STOP)
print("one is measured", flush=True)
if not (HERE / "go").exists():
    (HERE / "waiting").touch()
    time.sleep(60)
recorder.measure("two", {"b": steady("b")}, STOP)
"""


def start(book):
    process = subprocess.Popen(
        book.command("run", "90", "--json"),
        cwd=book.root,
        env=book.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(600):
        if (book.log / "waiting").exists():
            return process
        time.sleep(0.05)
    raise AssertionError("the lab never began")


def stop(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def resumed(book):
    """Run again to the end; the finished block is not measured again."""
    (book.log / "go").touch()
    code, out, err = book.cli("run", "90", "--json")
    (result,) = json.loads(out)
    assert (code, result["outcome"]) == (0, "measured"), err
    assert "resuming: 4 samples" in err
    assert (book.ran("a"), book.ran("b")) == (4, 4)  # a warm-up and three rounds, once


def test_ctrl_c_in_the_middle_of_run(book):
    book.lab(LONG)
    process = start(book)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and lab
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "finished samples are kept: run the same command again" in the_error(err)
    resumed(book)


def test_kill_9_in_the_middle_of_run(book):
    book.lab(LONG)
    process = start(book)
    process.kill()  # the parent alone: the lab must die with it and free the lock
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    resumed(book)


def test_two_runs_at_once(book):
    book.lab(LONG)
    process = start(book)
    code, out, err = book.cli("run", "90", "--json")
    stop(process)
    assert (code, out) == (2, "")
    assert "another run is writing to" in only_error(err) and "--out DIR" in err


def test_a_lab_killed_for_memory_costs_one_case(book):
    book.lab("""
def killed():
    os.kill(os.getpid(), signal.SIGKILL)
recorder.measure("one", {"a": steady("a"), "big": Case(killed, {}), "c": steady("c")}, STOP)
""")
    code, out, err = book.cli("run", "90", "--json")
    (result,) = json.loads(out)
    assert (code, result["outcome"], result["detail"]) == (0, "measured", "out of memory: big"), err
    assert "Traceback" not in err


def test_what_a_lab_prints_does_not_mix_with_json(book):
    book.lab('import subprocess; print("noise"); subprocess.run(["echo", "noise"])')
    code, out, err = book.cli("run", "90", "--json")
    assert code == 0 and json.loads(out)[0]["outcome"] == "measured" and "noise" in err


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1 / 0", "90_probe failed (ZeroDivisionError: division by zero; the traceback is above)"),
        ("from inferlab.models.config import get_config; get_config('gpt-5')", "unknown model"),
        ("os._exit(3)", "90_probe failed (exit code 3"),
        ("os.kill(os.getpid(), 9)", "killed by signal 9 outside any case"),
    ],
)
def test_a_broken_lab_says_why(book, body, words):
    book.lab(body)
    code, out, err = book.cli("run", "90", "--json")
    assert code == 1 and json.loads(out)[0]["outcome"] == "failed"
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors == [err.splitlines()[-1]] and words in errors[0]


def test_run_outside_the_checkout(tmp_path, monkeypatch, call):
    monkeypatch.setattr("inferlab.paths.book_root", lambda: tmp_path)
    code, out, err = call("run", "90", "--json")
    assert (code, out) == (2, "") and "run this inside the book's checkout" in only_error(err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name the labs to run, or give --all"),
        (("90", "--all"), "not both"),
        (("77",), "unknown lab '77': choose from 90_probe"),
        (("../../etc/passwd",), "unknown lab"),
        (("90", "--budget-minutes", "nan"), "--budget-minutes"),
        (("90", "--budget-minutes", "0"), "--budget-minutes"),
        (("90", "--out", "labs/90_probe.ipynb"), "a file lies in its way"),
        (("90", "--out", "/proc/none"), "cannot write records to /proc/none"),
    ],
)
def test_wrong_arguments_of_run(book, call, monkeypatch, arguments, words):
    book.lab("")
    monkeypatch.setattr("inferlab.paths.book_root", lambda: book.root)
    monkeypatch.chdir(book.root)
    code, out, err = call("run", *arguments, "--json")
    assert (code, out) == (2, "") and words in only_error(err)
    assert not (book.root / "data" / "local").exists()


def test_an_unknown_profile(book, call, monkeypatch):
    book.lab("")
    monkeypatch.setattr("inferlab.paths.book_root", lambda: book.root)
    for profile, words in (("bogus", "use one of tiny"), ("gpu80", "needs a CUDA device")):
        monkeypatch.setenv("INFERLAB_PROFILE", profile)
        monkeypatch.setattr("inferlab.profiles._detected", lambda: "tiny")
        code, out, err = call("run", "90", "--json")
        assert (code, out) == (2, "") and words in only_error(err)
