"""When is a decode step with low-bit weights faster than one in bf16, by how much, and until when?

A step of B sequences at S positions is its products with weights, plus a rest that knows nothing
of the weights' format: attention, norms, sampling, launches. So formats are compared by their
products, and the rest decides how much of that is seen. No torch here.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from inferlab.errors import UserError
from inferlab.records import Record
from inferlab.stats import Estimate


@dataclass(frozen=True, slots=True)
class KernelLaw:
    """Seconds of all products of one step as a function of its rows.

    Reading the weights takes `read_s` however many rows there are, computing `row_s` for each.
    A kernel that does both at once takes the larger of the two, the others their sum.
    """

    read_s: float
    row_s: float
    overlaps: bool

    def seconds(self, rows: float) -> float:
        """Products of a step with `rows` rows."""
        compute_s = self.row_s * rows
        return max(self.read_s, compute_s) if self.overlaps else self.read_s + compute_s

    @property
    def turning_rows(self) -> float:
        """Rows from which computing takes longer than reading; inf where a row costs nothing."""
        return self.read_s / self.row_s if self.row_s else math.inf


@dataclass(frozen=True, slots=True)
class RestLaw:
    """Seconds of a step beside its products: a constant, for each row, for each cached token."""

    step_s: float
    row_s: float
    token_s: float

    def seconds(self, batch_size: float, context_len: float) -> float:
        """Rest of a step of `batch_size` sequences at `context_len` positions."""
        return self.step_s + batch_size * (self.row_s + context_len * self.token_s)


def fit_kernel(rows: Sequence[int], measured_s: Sequence[float]) -> KernelLaw:
    """The law with the smaller relative error over products measured at some numbers of rows.

    Two numbers are fitted; which of the two forms holds is decided by the same least squares.
    """
    x, y = _pairs(rows, measured_s, least=2)
    (read_s, row_s), _ = nnls(np.column_stack([1 / y, x / y]), np.ones_like(y))
    laws = [KernelLaw(float(read_s), float(row_s), False)]
    for flat in range(1, len(x)):  # the first `flat` points wait for the weights
        read_s = _least_squares(np.ones(flat), y[:flat])
        laws.append(KernelLaw(read_s, _least_squares(x[flat:], y[flat:]), True))
    return min(laws, key=lambda law: _relative_error(law, x, y))


def fit_rest(
    batch_sizes: Sequence[int],
    context_lens: Sequence[int],
    measured_s: Sequence[float],
    products: KernelLaw,
) -> RestLaw:
    """What measured steps take beyond their products; no term may be negative.

    Least squares of the error relative to the whole step. Needs three shapes or more, of which
    some differ in batch size and some in context.
    """
    b, y = _pairs(batch_sizes, measured_s, least=3)
    s = np.asarray(context_lens, dtype=float)
    excess = y - [products.seconds(rows) for rows in b]
    terms = np.column_stack([np.ones_like(y), b, b * s]) / y[:, None]
    scale = terms.max(axis=0)  # columns of one size: nnls stops at an absolute tolerance
    found, _ = nnls(terms / scale, excess / y)
    return RestLaw(*(float(v) for v in found / scale))


def step_s(products: KernelLaw, rest: RestLaw, batch_size: int, context_len: int) -> float:
    """Expected seconds of a decode step: its products and its rest."""
    return products.seconds(batch_size) + rest.seconds(batch_size, context_len)


def speedup(
    baseline: KernelLaw, variant: KernelLaw, rest: RestLaw, batch_size: int, context_len: int
) -> float:
    """Expected seconds of the baseline's step over those of the variant's."""
    slow, fast = (step_s(law, rest, batch_size, context_len) for law in (baseline, variant))
    return slow / fast


def crossover_batch_size(baseline: KernelLaw, variant: KernelLaw) -> float:
    """Batch size beyond which the variant's step takes longer; 1 if from the first, inf if never.

    The rest of the step is the same on both sides and cancels: context does not move this point.
    A variant that loses wherever either kernel turns loses from the first, even if its rows are so
    cheap that far beyond any batch it would win.
    """
    turns = [law.turning_rows for law in (baseline, variant) if law.overlaps]
    marks = sorted({1.0, *(turn for turn in turns if 1 < turn < math.inf)})
    losses = [variant.seconds(rows) - baseline.seconds(rows) for rows in marks]
    gains = [index for index, loss in enumerate(losses) if loss <= 0]
    if not gains:
        return 1.0
    # Between two marks, and behind the last one, both are straight lines.
    marks.append(2 * marks[-1])
    losses.append(variant.seconds(marks[-1]) - baseline.seconds(marks[-1]))
    last = gains[-1]
    slope = (losses[last + 1] - losses[last]) / (marks[last + 1] - marks[last])
    return float(marks[last] - losses[last] / slope) if slope > 0 else math.inf


def eta_ratio(speedup_ratio: float, byte_ratio: float) -> float:
    """Speed-up over byte ratio: 1 when a step is the reading of weights and nothing else."""
    return speedup_ratio / byte_ratio


def cell_key(variant: str, batch_size: int, context_len: int, model: str, block: str) -> str:
    """Name of the case of one cell: block/model/variant/b..-s..."""
    return f"{block}/{model}/{variant}/b{batch_size}-s{context_len}"


def laws_of(record: Record, model: str, block: str = "products") -> dict[str, KernelLaw]:
    """The law of each variant's products, fitted to the medians of a record's `products_s`."""
    table = record.table("products_s").query("block == @block and model == @model")
    return {
        str(variant): fit_kernel(group["rows"].tolist(), group["median"].tolist())
        for variant, group in table.groupby("variant", sort=False)
        if len(group) > 1
    }


def rest_of(record: Record, model: str, products: KernelLaw, block: str = "rest") -> RestLaw:
    """The rest of a step, fitted to the medians of the baseline's steps at shapes of their own."""
    table = record.table("tpot_s").query("block == @block and model == @model")
    shapes = (table[name].tolist() for name in ("batch_size", "context_len", "median"))
    return fit_rest(*shapes, products)


