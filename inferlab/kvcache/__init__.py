"""Where keys and values are kept between steps, and what that costs in time and memory.

Chapter: chapters/20_kv_cache.md    Lab: labs/20_kv_cache.ipynb
"""

from __future__ import annotations

import torch

from inferlab.errors import UserError
from inferlab.kvcache.base import CacheShape, CacheTooSmall, KVCache
from inferlab.kvcache.bucketed import BucketedCache
from inferlab.kvcache.dynamic import DynamicCache
from inferlab.kvcache.none import NoCache
from inferlab.kvcache.offloaded import OffloadedCache
from inferlab.kvcache.paged import PagedCache
from inferlab.kvcache.static import StaticCache

CACHES = {
    "none": NoCache,
    "dynamic": DynamicCache,
    "static": StaticCache,
    "offloaded": OffloadedCache,
    "bucketed": BucketedCache,
    "paged": PagedCache,
}

__all__ = [
    "CACHES",
    "BucketedCache",
    "CacheShape",
    "CacheTooSmall",
    "DynamicCache",
    "KVCache",
    "NoCache",
    "OffloadedCache",
    "PagedCache",
    "StaticCache",
    "make_cache",
]


def make_cache(
    kind: str, shape: CacheShape, dtype: torch.dtype, device: torch.device | str
) -> KVCache:
    """The cache called `kind`, empty; a UserError that lists the kinds when there is none."""
    if kind not in CACHES:
        raise UserError(f"unknown cache {str(kind)[:40]!r}; known: {', '.join(CACHES)}")
    return CACHES[kind](shape, dtype, torch.device(device))
