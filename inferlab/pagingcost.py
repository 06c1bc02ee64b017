"""How much of a key/value store holds nothing, under each way of reserving it?

A request of T prompt tokens and n output tokens holds T + 1 to T + n - 1 positions in its n - 1
decode steps (the last token is never fed back). What is reserved for it meanwhile depends on the
policy; waste is the share of the reserved positions that hold nothing, summed over those steps.
Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inferlab.errors import UserError
from inferlab.lengths import Lengths
from inferlab.models.config import ModelConfig
from inferlab.models.cost import dtype_bytes, kv_bytes_per_token, weight_bytes
from inferlab.records import Record

# Names of the contiguous ones as in Kwon et al., SOSP 2023: Orca (Max), (Pow2), (Oracle).
POLICIES = ("maximum", "power-of-two", "known", "paged")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Positions of a set of requests, summed over all their decode steps."""

    steps: int
    held: int
    reserved: int

    @property
    def waste_ratio(self) -> float:
        """Share of the reserved positions that hold no token."""
        return 1 - self.held / self.reserved

    @property
    def mean_held(self) -> float:
        """Positions that a running sequence holds, at a random step."""
        return self.held / self.steps

    @property
    def mean_reserved(self) -> float:
        """Positions that are reserved for a running sequence, at a random step."""
        return self.reserved / self.steps

    def num_seqs(self, budget_tokens: float) -> float:
        """Running sequences that fit a store of `budget_tokens` positions, on average."""
        return budget_tokens / self.mean_reserved


def footprint(
    requests: Sequence[Lengths], policy: str, max_len: int, block_size: int = 16
) -> Footprint:
    """What `requests` hold and what `policy` reserves for them.

    "maximum" reserves `max_len` positions; "known" what the request will take at the end;
    "power-of-two" the prompt and the answer's length rounded up to one; "paged" whole blocks of
    `block_size`, as they are needed.
    """
    prompts, outputs = _columns(requests, max_len)
    steps, ends = outputs - 1, prompts + outputs - 1
    held = _sum_to(ends) - _sum_to(prompts)
    if policy == "paged":
        reserved = block_size * (_blocks_to(ends, block_size) - _blocks_to(prompts, block_size))
    else:
        reserved = steps * reserved_at_entry(policy, prompts, outputs, max_len)
    if not steps.sum():
        raise UserError("answers of one token are never stored: give longer ones")
    return Footprint(int(steps.sum()), int(held.sum()), int(reserved.sum()))


def reserved_at_entry(policy: str, prompts, outputs, max_len: int):
    """Contiguous positions that a request gets when it enters; not for "paged"."""
    if policy == "maximum":
        return np.full_like(prompts, max_len)
    if policy == "known":
        return prompts + outputs - 1
    if policy == "power-of-two":
        doubled = 2 ** np.ceil(np.log2(outputs)).astype(np.int64)
        return np.minimum(prompts + doubled, max_len)
    raise UserError(f"unknown policy {str(policy)[:40]!r}; known: {', '.join(POLICIES)}")


def half_block_waste(mean_held: float, block_size: int) -> float:
    """The estimate by hand: each sequence leaves (P - 1) / 2 places of its last block empty."""
    empty = (block_size - 1) / 2
    return empty / (mean_held + empty)


def fitting(requests: Sequence[Lengths], max_len: int) -> list[Lengths]:
    """Those of `requests` that a store for texts of `max_len` positions can hold at all."""
    return [r for r in requests if sum(r) - 1 <= max_len]


def shortened(requests: Sequence[Lengths], divisor: int) -> list[Lengths]:
    """The same mix for a small machine: every length divided, rounded up."""
    return [Lengths(-(-r.prompt_len // divisor), -(-r.output_len // divisor)) for r in requests]


def budget_tokens(config: ModelConfig, dtype: str, memory_bytes: float, share: float = 0.9) -> int:
    """Positions that fit beside the weights in `share` of the memory of a device."""
    left = share * memory_bytes - weight_bytes(config, dtype)
    if left <= 0:
        raise UserError(f"{config.name} leaves no room for a cache: take a larger device")
    return int(left / kv_bytes_per_token(config, dtype))


def gather_ratio() -> float:
    """Bytes that attention moves when blocks are first copied together, over dense attention.

    Read, written, and read again, against read once: whatever the block size.
    """
    return 3.0


def table_ratio(config: ModelConfig, dtype: str, block_size: int) -> float:
    """The same for a kernel that follows the table: one entry of 4 bytes a block and head.

    Keys and values of a block of one head are 2 P D numbers.
    """
    block_bytes = 2 * block_size * config.head_dim * dtype_bytes(dtype)
    return 1 + 4 / block_bytes


def price_rows(record: Record, metric: str, cache: str = "paged") -> list[dict]:
    """What each paged case of `metric` takes over the dense one of its block, model and shape.

    Rows with block_size, batch_size, context_len, phase, model, the ratio as an Estimate and the
    predicted one: of bytes for attention alone, of seconds for whole steps. `cache` "gathered":
    of those cases that have a gather in front though a kernel could follow the table.
    """
    shape = ("phase", "model", "batch_size", "context_len")
    rows = []
    for name in record.cases(cache=cache):
        info = record.manifest.cases[name]
        if metric not in record.metrics(name):
            continue
        same = {key: info.params[key] for key in shape}
        for dense in record.cases(cache="static", **same):
            if record.manifest.cases[dense].block != info.block:
                continue
            expected = info.predicted.get("over_dense_ratio")
            if expected is None:
                baseline = record.manifest.cases[dense].predicted[metric]
                expected = info.predicted[metric] / baseline
            ratio = record.ratio(dense, name, metric)
            rows.append(same | {
                "block_size": info.params["block_size"], "ratio": ratio, "predicted": expected,
            })  # fmt: skip
    return sorted(rows, key=lambda row: (row["model"], row["context_len"], row["block_size"]))


def _columns(requests: Sequence[Lengths], max_len: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([tuple(r) for r in requests], dtype=np.int64).reshape(-1, 2)
    if not len(lengths) or lengths.min() < 1:
        raise UserError("requests need at least one token in and one out, and one request")
    longest = int(lengths.sum(axis=1).max()) - 1
    if longest > max_len:
        raise UserError(
            f"a request takes {longest} positions and max_len is {max_len}: raise max_len"
        )
    return lengths[:, 0], lengths[:, 1]


def _sum_to(n: np.ndarray) -> np.ndarray:
    """1 + 2 + ... + n."""
    return n * (n + 1) // 2


def _blocks_to(n: np.ndarray, block_size: int) -> np.ndarray:
    """ceil(1 / P) + ceil(2 / P) + ... + ceil(n / P)."""
    if block_size < 1 or block_size != int(block_size):
        raise UserError(f"block_size must be a whole number of at least 1, not {block_size!r}")
    whole, rest = n // block_size, n % block_size
    return block_size * _sum_to(whole) + rest * (whole + 1)
