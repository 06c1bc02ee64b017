"""How long will an operation take as separate operators and fused, and from which size does it pay?

For each operator max(bytes / bandwidth, arithmetic / rate), plus what its launch costs. Bandwidth
by working set, rates and launches are measured by `kernelprobes`, on shapes judged nowhere else.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from inferlab.errors import UserError
from inferlab.kernelcost import KernelCost, Operator


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does: bytes/s by working set, arithmetic, and seconds of a launch.

    `read` and `copy` are (working set in bytes, bytes/s), ascending; `copy` counts the bytes read
    and those written to fresh memory. `launch_s` is by how a kernel is started. With `overlaps` the
    device works while the host starts the next kernel: the longer of the two counts, not their sum.
    """

    read: tuple[tuple[int, float], ...]
    copy: tuple[tuple[int, float], ...]
    numbers_per_s: float
    exponentials_per_s: float
    flops_per_s: float
    launch_s: Mapping[str, float]
    overlaps: bool = False

    def memory_s(self, op: Operator, cold: bool = False) -> float:
        """Seconds to move the bytes of `op`; `cold`: at the largest set, beyond every cache.

        Bytes that are read and written in pairs move at the rate of a copy, what is read beyond
        them at the rate of reading.
        """
        if not op.bytes:
            return 0.0
        paired = min(op.bytes, 2 * op.write_bytes)
        at = math.inf if cold else op.bytes
        return paired / rate_at(self.copy, at) + (op.bytes - paired) / rate_at(self.read, at)

    def compute_s(self, op: Operator) -> float:
        """Seconds of the arithmetic of `op` that takes longest."""
        return max(
            op.numbers / self.numbers_per_s,
            op.exponentials / self.exponentials_per_s,
            op.flops / self.flops_per_s,
        )

    def floor_s(self, cost: KernelCost, cold: bool = False) -> float:
        """Seconds to move all bytes of `cost`, without arithmetic and launches."""
        return sum(self.memory_s(op, cold) for op in cost.operators)

    def work_s(self, cost: KernelCost, cold: bool = False) -> float:
        """Seconds of all operators, each the longer of moving and computing, without launches."""
        return sum(max(self.memory_s(op, cold), self.compute_s(op)) for op in cost.operators)

    def launching_s(self, cost: KernelCost, start: str | None = None) -> float:
        """Seconds of all launches; `start` replaces how each operator is started."""
        starts = [start or op.start for op in cost.operators]
        missing = sorted(set(starts) - set(self.launch_s))
        if missing:
            raise UserError(
                f"the launch cost of {missing[0]!r} was not measured; known: "
                f"{', '.join(sorted(self.launch_s))}"
            )
        return sum(self.launch_s[name] for name in starts)

    def predict_s(self, cost: KernelCost) -> float:
        """Expected seconds of one of many calls in a row, launches included, nothing flushed."""
        work_s, launching_s = self.work_s(cost), self.launching_s(cost)
        return max(work_s, launching_s) if self.overlaps else work_s + launching_s

    def predict_device_s(self, cost: KernelCost) -> float:
        """Expected seconds on the device alone, caches flushed, started from a CUDA graph."""
        return self.work_s(cost, cold=True) + self.launching_s(cost, "graph")

    def bandwidth_share(self, least: KernelCost, seconds: float, cold: bool = False) -> float:
        """Share of the measured bandwidth: the floor of the bytes of `least` over `seconds`.

        Above 1 where caches deliver more than the rate that was measured: reported, not clipped.
        """
        return self.floor_s(least, cold) / seconds


def rate_at(rates: Sequence[tuple[int, float]], working_set_bytes: float) -> float:
    """Bytes/s at a working set: between two measured ones on a straight line in logarithms, beyond
    the ends the nearest."""
    if not rates:
        raise UserError("no bandwidth was measured: a prediction needs one working set at least")
    if working_set_bytes <= rates[0][0]:
        return rates[0][1]
    for (low, before), (high, after) in zip(rates, rates[1:], strict=False):
        if working_set_bytes <= high:
            along = math.log(working_set_bytes / low) / math.log(high / low)
            return before * (after / before) ** along
    return rates[-1][1]


def crossover_size(gains: Mapping[int, float]) -> float:
    """Size from which a gain (baseline over variant) stays above 1: between two sizes on a straight
    line in logarithms; 0 when it is above 1 at every size, inf when it is not at the largest."""
    sizes = sorted(gains)
    if not sizes or min(gains.values()) <= 0:
        raise UserError("a crossover needs gains above zero by size")
    if gains[sizes[-1]] <= 1:
        return math.inf
    for low, high in zip(reversed(sizes[:-1]), reversed(sizes[1:]), strict=True):
        if gains[low] <= 1:
            rise = math.log(gains[high] / gains[low])
            along = -math.log(gains[low]) / rise
            return low * (high / low) ** along
    return 0.0


def predicted_crossover(
    seconds: Callable[[str, int], float], baseline: str, variant: str, low: int, high: int
) -> float:
    """Size from which `variant` is predicted to stay faster than `baseline`, between two sizes.

    `seconds(variant, size)` is a prediction; sizes grow by an eighth of a factor of two.
    """
    steps = range(math.floor(8 * math.log2(high / low)) + 1)
    sizes = sorted({round(low * 2 ** (step / 8)) for step in steps} | {high})
    return crossover_size({s: seconds(baseline, s) / seconds(variant, s) for s in sizes})
