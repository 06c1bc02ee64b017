"""What does every figure of the book look like? Paper, letters, one colour a variant, units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from inferlab.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = "#fffefb"  # the page's own white, so that a figure also reads on a dark page
INK = "#2b2b2b"
QUIET = "#767676"

# seaborn's "colorblind" palette; tests/unit/test_plots.py compares.
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, PINK, GREY, YELLOW, SKY = (
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc",
    "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Style:
    """How one variant looks in every figure; marker and line tell it apart without colour."""

    color: str
    marker: str
    linestyle: str = "-"


# A variant keeps its look through the whole book. Add one here before a figure draws it.
STYLES: dict[str, Style] = {
    "hf": Style(ORANGE, "s"),
    "torch": Style(BLUE, "o"),
    "none": Style(RED, "v"),  # no KV cache
    "dynamic": Style(SKY, "^"),  # beside hf, whose cache is dynamic too, in chapter 20
    "static": Style(BLUE, "o"),
    "offloaded": Style(GREEN, "D"),
    "paged": Style(GREEN, "D"),
    "maximum": Style(GREY, "s"),  # how a key/value store is reserved
    "power-of-two": Style(PURPLE, "^"),
    "known": Style(ORANGE, "o"),
    # Who may enter a batch and when, beside static.
    "continuous": Style(ORANGE, "s"),
    "whole prompts": Style(SKY, "v", "--"),  # continuous, each prompt in a step of its own
    "kept rows": Style(GREY, "P"),  # static, finished rows computed to the end
    "stall": Style(PURPLE, "P"),
    "open": Style(BLUE, "o"),  # a client that keeps its schedule
    "waiting": Style(ORANGE, "s", "--"),  # a client that waits for each answer
    "float32": Style(BROWN, "^"),
    "bfloat16": Style(BLUE, "o"),
    "float16": Style(SKY, "X"),
    "autocast": Style(RED, "v"),  # float32 weights, converted at each step
    "autocast-kept": Style(RED, "s", "--"),  # converted once an answer
    "w8a8": Style(GREEN, "D"),
    "w8a8-unfused": Style(GREY, "P"),
    "w8a8-static": Style(YELLOW, "d", "--"),
    "fp8-tensor": Style(PINK, "p"),
    "fp8-row": Style(PURPLE, "h"),
    "norm-fed parts": Style(ORANGE, "s"),  # what SmoothQuant's migration is applied to
    "all parts": Style(BLUE, "o"),
    "smoothed": Style(GREEN, "D"),  # copies of a model: the same function, other ranges
    "prefill": Style(PURPLE, "^"),
    "decode": Style(GREEN, "o"),
    "bare": Style(GREY, "s"),
    "bench": Style(BLUE, "o"),
    "baseline": Style(GREY, "s"),
    "measured": Style(BLUE, "o"),
    # Weight formats and what multiplies by them; bfloat16 above is their baseline.
    "int8": Style(ORANGE, "s"),
    "int4-g32": Style(GREEN, "D"),
    "int8-naive": Style(ORANGE, "v", "--"),  # dequantize, then multiply
    "int4-naive": Style(GREEN, "^", "--"),
    "int4-torchao": Style(PURPLE, "P"),
    "int4-genai": Style(BROWN, "X"),  # ONNX Runtime GenAI
    "int4-g64": Style(GREEN, "o", "-."),
    "int4-g128": Style(GREEN, "s", ":"),
    "triton-w8a16": Style(ORANGE, "h"),
    "triton-w4a16": Style(GREEN, "h"),
    # Equal copies of one model, and how its weights were rounded.
    "plain": Style(GREY, "s"),
    "permuted": Style(PURPLE, "^"),
    "rotated": Style(BLUE, "o"),
    "rtn": Style(GREEN, "D"),  # round to nearest
    "awq": Style(PURPLE, "P"),
    "gptq": Style(SKY, "X"),
    "qat": Style(RED, "v"),
    # Layouts of keys and values: one head a query head, shared, one for all; made from latents.
    "mha": Style(RED, "v"),
    "gqa": Style(BLUE, "o"),
    "mqa": Style(ORANGE, "s"),
    "latent": Style(GREEN, "D"),
    "absorbed": Style(SKY, "X", "--"),  # keys made, values not
    "decoupled": Style(PURPLE, "P"),  # neither made: DeepSeek's
    # How an operation is computed: operator by operator, by a kernel of PyTorch, compiled, by ours.
    "eager": Style(GREY, "s"),
    "library": Style(ORANGE, "^"),
    "compile": Style(PURPLE, "D"),
    "compile-rolled": Style(PURPLE, "v", "--"),  # compiled in a form with slower loops
    "compile-symbols": Style(PINK, "X", "--"),  # every dimension a symbol
    "triton": Style(GREEN, "o"),
    # Rungs of the ladder of chapter 27, beside hf, static and compile.
    "growing": Style(SKY, "^"),
    "packed": Style(BROWN, "X"),
    "fixed": Style(YELLOW, "d", "--"),
    "graph": Style(GREEN, "P"),
    "max-autotune": Style(PURPLE, "p", "--"),
    "kernels": Style(RED, "v", "--"),
    "kernels-graph": Style(RED, "h"),
    # A batch that is held open for more to join; prompts of a batch, read padded or one by one.
    "held": Style(PURPLE, "P"),
    "padded": Style(RED, "v"),
    "alone": Style(GREY, "s"),
    # Traffic of one mean rate and mean lengths in other shapes.
    "constant-even": Style(GREY, "s"),
    "constant-poisson": Style(SKY, "^"),
    "lognormal-poisson": Style(ORANGE, "D", "-."),
    "conv-poisson": Style(BLUE, "o"),
    "conv-bursts": Style(RED, "v"),
    "code-gamma": Style(PURPLE, "P"),
}
COLORS: dict[str, str] = {name: style.color for name, style in STYLES.items()}

# Metrics and parameters as axes name them.
TITLES = {
    "ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "end-to-end latency",
    "time_s": "time", "step_s": "step", "per_token_s": "time per token",
    "output_tok_per_s": "output throughput", "mbu_ratio": "MBU", "mfu_ratio": "MFU",
    "read_bytes_per_s": "read bandwidth", "flops_per_s": "matrix rate", "kv_bytes": "KV cache",
    "batch_size": "batch size", "prompt_len": "prompt length (tokens)",
    "context_len": "context (tokens)", "working_set_bytes": "working set",
    "kld_mean_nats": "mean KL divergence",
}  # fmt: skip

_UNITS = (
    ("_bytes_per_s", "B/s", True),
    ("_flops_per_s", "FLOP/s", True),
    ("flops_per_s", "FLOP/s", True),
    ("_tok_per_s", "tok/s", False),
    ("_bytes", "B", True),
    ("_s", "s", True),
    ("_ratio", "", False),
    ("_nats", "nats", False),
)
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))


def use_style() -> None:
    """Set the book's defaults: letters that read at phone width, no frame, a quiet grid."""
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 4.0), "figure.dpi": 150, "savefig.dpi": 150,
            "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER,
            "figure.constrained_layout.use": True,
            "font.size": 13, "axes.labelsize": 13, "axes.titlesize": 13, "legend.fontsize": 12,
            "xtick.labelsize": 12, "ytick.labelsize": 12, "font.family": ["DejaVu Sans"],
            "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET,
            "xtick.color": INK, "ytick.color": INK,
            "axes.spines.top": False, "axes.spines.right": False,
            "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e3e1db",
            "grid.linewidth": 0.8, "axes.titlelocation": "left",
            "lines.linewidth": 2.0, "lines.markersize": 7, "legend.frameon": False,
            "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, GREY]),
        }
    )  # fmt: skip


