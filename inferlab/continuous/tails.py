"""How far into the tail does a number of samples allow to look?

Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from inferlab.errors import UserError
from inferlab.stats import requests_for_percentile

RANKS = (99.0, 95.0, 90.0, 50.0)  # from the one that is wanted downwards


def highest_percentile(num_samples: int) -> float:
    """The highest of `RANKS` that `num_samples` values can show, by the rule of `stats`."""
    if num_samples < 1:
        raise UserError("there are no samples")
    for rank in RANKS[:-1]:
        if num_samples >= requests_for_percentile(rank):
            return rank
    return RANKS[-1]
