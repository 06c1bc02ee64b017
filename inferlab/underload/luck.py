"""How much of the highest rate that a search finds is luck?

A search believes each of its runs, and a run is some dozens of requests at random times. The same
search on an emulated server, with other times, costs nothing: the spread of what it finds is what
the draw of arrivals alone does to the answer.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inferlab.lengths import Lengths
from inferlab.load.search import SEED_STEP, find_max_rate
from inferlab.metrics import SLO
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