def figure(width: float = 6.4, height: float = 4.0, columns: int = 1) -> tuple[Figure, Axes]:
    """A figure and its axes, sized for a phone (960 pixels wide at 150 dpi)."""
    use_style()
    return plt.subplots(1, columns, figsize=(width, height))


def style_of(variant: str) -> Style:
    """Look of `variant`; one that the book does not know yet is an error, not a random colour."""
    if variant not in STYLES:
        raise UserError(
            f"no colour for variant {variant!r}: add it to STYLES in inferlab/plots.py, "
            "so that it keeps one through the book"
        )
    return STYLES[variant]


def axis_unit(metric: str, values: Iterable[float]) -> tuple[float, str]:
    """(factor, label) that bring SI values of `metric` into a readable unit.

    The prefix fits the median of `values`: ("tpot_s", [0.02]) -> (1000.0, "TPOT (ms)").
    """
    title = TITLES.get(metric, metric.replace("_", " "))
    unit, prefixed = next(((u, p) for end, u, p in _UNITS if metric.endswith(end)), ("", False))
    finite = [abs(v) for v in values if np.isfinite(v) and v]
    if not unit or not prefixed or not finite:
        return 1.0, f"{title} ({unit})" if unit else title
    prefixes = [p for p in _PREFIXES if p[0] <= 1] if unit == "s" else _PREFIXES[:5]
    middle = float(np.median(finite))
    scale, prefix = next((p for p in prefixes if middle >= p[0]), prefixes[-1])
    return 1 / scale, f"{title} ({prefix}{unit})"
