"""What does each number format cost in quality, and which channels make it expensive?

Rows are judged against the float32 model on the same text and questions. A row of random weights
would mean nothing, so only the real model has any.
Chapter: chapters/11_low_precision.md    Lab: labs/11_low_precision.ipynb
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inferlab.backends.autocast import AutocastDecoder
from inferlab.compression.apply import smooth_decoder
from inferlab.compression.lowprecision import replace_linears
from inferlab.compression.observe import InputStats, observe
from inferlab.models.equivalent import load_equivalent
from inferlab.models.load import load_decoder
from inferlab.models.projections import PARTS
from inferlab.precisionbench import VARIANTS
from inferlab.precisioncost import RANKS
from inferlab.quality.compare import Reference, compare
from inferlab.quality.text import load_text
from inferlab.quantquality import Judge, open_judge
from inferlab.recorder import Case

__all__ = [
    "PARTS", "Judge", "Row", "build", "calibration_case", "channel_metrics", "is_emulated",
    "open_judge", "quality_case", "range_cases", "sweep_reference", "sweep_rows",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A number format on an equal copy of the model, smoothed or not."""

    variant: str
    copy: str = "plain"
    alpha: float | None = None  # of SmoothQuant's migration; None: not smoothed
    parts: tuple[str, ...] = PARTS  # that are smoothed

    @property
    def key(self) -> str:
        """Part of a case's name."""
        smoothed = "" if self.alpha is None else f"/a{self.alpha:g}-{len(self.parts)}"
        return f"{self.copy}/{self.variant}{smoothed}"


def build(row: Row, judge: Judge, calibration: torch.Tensor | None = None) -> Any:
    """The decoder of a row, made anew; `calibration` [n, T] replaces the judge's own."""
    variant = VARIANTS[row.variant]
    ids = judge.calibration if calibration is None else calibration
    decoder = load_equivalent(judge.model, row.copy, variant.dtype, judge.device, judge.seed)
    if row.alpha is not None:
        smooth_decoder(decoder, observe(decoder, ids), row.alpha, row.parts)
    if variant.linear:
        return replace_linears(decoder, variant.linear, ids)
    if variant.autocast:
        return AutocastDecoder(decoder)
    decoder.pack()
    return decoder


def is_emulated(row: Row, device: str) -> bool:
    """Whether the row is imitated on `device`, so that it has a quality and no time."""
    return torch.device(device).type not in VARIANTS[row.variant].on


def quality_case(row: Row, judge: Judge, reference: Reference | None = None) -> Case:
    """A row: built when its turn comes and let go afterwards.

    With another `reference` (a shorter text) only the text is judged, not the questions.
    """

    def run() -> dict[str, float]:
        decoder = build(row, judge)
        if reference is not None:
            return compare(decoder, reference).metrics()
        return judge.metrics(decoder)

    params = {
        "variant": row.variant, "copy": row.copy, "alpha": row.alpha, "model": judge.model,
        "num_parts": None if row.alpha is None else len(row.parts),
        "emulated": is_emulated(row, judge.device), "phase": "quality",
    }  # fmt: skip
    return Case(run, params)


def sweep_reference(judge: Judge, num_tokens: int) -> Reference:
    """The judge's reference, or one over the first `num_tokens` of its text where that is less."""
    if num_tokens >= judge.reference.text.num_tokens:
        return judge.reference
    exact = load_decoder(judge.model, "float32", judge.device, pack=False)
    text = judge.reference.text
    return Reference(exact, load_text(text.name, judge.tokenizer, num_tokens))


def calibration_case(
    row: Row, judge: Judge, reference: Reference, calibration: torch.Tensor
) -> Case:
    """A row whose ranges come from `calibration` [n, T] token ids."""

    def run() -> dict[str, float]:
        return compare(build(row, judge, calibration), reference).metrics()

    params = {
        "variant": row.variant, "copy": row.copy, "alpha": row.alpha, "model": judge.model,
        "calibration_tokens": calibration.numel(), "phase": "calibration",
    }  # fmt: skip
    return Case(run, params)


def range_cases(
    kind: str, stats: Mapping[str, InputStats], model: str
) -> Iterator[tuple[str, Case]]:
    """One case a projection of the layers: how uneven the ranges of its input channels are.

    `outlier_ratio`: the largest channel over the median one; `rank_0001_ratio` and so on: the
    channel of that rank over the median one, the largest first.
    """
    for name, found in stats.items():
        if name == "head":
            continue
        _, layer, part = name.split(".", 2)
        values = channel_metrics(found.absmax)
        params = {
            "kind": kind, "projection": name, "layer": int(layer), "part": part, "model": model,
            "phase": "ranges",
        }  # fmt: skip
        yield f"ranges/{kind}/{name}", Case(lambda values=values: values, params)


def channel_metrics(absmax: torch.Tensor) -> dict[str, float]:
    """Ranges [K] of channels as a record keeps them."""
    ordered = absmax.float().sort(descending=True).values
    relative = ordered / ordered.median().clamp(min=1e-12)
    return {
        "outlier_ratio": float(relative[0]),
        **{
            f"rank_{rank:04d}_ratio": float(relative[rank - 1])
            for rank in RANKS
            if rank <= len(relative)
        },
    }


def sweep_rows(variant: str, alphas: Sequence[float], copy: str = "plain") -> list[Row]:
    """Rows of one variant by alpha: norm-fed parts as in the paper, and all four parts."""
    fed_by_norms = ("attention.qkv", "mlp.gate_up")
    return [Row(variant, copy, alpha, parts) for parts in (fed_by_norms, PARTS) for alpha in alphas]
