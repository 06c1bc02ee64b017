"""How much of what one run of a server shows is luck?

A run is some hundred requests at random times; a search for the highest rate believes each of its
runs. The same on an emulated server, with other draws, costs nothing: the spread of what it finds
is what the draw alone does to the answer.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from inferlab.lengths import Lengths
from inferlab.load.search import SEED_STEP, find_max_rate
from inferlab.metrics import SLO, ttft_s
from inferlab.stats import percentile
from inferlab.underload import traffic
from inferlab.underload.emulate import EmulatedServer


@dataclass(frozen=True, slots=True)
class EmulatedPoint:
    """What `find_max_rate` asks of a point: an emulated client is never late nor interrupted."""

    attainment_ratio: float
    is_void: bool = False
    interrupted: bool = False

    def meets(self, goodput_ratio: float) -> bool:
        """Whether at least this share of the requests met every limit of the SLO."""
        return self.attainment_ratio >= goodput_ratio


def found_rates(
    server: EmulatedServer,
    one: Lengths,
    slo: SLO,
    good_ratio: float,
    start_req_per_s: float,
    num_requests: Callable[[float], int],
    draws: int = 20,
    precision_ratio: float = 0.1,
    most_points: int = 6,
) -> list[float]:
    """Requests a second that each of `draws` searches finds, in order; 0 where none passed.

    Every request has the lengths of `one`; a run at some rate has `num_requests(rate)` of them.
    """

    def search(draw: int) -> float:
        def measure(rate: float, offset: int) -> EmulatedPoint:
            seed = draw * SEED_STEP**2 + offset
            return EmulatedPoint(
                server.attainment_ratio([one] * num_requests(rate), rate, slo, seed)
            )

        found = find_max_rate(measure, start_req_per_s, good_ratio, precision_ratio, most_points)
        return found.passing_req_per_s or 0.0

    return sorted(search(draw) for draw in range(draws))


def ttft_gaps(
    server: EmulatedServer,
    case: Mapping[str, Any],
    baseline: Mapping[str, Any],
    q: float = 99.0,
    draws: int = 20,
) -> list[float]:
    """q-th percentile of TTFT over that of the baseline, for so many draws of both, in order.

    `case` and `baseline` are the parameters of two rungs of one family in a record of lab 46.
    """

    def tail_s(params: Mapping[str, Any], draw: int) -> float:
        family, kind, count = (params[k] for k in ("family", "traffic", "num_requests"))
        service = traffic.service_lengths(family, count, params["divisor"], draw)
        lengths = traffic.rung_lengths(family, kind, service, draw)
        times_s = traffic.rung_times(kind, count, params["rate_req_per_s"], draw)
        return percentile([ttft_s(r) for r in server.open_loop(lengths, times_s).requests], q)

    return sorted(tail_s(case, draw) / tail_s(baseline, draw) for draw in range(draws))
