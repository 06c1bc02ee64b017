"""The journal survives being cut off anywhere, and two runs never share a folder."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.errors import MeasurementError, UserError
from inferlab.journal import JOURNAL_NAME, Journal, RunLock, note_kill, read_events
from inferlab.timing import Sample


def sample(case="a", round_index=0, value=1.0, status="ok"):
    return Sample(case, round_index, status, {"step_s": value})


def filled(folder, fingerprint="f"):
    journal = Journal(folder, fingerprint)
    for round_index in range(3):
        journal.begin("a", round_index)
        journal.add(sample(round_index=round_index, value=float(round_index)))
    journal.close()
    return journal.path


def test_a_second_run_sees_what_the_first_measured(tmp_path):
    filled(tmp_path)
    again = Journal(tmp_path, "f")
    assert [v["step_s"] for v in again.finished_rounds()["a"]] == [0.0, 1.0, 2.0]


@given(cut=st.integers(min_value=0, max_value=600))
def test_a_file_cut_off_at_any_byte_keeps_its_whole_lines(cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("journal")
    path = filled(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    events, good_bytes = read_events(path)
    assert whole[:good_bytes].count(b"\n") == len(events)
    again = Journal(folder, "f")
    again.add(sample(round_index=9))
    assert read_events(again.path)[0][-1]["sample"]["round"] == 9


def test_another_fingerprint_sets_the_samples_aside_and_loses_none(tmp_path):
    path = filled(tmp_path)
    before = path.read_bytes()
    again = Journal(tmp_path, "another")
    assert again.samples == []
    assert again.set_aside.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    ['{"sample": 3}', '{"sample": {"case": "a"}}', '{"killed": "a"}', '{"killed": [], "why": 1}'],
)
def test_lines_that_we_never_wrote_set_it_aside(tmp_path, line):
    path = filled(tmp_path)
    path.write_text(path.read_text() + line + "\n")
    again = Journal(tmp_path, "f")
    assert again.set_aside and again.samples == [] and again.killed == {}


def test_a_killed_process_names_the_case_it_was_in(tmp_path):
    path = filled(tmp_path)
    journal = Journal(tmp_path, "f")
    journal.begin("b", 0)
    journal.close()
    assert note_kill(path.parent, "killed by signal 9") == "b"
    assert note_kill(path.parent, "again") is None
    assert Journal(tmp_path, "f").dropped() == {"b"}


def test_a_death_between_cases_blames_none(tmp_path):
    filled(tmp_path)
    assert note_kill(tmp_path, "killed") is None
    assert note_kill(tmp_path / "nothing", "killed") is None


def test_two_runs_in_one_folder_are_refused(tmp_path):
    first = RunLock(tmp_path)
    with pytest.raises(UserError, match="another run is writing"):
        RunLock(tmp_path)
    first.release()
    RunLock(tmp_path).release()


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    code = (
        "import os, sys, pathlib; from inferlab.journal import RunLock;"
        "lock = RunLock(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    RunLock(tmp_path).release()


def test_a_full_disk_says_what_is_kept(tmp_path, monkeypatch):
    journal = Journal(tmp_path, "f")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MeasurementError, match="disk full .* is kept"):
        journal.add(sample())


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Journal(tmp_path / "file" / "below", "f")
    with pytest.raises(UserError, match="read-only|cannot write"):
        RunLock(tmp_path / "file" / "below")


def test_an_oversized_journal_is_refused(tmp_path, monkeypatch):
    path = filled(tmp_path)
    monkeypatch.setattr("inferlab.journal.MAX_JOURNAL_BYTES", 10)
    with pytest.raises(UserError, match="larger than"):
        read_events(path)
    assert path.name == JOURNAL_NAME
