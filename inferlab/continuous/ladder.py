"""To which of three techniques does a gain belong? All eight cells, every order, and an average.

A factor is a ratio of two cells that differ in one technique. Along one order the factors multiply
back to the whole; another order gives other factors. Their geometric mean over all orders (Shapley
1953, on logarithms) multiplies back as well and depends on no order.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from inferlab.errors import UserError

TECHNIQUES = ("scheduler", "store", "kernels")
Cell = frozenset[str]  # the techniques that are switched on
Ratio = Callable[[Cell, Cell], float]  # (baseline, variant) -> variant / baseline


def all_cells(techniques: Sequence[str] = TECHNIQUES) -> list[Cell]:
    """Every subset of `techniques`, the empty one first, all of them last."""
    sizes = range(len(techniques) + 1)
    return [frozenset(c) for n in sizes for c in itertools.combinations(techniques, n)]


def ratio_of(values: Mapping[Cell, float]) -> Ratio:
    """Ratios of plain values, one a cell; UserError when a cell is missing or not positive."""
    techniques = sorted(set().union(*values))
    for cell in all_cells(techniques):
        if not values.get(cell, 0) > 0:
            raise UserError(f"no positive value for the cell with {' and '.join(cell) or 'none'}")
    return lambda baseline, variant: values[variant] / values[baseline]


def factors(ratio: Ratio, order: Sequence[str]) -> dict[str, float]:
    """What each technique multiplies, when they are switched on in this order."""
    found, on = {}, frozenset()
    for technique in order:
        found[technique] = ratio(on, on | {technique})
        on = on | {technique}
    return found


def by_order(ratio: Ratio, techniques: Sequence[str] = TECHNIQUES) -> dict[tuple, dict[str, float]]:
    """The factors of every order."""
    return {order: factors(ratio, order) for order in itertools.permutations(techniques)}


def average_factors(ratio: Ratio, techniques: Sequence[str] = TECHNIQUES) -> dict[str, float]:
    """Geometric mean of each technique's factor over all orders."""
    orders = by_order(ratio, techniques).values()
    return {t: math.exp(_mean(math.log(found[t]) for found in orders)) for t in techniques}


def alone(ratio: Ratio, techniques: Sequence[str] = TECHNIQUES) -> dict[str, float]:
    """What each technique multiplies when it is switched on by itself."""
    return {t: ratio(frozenset(), frozenset({t})) for t in techniques}


def multiplies_to(found: Mapping[str, float], whole: float) -> float:
    """Product of factors over the whole; 1 when they multiply back."""
    return math.prod(found.values()) / whole


def whole(ratio: Ratio, techniques: Sequence[str] = TECHNIQUES) -> float:
    """All techniques over none."""
    return ratio(frozenset(), frozenset(techniques))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
