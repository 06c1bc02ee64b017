"""How long are the prompts and answers of real services?

A mix of lengths is two quantile tables and a rank correlation. Requests are drawn from it by
inverting the tables, so nothing of a trace but these figures is needed.
Data: Patel et al., "Splitwise", ISCA 2024 (Azure LLM inference trace 2023, CC BY 4.0).
Chapter: chapters/22_paged_attention.md    Lab: labs/22_paged_attention.ipynb
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inferlab.errors import UserError
from inferlab.paths import data_folder, shown_path

NAMES = ("azure-conv", "azure-code")  # shipped in data/workloads/
COLUMNS = ("ContextTokens", "GeneratedTokens")
MAX_TRACE_BYTES = 1 << 28  # unpacked; the published traces take less than 1 MB
MAX_CV = 5.0  # beyond it a table cannot hold the tail
_TABLE_RANKS = np.linspace(0, 1, 101)
_FINE_RANKS = 1001


class Lengths(NamedTuple):
    """Tokens of the prompt and of the answer of one request."""

    prompt_len: int
    output_len: int


@dataclass(frozen=True, slots=True)
class LengthMix:
    """Where prompt and output lengths of a service lie, and how they go together.

    `prompt_quantiles` and `output_quantiles` hold the tokens at evenly spaced ranks from 0 to 1;
    `rank_correlation` is Spearman's. Between two ranks a length is interpolated, in a straight
    line but above the last rank but one: there the tail is long, and bends so that the mean is that
    of the trace, where it is given.
    """

    name: str
    prompt_quantiles: tuple[float, ...]
    output_quantiles: tuple[float, ...]
    rank_correlation: float = 0.0
    prompt_mean: float | None = None
    output_mean: float | None = None
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for what in ("prompt", "output"):
            values = getattr(self, f"{what}_quantiles")
            rises = all(a <= b for a, b in zip(values, values[1:], strict=False))
            if len(values) < 2 or not all(map(math.isfinite, values)) or not rises:
                raise UserError(f"{self.name}: {what} quantiles must be finite and in order")
            if values[0] < 1:
                raise UserError(f"{self.name}: a {what} length must be 1 token or more")
        if not -1 <= self.rank_correlation <= 1:
            raise UserError(f"{self.name}: a rank correlation lies between -1 and 1")

    def sample(self, n: int, seed: int) -> list[Lengths]:
        """`n` requests: ranks from a Gaussian copula of that rank correlation, tables inverted."""
        if n < 1 or n != int(n):
            raise UserError(f"n must be a whole number of at least 1, not {n!r}")
        from scipy.stats import norm

        # Spearman's rho of a Gaussian copula is 6/pi asin(r/2) (Pearson 1907).
        normal = 2 * math.sin(math.pi * self.rank_correlation / 6)
        first, second = np.random.default_rng(seed).standard_normal((2, int(n)))
        second = normal * first + math.sqrt(max(0.0, 1 - normal**2)) * second
        prompts = _inverted(self.prompt_quantiles, norm.cdf(first), self.prompt_mean)
        outputs = _inverted(self.output_quantiles, norm.cdf(second), self.output_mean)
        return [Lengths(p, o) for p, o in zip(prompts, outputs, strict=True)]

    def scaled(self, factor: float) -> LengthMix:
        """The mix with all lengths times `factor`, at least 1 token; the name says so.

        For models that cannot take the lengths of a service: the shape of the mix stays, what
        depends on absolute lengths does not.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise UserError(f"the factor of lengths must be above 0, not {factor!r}")
        if factor == 1:
            return self

        def scale(value: float | None) -> float | None:
            return None if value is None else max(1.0, value * factor)

        return replace(
            self,
            name=f"{self.name}, lengths x {factor:g}",
            prompt_quantiles=tuple(map(scale, self.prompt_quantiles)),
            output_quantiles=tuple(map(scale, self.output_quantiles)),
            prompt_mean=scale(self.prompt_mean),
            output_mean=scale(self.output_mean),
        )


def constant(prompt_len: int, output_len: int) -> LengthMix:
    """The mix in which every request has the same lengths."""
    name = f"constant-{prompt_len}-{output_len}"
    return LengthMix(name, (float(prompt_len),) * 2, (float(output_len),) * 2)


def lognormal(mean_prompt: float, mean_output: float, cv: float) -> LengthMix:
    """Independent lognormal lengths of these means; `cv` is standard deviation over mean of both.

    cv 0 is the constant mix. The longest request lies at the rank 0.9999: a table has an end, a
    lognormal has none.
    """
    if not (math.isfinite(cv) and 0 <= cv <= MAX_CV):
        raise UserError(f"the cv of lengths must lie between 0 and {MAX_CV:g}, not {cv!r}")
    for name, mean in (("prompt", mean_prompt), ("output", mean_output)):
        if not (math.isfinite(mean) and mean >= 1):
            raise UserError(f"the mean {name} length must be at least 1 token, not {mean!r}")
    if cv == 0:
        return constant(round(mean_prompt), round(mean_output))
    from scipy.stats import norm

    sigma = math.sqrt(math.log1p(cv**2))
    ranks = np.clip(np.linspace(0, 1, _FINE_RANKS), 0, 1 - 1e-4)
    shape = np.exp(sigma * norm.ppf(np.maximum(ranks, 1e-4)) - sigma**2 / 2)  # of mean 1
    tables = [tuple(np.maximum(1.0, mean * shape).tolist()) for mean in (mean_prompt, mean_output)]
    name = f"lognormal-{mean_prompt:g}-{mean_output:g}-cv{cv:g}"
    return LengthMix(name, *tables, 0.0, float(mean_prompt), float(mean_output))


