"""How many sequences fit a budget of cache memory, when they are really allocated and stepped?

Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from inferlab import layoutcost
from inferlab.errors import MeasurementError
from inferlab.hardware.probes import synchronize
from inferlab.layoutbench import Opened, described, filled_cache, step_work
from inferlab.recorder import Case
from inferlab.timing import is_out_of_memory
from inferlab.units import format_bytes

GPU_BUDGET_SHARE = 0.9  # of the free memory; the rest is for activations


def kv_budget(opened: Iterable[Opened], imposed_bytes: int) -> float:
    """Bytes that caches may take: imposed on a CPU, most of what is free now on a GPU."""
    device = next(iter(opened)).decoder.device
    if device.type != "cuda":
        return imposed_bytes
    torch.cuda.empty_cache()
    return GPU_BUDGET_SHARE * torch.cuda.mem_get_info(device)[0]


def fits(opened: Opened, batch_size: int, context_len: int, budget_bytes: float) -> bool:
    """Whether B sequences of S tokens can be allocated within the budget and take a step."""
    device = opened.decoder.device
    if layoutcost.cache_bytes(opened.layout, opened.dtype, batch_size, context_len) > (
        4 * budget_bytes
    ):
        return False  # a probe far beyond the budget is not worth the pages
    cache = None
    try:
        cache = filled_cache(opened, batch_size, context_len - 1)
        if cache.num_bytes() > budget_bytes:
            return False
        with torch.inference_mode():
            step_work(opened, cache)()
        synchronize(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        del cache
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def find_largest_batch(
    opened: Opened, context_len: int, budget_bytes: float, guess: int = 0
) -> int:
    """Sequences that really fit, while one more does not; `guess` is tried first.

    Without a right guess: from one on, doubled until they do not, then halved between.
    MeasurementError when not even one fits.
    """
    nearby = [fits(opened, guess + more, context_len, budget_bytes) for more in (0, 1) if guess > 0]
    if nearby == [True, False]:
        return guess
    if not fits(opened, 1, context_len, budget_bytes):
        raise MeasurementError(
            f"not one sequence of {context_len} tokens fits {format_bytes(budget_bytes)} in "
            f"{opened.layout.name}: raise the budget or shorten the context"
        )
    good, bad = 1, 2
    while fits(opened, bad, context_len, budget_bytes):
        good, bad = bad, 2 * bad
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(opened, middle, context_len, budget_bytes):
            good = middle
        else:
            bad = middle
    return good


def room_case(opened: Opened, context_len: int, budget_bytes: float) -> Case:
    """The largest batch of one layout within a budget: searched for, and predicted."""
    expected = layoutcost.largest_batch(opened.layout, opened.dtype, context_len, budget_bytes)

    def run() -> dict[str, float]:
        found = find_largest_batch(opened, context_len, budget_bytes, expected)
        return {"num_seqs": found}

    params = {**described(opened), "phase": "room", "context_len": context_len}
    return Case(run, {**params, "budget_bytes": budget_bytes}, {"num_seqs": expected})