def speedups(
    record: Record, metric: str = "tpot_s", baseline: str = "bfloat16", block: str = "cells"
) -> list[dict]:
    """One row a cell: its parameters, measured speed-up over the baseline, predicted, error.

    Cells are cases of `block` with a `variant`; the baseline is the case of the same model, batch
    size and context. `predicted` and `error_ratio` are NaN for a variant that was not predicted.
    """
    cells: dict[tuple, dict[str, str]] = {}
    for name, info in record.manifest.cases.items():
        if info.block == block and "variant" in info.params and metric in record.metrics(name):
            where = tuple(info.params.get(k) for k in ("model", "batch_size", "context_len"))
            cells.setdefault(where, {})[str(info.params["variant"])] = name
    rows = []
    for variants in cells.values():
        slow = variants.pop(baseline, None)
        for variant, fast in variants.items() if slow else ():
            rows.append(_speedup_row(record, metric, slow, fast, variant))
    return rows


def _speedup_row(record: Record, metric: str, slow: str, fast: str, variant: str) -> dict:
    info, base = record.manifest.cases[fast], record.manifest.cases[slow]
    found: Estimate = record.ratio(fast, slow, metric)
    predicted = math.nan
    if metric in info.predicted and metric in base.predicted:
        predicted = base.predicted[metric] / info.predicted[metric]
    return {
        "case": fast, "block": info.block, **info.params, "variant": variant, "status": "ok",
        "median": found.value, "low": found.low, "high": found.high, "n": found.n,
        "predicted": predicted, "error_ratio": abs(predicted / found.value - 1),
    }  # fmt: skip


# What a point of the Pareto figure joins: the speed of a variant, the quality of a format and
# method, and the look of the line. A method changes the codes, not the time to multiply by them.
CONFIGURATIONS = (
    ("int8", "int8", "int8", "rtn", "int8"),
    ("int4-g32", "int4-g32", "int4-g32", "rtn", "int4-g32"),
    ("int4-g32, AWQ", "int4-g32", "int4-g32", "awq", "awq"),
    ("int4-g32, GPTQ", "int4-g32", "int4-g32", "gptq", "gptq"),
    ("int4-g32, fine-tuned", "int4-g32", "int4-g32", "qat", "qat"),
    ("int4, GenAI", "int4-genai", "int4-genai", "rtn", "int4-genai"),
)


def pareto(record: Record, model: str, context_len: int, copy: str = "rotated") -> list[dict]:
    """Speed-up and mean KL divergence of each configuration and batch size, one row a point."""
    cells = [
        row
        for row in speedups(record)
        if row["model"] == model and row["context_len"] == context_len
    ]
    points = []
    for name, variant, form, method, style in CONFIGURATIONS:
        for case in record.cases(copy=copy, format=form, method=method):
            if "kld_mean_nats" not in record.metrics(case):
                continue
            loss = record.estimate(case, "kld_mean_nats").value
            points += [
                {"name": name, "style": style, "batch_size": row["batch_size"],
                 "speedup": row["median"], "loss": loss}
                for row in cells
                if row["variant"] == variant
            ]  # fmt: skip
    return points


def median_error(rows: Sequence[Mapping]) -> float:
    """Median distance of predicted from measured speed-up over the rows that were predicted."""
    errors = [row["error_ratio"] for row in rows if math.isfinite(row["error_ratio"])]
    if not errors:
        raise UserError("no cell was predicted: there is no error to speak of")
    return float(np.median(errors))


def _pairs(x: Sequence[float], y: Sequence[float], least: int) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if xs.size != ys.size or xs.size < least:
        raise UserError(f"a fit needs {least} measured points or more, there are {ys.size}")
    if (xs < 1).any() or not (ys > 0).all():
        raise UserError("rows must be 1 or more and times above zero")
    order = np.argsort(xs)
    return (xs[order], ys[order]) if least == 2 else (xs, ys)


def _least_squares(x: np.ndarray, y: np.ndarray) -> float:
    """The c that makes c * x nearest to y, relative to y."""
    share = x / y
    return float(share.sum() / (share * share).sum())


def _relative_error(law: KernelLaw, x: np.ndarray, y: np.ndarray) -> float:
    expected = np.array([law.seconds(rows) for rows in x])
    return float((((expected - y) / y) ** 2).sum())
