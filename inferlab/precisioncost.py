"""Which phase does each low-precision format help, by how much, and where do outliers sit?

A prefill runs its layers over all tokens of the prompts and its head over one row a sequence; a
decode step runs both over one row a sequence. So a format is its products, layers and head apart,
and a rest that is the same for all. Reads records; no torch here.
Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from inferlab import quantcost
from inferlab.errors import UserError
from inferlab.hardware.datasheets import Datasheet
from inferlab.models.config import ModelConfig
from inferlab.models.cost import StepCost, decode_cost, prefill_cost
from inferlab.quantcost import RestLaw
from inferlab.records import Record

BASELINE = "bfloat16"
METRICS = {"prefill": "ttft_s", "decode": "tpot_s"}
QUALITY = (
    "kld_mean_nats", "kld_stderr_nats", "kld_p99_nats", "top1_ratio", "perplexity", "task_score",
    "task_stderr_ratio",
)  # fmt: skip
RANKS = (1, 2, 3, 5, 8, 16, 32, 64, 128, 256, 512)  # of a layer's channels, the largest first

# Bytes that the product of one weight moves, and the rate that it computes at, by the datasheet.
PAPER = {
    "float32": (4, "float32"),
    "autocast": (4 + 2 + 2, "bfloat16"),  # read, write the copy, read the copy
    "bfloat16": (2, "bfloat16"),
    "float16": (2, "float16"),
    "int8": (1, "bfloat16"),  # weight-only: codes are widened, then multiplied
    "w8a8": (1, "int8"),
    "fp8-row": (1, "float8_e4m3fn"),
}


@dataclass(frozen=True, slots=True)
class RowsCurve:
    """Seconds of products by rows, as measured at some numbers of rows: straight lines between.

    One law of two numbers does not fit from one row to hundreds: libraries change their kernels on
    the way. Beyond the last point its last slope goes on.
    """

    rows: tuple[float, ...]  # rising
    measured_s: tuple[float, ...]

    @property
    def row_s(self) -> float:
        """What a row adds where there are many."""
        if len(self.rows) < 2:
            return self.measured_s[-1] / self.rows[-1]
        return (self.measured_s[-1] - self.measured_s[-2]) / (self.rows[-1] - self.rows[-2])

    def seconds(self, rows: float) -> float:
        """Expected seconds over `rows` rows."""
        beyond = max(0.0, rows - self.rows[-1])
        return float(np.interp(rows, self.rows, self.measured_s)) + beyond * max(0.0, self.row_s)


@dataclass(frozen=True, slots=True)
class PhaseLaws:
    """Products of one variant: its layers and its head, each as a function of their rows."""

    layers: RowsCurve
    head: RowsCurve

    def decode_s(self, rest: RestLaw, batch_size: int, context_len: int) -> float:
        """Expected seconds of a decode step; `rest` is that of decode steps."""
        products_s = self.layers.seconds(batch_size) + self.head.seconds(batch_size)
        return products_s + rest.seconds(batch_size, context_len)

    def prefill_s(self, rest: RestLaw, batch_size: int, prompt_len: int) -> float:
        """Expected seconds of a prefill; `rest` counts tokens, and pairs of them for attention."""
        tokens = batch_size * prompt_len
        products_s = self.layers.seconds(tokens) + self.head.seconds(batch_size)
        return products_s + rest.seconds(tokens, prompt_len)


def laws_of(record: Record, model: str) -> dict[str, PhaseLaws]:
    """The products of each variant, from the medians of a record's `products_s`."""
    table = record.table("products_s").query("phase == 'products' and model == @model")
    found: dict[str, dict[str, RowsCurve]] = {}
    for (variant, part), rows in table.sort_values("rows").groupby(["variant", "part"], sort=False):
        curve = RowsCurve(tuple(rows["rows"]), tuple(rows["median"]))
        found.setdefault(str(variant), {})[str(part)] = curve
    return {name: PhaseLaws(**parts) for name, parts in found.items() if len(parts) == 2}


def rests_of(record: Record, model: str, laws: PhaseLaws) -> dict[str, RestLaw]:
    """What the baseline's prefill and decode take beside its products, from shapes of their own."""
    rests = {}
    for phase, metric in METRICS.items():
        table = record.table(metric).query(f"block == 'rest-{model}' and phase == @phase")
        batches, lengths = table["batch_size"], table["context_len"].tolist()
        rows = (batches if phase == "decode" else batches * table["context_len"]).tolist()
        without_head = [
            seconds - laws.head.seconds(b)
            for b, seconds in zip(batches, table["median"].tolist(), strict=True)
        ]
        rests[phase] = quantcost.fit_rest(rows, lengths, without_head, laws.layers)
    return rests


