"""The recorder: in a notebook nothing is written; under a run everything survives."""

import json
from dataclasses import dataclass, replace

import nbformat
import pytest

from inferlab.profiles import PROFILES
from inferlab.recorder import (
    RUN_VARIABLE,
    BudgetSpent,
    Case,
    Recorder,
    is_recorded_run,
    partial_folder,
)
from inferlab.records import find_records, load_record
from inferlab.timing import StopRule

LAB = "99_probe"
STOP = StopRule(min_rounds=3, max_rounds=3)


@dataclass(frozen=True)
class Config:
    model: str = "smollm2-135m"
    seed: int = 0


@pytest.fixture
def labs(tmp_path):
    folder = tmp_path / "labs"
    folder.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")])
    nbformat.write(notebook, folder / f"{LAB}.ipynb")
    return folder


@pytest.fixture
def out(tmp_path, monkeypatch):
    folder = tmp_path / "records"
    settings = {"out": str(folder), "deadline": None, "command": f"inferlab run {LAB}"}
    monkeypatch.setenv(RUN_VARIABLE, json.dumps(settings))
    return folder


def recorder(labs, config=None):
    return Recorder(LAB, config or Config(), PROFILES["tiny"], labs_dir=labs)


def case(values, **params):
    source = iter(values)
    return Case(lambda: {"step_s": next(source)}, params, {"step_s": 1.0})


def test_only_inferlab_run_is_a_recorded_run(monkeypatch):
    monkeypatch.delenv(RUN_VARIABLE, raising=False)
    assert not is_recorded_run()
    monkeypatch.setenv(RUN_VARIABLE, '{"out": "x"}')
    assert is_recorded_run()


def test_in_a_notebook_nothing_is_written(labs, tmp_path):
    session = recorder(labs)
    session.measure("block", {"a": case([9, 1, 2, 3])}, STOP)
    record = session.finish()
    assert record.values("a", "step_s").tolist() == [1, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["labs"]


def test_a_run_writes_a_record_that_reads_back(labs, out):
    session = recorder(labs)
    session.model("smollm2-135m", "random")
    session.measure("block", {"a": case([9, 1, 2, 3], batch_size=1)}, STOP)
    session.check("tokens equal", True)
    session.finish()
    (record,) = find_records(LAB, [out], labs).records
    assert record.manifest.status == "complete"
    assert record.manifest.cases["a"].predicted == {"step_s": 1.0}
    assert record.values("a", "step_s").tolist() == [1, 2, 3]
    assert not record.is_stale
    assert not partial_folder(out, LAB, record.manifest.device).exists()


def test_a_failed_check_makes_the_record_invalid(labs, out):
    session = recorder(labs)
    session.measure("block", {"a": case([9, 1, 2, 3])}, STOP)
    session.check("tokens equal", False, "token 3 differs")
    assert session.finish().manifest.status == "invalid"


def test_an_interrupted_run_goes_on_where_it_was(labs, out):
    first = recorder(labs)

    def interrupted():
        values = iter([9.0, 1.0, 2.0])

        def run():
            try:
                return {"step_s": next(values)}
            except StopIteration:
                raise KeyboardInterrupt from None

        return Case(run, {})

    first.measure("one", {"a": case([9, 1, 2, 3])}, STOP)
    with pytest.raises(KeyboardInterrupt):
        first.measure("two", {"b": interrupted()}, STOP)

    second = recorder(labs)
    never = Case(lambda: pytest.fail("measured again"), {})
    second.measure("one", {"a": never}, STOP)
    record = second.measure("two", {"b": case([9, 7])}, STOP)
    assert record.values("a", "step_s").tolist() == [1, 2, 3]
    assert record.values("b", "step_s").tolist() == [1, 2, 7]


def test_another_configuration_is_not_mixed_in(labs, out, capsys):
    recorder(labs).measure("one", {"a": case([9, 1, 2, 3])}, STOP)
    other = recorder(labs, replace(Config(), seed=1))
    record = other.measure("one", {"a": case([9, 4, 5, 6])}, STOP)
    assert record.values("a", "step_s").tolist() == [4, 5, 6]
    assert "set aside" in capsys.readouterr().out


def test_an_out_of_memory_case_is_a_row_and_the_record_is_complete(labs, out):
    def hungry():
        raise MemoryError("no room")

    session = recorder(labs)
    cases = {"a": case([9, 1, 2, 3]), "big": Case(hungry, {"batch_size": 10**6})}
    session.measure("block", cases, STOP)
    session.finish()
    (record,) = find_records(LAB, [out], labs).records
    assert record.oom_cases == ["big"]
    assert record.manifest.status == "complete"


def test_a_spent_budget_keeps_the_journal(labs, out, monkeypatch):
    settings = json.loads(__import__("os").environ[RUN_VARIABLE])
    monkeypatch.setenv(RUN_VARIABLE, json.dumps({**settings, "deadline": 1.0}))
    session = recorder(labs)
    with pytest.raises(BudgetSpent, match="run again to resume"):
        session.measure("block", {"a": case([9, 1, 2, 3])}, STOP)
    assert partial_folder(out, LAB, session.device).exists()
    (record,) = find_records(LAB, [out], labs).records
    assert record.manifest.status == "partial"


def test_unfinished_work_is_no_record(labs, out):
    session = recorder(labs)
    session.measure("block", {"a": case([9, 1, 2, 3])}, STOP)
    found = find_records(LAB, [out], labs)
    assert found.records == [] and found.problems == []


def test_the_written_record_names_its_command(labs, out):
    session = recorder(labs)
    session.measure("block", {"a": case([9, 1, 2, 3])}, STOP)
    session.finish()
    folder = out / LAB / session.device
    assert load_record(folder, labs).manifest.command == f"inferlab run {LAB}"
