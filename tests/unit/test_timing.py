"""Interleaving: pairing, stopping, resuming, and what a lost case does to the others."""

import itertools
import weakref

import pytest

from inferlab import timing
from inferlab.errors import MeasurementError
from inferlab.timing import StopRule, interleave, is_out_of_memory

QUICK = StopRule(min_rounds=3, max_rounds=6, interval_ratio=0.01, warmup_rounds=1)


def noisy():
    """A run whose values never settle, so that only max_rounds stops it."""
    values = itertools.cycle([1.0, 9.0])
    return lambda: {"step_s": next(values)}


def test_every_round_runs_each_case_once_in_turn():
    samples = list(interleave({"a": noisy(), "b": noisy()}, QUICK))
    timed = [(s.case, s.round) for s in samples if s.status == "ok"]
    assert timed == [(c, r) for r in range(6) for c in "ab"]


def test_a_run_by_round_draws_the_same_when_it_is_resumed():
    run = timing.ByRound(lambda index: {"step_s": 1.0 + index})
    rule = StopRule(min_rounds=3, max_rounds=3, warmup_rounds=0)
    whole = [s.values for s in interleave({"a": run}, rule)]
    resumed = list(interleave({"a": run}, rule, done={"a": whole[:2]}))
    assert [s.values for s in resumed] == whole[2:] == [{"step_s": 3.0}]
    assert run() == {"step_s": 1.0}  # a first round, where nobody counts


def test_warmup_rounds_are_kept_apart():
    samples = list(interleave({"a": noisy()}, QUICK))
    assert [s.status for s in samples].count("warmup") == 1
    assert samples[0].round == -1


def test_a_steady_case_stops_at_the_least_number_of_rounds():
    samples = list(interleave({"a": lambda: {"step_s": 1.0}}, QUICK))
    assert sum(s.status == "ok" for s in samples) == QUICK.min_rounds


def test_an_out_of_memory_case_drops_out_and_the_others_go_on():
    calls = itertools.count()

    def hungry():
        if next(calls) >= 2:
            raise MemoryError("no room for the KV cache")
        return {"step_s": 1.0}

    samples = list(interleave({"hungry": hungry, "a": noisy()}, QUICK))
    lost = [s for s in samples if s.status == "oom"]
    assert [s.case for s in lost] == ["hungry"]
    assert lost[0].detail == "no room for the KV cache"
    assert sum(s.case == "a" and s.status == "ok" for s in samples) == 6


def test_memory_is_released_when_nothing_holds_the_tensors_any_more(monkeypatch):
    """As long as the error lives, its traceback holds the locals of every frame."""

    class Tensor:
        pass

    held = []

    def hungry():
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        raise MemoryError

    alive = []
    monkeypatch.setattr(timing, "_release_device_memory", lambda: alive.append(held[0]()))
    assert timing.execute("hungry", hungry, 0).detail == "MemoryError"
    assert alive == [None]


@pytest.mark.parametrize(
    "words", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"]
)
def test_memory_that_another_allocator_of_the_device_lacks_is_out_of_memory(words):
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


def test_other_errors_are_not_swallowed():
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(interleave({"a": broken}, QUICK))


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(MeasurementError, match="step_s is not a finite number"):
        list(interleave({"a": lambda: {"step_s": float("nan")}}, QUICK))


def test_finished_rounds_are_not_measured_again():
    done = {"a": [{"step_s": 1.0}, {"step_s": 9.0}], "b": [{"step_s": 1.0}]}
    samples = list(interleave({"a": noisy(), "b": noisy()}, QUICK, done=done))
    timed = [(s.case, s.round) for s in samples if s.status == "ok"]
    assert timed[0] == ("b", 1)
    assert timed[1:3] == [("a", 2), ("b", 2)]


def test_a_finished_block_is_not_touched():
    done = {"a": [{"step_s": 1.0}] * 3}

    def never():
        raise AssertionError("measured again")

    assert list(interleave({"a": never}, QUICK, done=done)) == []


def test_a_passed_deadline_ends_the_rounds():
    assert list(interleave({"a": noisy()}, QUICK, deadline=0.0)) == []


def test_torch_memory_errors_are_recognized_by_name():
    error = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