def paper_speedup(
    config: ModelConfig,
    sheet: Datasheet,
    variant: str,
    phase: str,
    batch_size: int,
    context_len: int,
) -> float:
    """Floor of the baseline over floor of `variant`, by the datasheet: nothing but bytes and FLOPs.

    Attention and the cache stay in bf16 in every row; the head counts as one of the products.
    """
    slow, fast = (
        _paper_s(config, sheet, name, phase, batch_size, context_len)
        for name in (BASELINE, variant)
    )
    return slow / fast


def _paper_s(
    config: ModelConfig, sheet: Datasheet, variant: str, phase: str, batch: int, length: int
) -> float:
    if variant not in PAPER:
        raise UserError(f"no paper model of {str(variant)[:40]!r}; known: {', '.join(PAPER)}")
    bytes_per_weight, rate = PAPER[variant]
    step = decode_cost if phase == "decode" else prefill_cost
    cost = step(config, BASELINE, batch, length)
    attention = cost.flops - _product_flops(config, phase, batch, length)
    moved = cost.weight_bytes * bytes_per_weight / 2 + cost.kv_read_bytes + cost.kv_write_bytes
    slow = sheet.flops_per_s["bfloat16"]
    compute_s = (cost.flops - attention) / sheet.flops_per_s[rate] + attention / slow
    return max(moved / sheet.read_bytes_per_s, compute_s)


def _product_flops(config: ModelConfig, phase: str, batch_size: int, length: int) -> float:
    """FLOPs of the products with weights: what a step costs beyond its attention."""
    one = decode_cost(config, BASELINE, 1, 1).flops - 4 * config.q_size * config.num_layers
    if phase == "decode":
        return batch_size * one
    head = 2 * config.vocab_size * config.hidden_size
    return batch_size * (length * (one - head) + head)


def speedups(record: Record, phase: str) -> list[dict]:
    """Rows of `quantcost.speedups` for "prefill" (TTFT) or "decode" (TPOT), of all models."""
    blocks = dict.fromkeys(info.block for info in record.manifest.cases.values())
    return [
        row
        for block in blocks
        if block.startswith(f"{phase}-")
        for row in quantcost.speedups(record, METRICS[phase], BASELINE, block)
    ]


def bound_counts(record: Record, variant: str, phase: str) -> dict[str, tuple[int, int, int]]:
    """Cells in which the baseline is memory- or compute-bound: (cells, variant faster, slower).

    Faster and slower mean that the whole interval of the ratio is. A baseline cell states its
    floors in `predicted`, as `memory_s` and `compute_s`.
    """
    counts = {"memory": [0, 0, 0], "compute": [0, 0, 0]}
    bounds = {
        _where(info.params): info.predicted
        for info in record.manifest.cases.values()
        if info.params.get("variant") == BASELINE and info.params.get("phase") == phase
    }
    for row in speedups(record, phase):
        floors = bounds.get(_where(row), {})
        if row["variant"] != variant or "memory_s" not in floors:
            continue
        bound = "memory" if floors["memory_s"] >= floors["compute_s"] else "compute"
        low, high = (row[k] if math.isfinite(row[k]) else row["median"] for k in ("low", "high"))
        for place, found in enumerate((True, low > 1, high < 1)):
            counts[bound][place] += found
    return {bound: tuple(found) for bound, found in counts.items()}


def floors(cost: StepCost, read_bytes_per_s: float, flops_per_s: float) -> dict[str, float]:
    """`memory_s` and `compute_s` of a step, as a baseline cell states them."""
    return {"memory_s": cost.bytes / read_bytes_per_s, "compute_s": cost.flops / flops_per_s}


def quality_table(record: Record, block: str = "quality") -> pd.DataFrame:
    """One row a case of `block`: variant, copy, alpha, emulated, and every quality metric."""
    rows = {}
    for case, info in record.manifest.cases.items():
        if info.block == block:
            values = {name: record.estimate(case, name).value for name in record.metrics(case)}
            params = {key: info.params[key] for key in ("variant", "copy", "alpha", "emulated")}
            rows[case] = {**params, **{name: values.get(name, math.nan) for name in QUALITY}}
    return pd.DataFrame.from_dict(rows, orient="index")


def range_ratios(record: Record, copies: Iterable[str], layer: str) -> dict[str, dict[int, float]]:
    """Copy -> rank -> range over the median channel's, of the inputs of one projection."""
    found: dict[str, dict[int, float]] = {}
    for copy in copies:
        for case in record.cases(phase="ranges", kind=copy, projection=layer):
            names = [name for name in record.metrics(case) if name.startswith("rank_")]
            found[copy] = {
                int(name.split("_")[1]): record.estimate(case, name).value for name in names
            }
    return found


def outliers(record: Record) -> pd.DataFrame:
    """Columns kind, part, layer, median: the largest input channel over the median one."""
    table = record.table("outlier_ratio").query("phase == 'ranges'")
    return table[["kind", "part", "layer", "median"]]


def _where(params: Mapping) -> tuple:
    return tuple(params.get(key) for key in ("model", "batch_size", "context_len"))
