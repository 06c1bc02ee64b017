"""How are two things timed so that their ratio can be believed?

Cases run in turn (A B A B ...), so that a drift of the machine falls on all of them; rounds go on
until the interval of every case is narrow enough or the time cap is reached.
Chapter: chapters/01_metrics.md    Lab: labs/01_metrics.ipynb
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from inferlab.errors import MeasurementError
from inferlab.stats import median_interval


@dataclass(frozen=True, slots=True)
class ByRound:
    """A run that wants to know its round, to draw what all cases of that round share.

    Counting its own calls would not do: a run that is resumed does not repeat finished rounds.
    """

    run: Callable[[int], Mapping[str, float]]

    def __call__(self, round_index: int = 0) -> Mapping[str, float]:
        return self.run(round_index)


Run = Callable[[], Mapping[str, float]] | ByRound


@dataclass(frozen=True, slots=True)
class StopRule:
    """When has a block of interleaved cases been measured enough?"""

    min_rounds: int = 5
    max_rounds: int = 30
    interval_ratio: float = 0.05  # half-width of the 95 % interval over the median
    time_cap_s: float = 20.0  # for the whole block; min_rounds may overrun it only once
    warmup_rounds: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min_rounds <= self.max_rounds:
            raise ValueError("1 <= min_rounds <= max_rounds is required")

    def narrow_enough(self, values: list[float]) -> bool:
        """True when the median of `values` is known to within `interval_ratio`."""
        if len(values) < self.min_rounds:
            return False
        estimate = median_interval(values)
        half_width = (estimate.high - estimate.low) / 2
        return half_width <= self.interval_ratio * abs(estimate.value)


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed execution of one case; `round` is -1 while warming up."""

    case: str
    round: int
    status: str  # ok | warmup | oom | error
    values: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""


# torch has one error class for its own allocator; cuBLAS and page-locked host memory only words.
OUT_OF_MEMORY_WORDS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """True for an allocation that failed on the host or on a device."""
    if isinstance(error, RuntimeError) and any(w in str(error) for w in OUT_OF_MEMORY_WORDS):
        return True
    return isinstance(error, MemoryError) or type(error).__name__ in (
        "OutOfMemoryError",
        "BatchTooLarge",
    )


def execute(case: str, run: Run, round_index: int) -> Sample:
    """Run `run` once; a failed allocation becomes a sample with status `oom`."""
    lost = None
    try:
        values = dict(run(round_index) if isinstance(run, ByRound) else run())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        lost = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if lost is not None:
        # Only here: while the error lives, its traceback keeps the tensors of every frame.
        _release_device_memory()
        return Sample(case, round_index, "oom", detail=lost)
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise MeasurementError(f"case {case}: {', '.join(bad)} is not a finite number")
    return Sample(case, round_index, "warmup" if round_index < 0 else "ok", values)


def _release_device_memory() -> None:
    """Give cached blocks back, so that the next case starts with what the device has."""
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def interleave(
    runs: Mapping[str, Run],
    stop: StopRule,
    *,
    done: Mapping[str, list[Mapping[str, float]]] | None = None,
    on_start: Callable[[str, int], None] | None = None,
    deadline: float = math.inf,
) -> Iterator[Sample]:
    """Yield samples of `runs`, round by round; every round runs each case once.

    `done` holds what an earlier, interrupted call measured (case -> values of rounds 0, 1, ...):
    those rounds are not measured again. A case that runs out of memory drops out and the others
    go on. The stop rule looks at the first metric of each case. `deadline` is in the seconds of
    `time.monotonic()`.
    """
    history = {case: [dict(v) for v in (done or {}).get(case, [])] for case in runs}
    alive = list(runs)
    began = time.monotonic()
    for warm in range(stop.warmup_rounds):
        if _finished(history, alive, stop):
            return
        for case in list(alive):
            if time.monotonic() > deadline:
                return
            if on_start:
                on_start(case, -1)
            sample = execute(case, runs[case], -1 - warm)
            yield Sample(case, -1, sample.status, sample.values, sample.detail)
            if sample.status == "oom":
                alive.remove(case)
    for round_index in range(stop.max_rounds):
        elapsed_s = time.monotonic() - began
        capped = elapsed_s > stop.time_cap_s and round_index >= min(stop.min_rounds, 3)
        if not alive or capped or _finished(history, alive, stop) or time.monotonic() > deadline:
            return
        for case in list(alive):
            if len(history[case]) > round_index:
                continue
            if on_start:
                on_start(case, round_index)
            sample = execute(case, runs[case], round_index)
            yield sample
            if sample.status == "oom":
                alive.remove(case)
            else:
                history[case].append(dict(sample.values))


def _finished(history: Mapping[str, list[dict]], alive: list[str], stop: StopRule) -> bool:
    if any(len(history[case]) < stop.min_rounds for case in alive):
        return False
    if all(len(history[case]) >= stop.max_rounds for case in alive):
        return True
    # equal numbers of rounds, or a pair would be broken
    if len({len(history[case]) for case in alive}) > 1:
        return False
    return all(
        stop.narrow_enough([next(iter(values.values())) for values in history[case]])
        for case in alive
    )