def load_mix(name: str, folder: Path | None = None) -> LengthMix:
    """A shipped mix by name (`NAMES`); a UserError that lists them when there is none."""
    tables = [quantiles(name, quantity, folder) for quantity in ("prompt_len", "output_len")]
    summary = _summary(name, folder)
    return LengthMix(
        name,
        *tables,
        float(summary["spearman_prompt_output"]),
        float(summary["prompt_mean"]),
        float(summary["output_mean"]),
        "Azure LLM inference trace 2023, Patel et al., ISCA 2024, CC BY 4.0",
    )


def quantiles(name: str, quantity: str, folder: Path | None = None) -> tuple[float, ...]:
    """Values at ranks 0, 1, ... 100 % of a shipped trace's "prompt_len", "output_len" (tokens) or
    "interarrival_s"; a UserError that lists the traces when there is none of that name."""
    if name not in NAMES:
        raise UserError(f"unknown mix {str(name)[:40]!r}; known: {', '.join(NAMES)}")
    rows = _rows((folder or data_folder() / "workloads") / "azure_llm_2023_quantiles.csv")
    trace = name.removeprefix("azure-")
    return tuple(
        float(row["value"]) for row in rows if row["trace"] == trace and row["quantity"] == quantity
    )


def load_trace(path: str | Path, name: str = "") -> LengthMix:
    """The mix of a trace of yours: a CSV (or .csv.gz) with the columns `COLUMNS`, a request a line.

    Only lengths are read, and of them 101 quantiles and the rank correlation are kept. A UserError
    names the line that is not two whole numbers of at least 1.
    """
    path = Path(path)
    pairs = []
    for line, row in enumerate(_rows(path), start=2):
        try:
            pair = [int(row[column]) for column in COLUMNS]
        except KeyError as error:
            raise UserError(
                f"{shown_path(path)} has no column {error}: a trace has {', '.join(COLUMNS)}"
            ) from None
        except (TypeError, ValueError):
            pair = [0]
        if min(pair) < 1:
            raise UserError(
                f"{shown_path(path)}:{line}: two whole numbers of at least 1 are needed"
            )
        pairs.append(pair)
    if len(pairs) < 2:
        raise UserError(f"{shown_path(path)} has fewer than two requests: nothing to draw from")
    return mix_of(pairs, name or path.name.partition(".")[0])


def mix_of(pairs: Sequence[Sequence[int]], name: str) -> LengthMix:
    """Quantile tables and rank correlation of (prompt, output) lengths."""
    lengths = np.array(pairs, dtype=float)
    tables = np.quantile(lengths, _TABLE_RANKS, axis=0)
    rho = 0.0
    if all(np.ptp(lengths, axis=0) > 0):
        from scipy.stats import spearmanr

        rho = float(spearmanr(*lengths.T).statistic)
    means = map(float, lengths.mean(axis=0))
    return LengthMix(name, tuple(tables[:, 0]), tuple(tables[:, 1]), rho, *means)


def interarrival_gaps(name: str, count: int, seed: int, folder: Path | None = None) -> np.ndarray:
    """[count] times between the requests of a shipped trace, drawn independently, in units of their
    mean. Clumps of requests are there, the waves of minutes that the service had are not."""
    table = quantiles(name, "interarrival_s", folder)
    mean_s = 1 / float(_summary(name, folder)["mean_rps"])
    ranks = np.random.default_rng([seed, 2]).random(count)
    return _at_ranks(table, ranks, mean_s) / mean_s


def _inverted(quantiles: Sequence[float], ranks: np.ndarray, mean: float | None) -> list[int]:
    """Whole lengths at `ranks` (0 to 1) of a table of evenly spaced quantiles with that mean."""
    found = _at_ranks(quantiles, ranks, mean)
    return np.maximum(1, np.rint(found)).astype(int).tolist()


def _at_ranks(quantiles: Sequence[float], ranks: np.ndarray, mean: float | None) -> np.ndarray:
    table, at = np.array(quantiles), np.linspace(0, 1, len(quantiles))
    found = np.interp(ranks, at, table)
    low, high = table[-2:]
    if mean is not None and high > low:
        below = (table[:-2] + table[1:-1]).sum() / 2  # of straight lines, in steps of a rank
        middle = mean * (table.size - 1) - below
        # low + (high - low) u^k has its mean 1 / (k + 1) of the way up
        bend = (high - low) / max(middle - low, (high - low) * 1e-2) - 1
        tail = ranks > at[-2]
        along = (ranks[tail] - at[-2]) / (1 - at[-2])
        found[tail] = low + (high - low) * along ** max(bend, 0.0)
    return found


def _summary(name: str, folder: Path | None) -> dict[str, str]:
    rows = _rows((folder or data_folder() / "workloads") / "azure_llm_2023_summary.csv")
    (summary,) = [row for row in rows if row["trace"] == name.removeprefix("azure-")]
    return summary


def _rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header; a UserError in one line where it cannot be read."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            text = file.read(MAX_TRACE_BYTES + 1)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"cannot read {shown_path(path)}: {why}") from None
    if len(text) > MAX_TRACE_BYTES:
        raise UserError(f"{shown_path(path)} is longer than {MAX_TRACE_BYTES} characters: cut it")
    try:
        return list(csv.DictReader(text.splitlines()))
    except csv.Error as error:
        raise UserError(f"{shown_path(path)} is no CSV file: {error}") from None
