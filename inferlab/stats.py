"""How much a set of timings says: percentiles, intervals, paired ratios, and when to refuse.

Chapter: chapters/01_metrics.md  Lab: labs/01_metrics.ipynb

Percentile ranks `q` are in percent (99 is p99). A percentile of 99 or above is refused when the
sample is smaller than MLPerf's early-stopping rule asks with no failure allowed, which is 459
values for p99: below that, the reported value is little more than the maximum.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from inferlab.errors import UserError

REFUSED_FROM_Q = 99.0
_RESAMPLES = 2000
_SEED = 20260101


class NotEnoughSamples(UserError):
    """A tail percentile was asked from too few values; says how many it needs."""

    def __init__(self, q: float, have: int, needed: int) -> None:
        super().__init__(f"p{q:g} needs at least {needed} samples, there are {have}")
        self.q = q
        self.have = have
        self.needed = needed


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval and the number of samples behind it.

    `low` and `high` are NaN when fewer than three samples allow no interval; a stopping rule that
    compares the width then keeps going, because comparisons with NaN are false.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def has_interval(self) -> bool:
        """Whether there were enough samples for an interval."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def half_width_ratio(self) -> float:
        """Half the interval's width over the value (NaN without an interval)."""
        return (self.high - self.low) / 2 / abs(self.value) if self.value else math.nan

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON-ready: NaN becomes None."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


class PercentileInterval(NamedTuple):
    """Which order statistics enclose the true percentile, as ranks and as percentages of n.

    `low_rank` and `high_rank` count from 1 in the sorted sample. `low_q` and `high_q` name the same
    values as percentiles of it by MLPerf's rule sorted[floor(n * q / 100)], so rank r reads
    100 * (r - 1) / n; the maximum reads 100. `coverage` is the probability that the interval
    holds the true percentile; it is below the confidence asked for when even the maximum of n
    values is too often below it, or the minimum above it.
    """

    low_rank: int
    high_rank: int
    low_q: float
    high_q: float
    coverage: float


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """y = coefficient * x ** exponent, fitted on logarithms; `r2` is of the logarithms."""

    exponent: float
    coefficient: float
    r2: float

    def predict(self, x):
        """y at x (number or array)."""
        return self.coefficient * np.asarray(x, dtype=float) ** self.exponent


def requests_for_percentile(q: float, confidence: float = 0.99, failures: int = 0) -> int:
    """Smallest number of requests that can show that a percentile meets a limit.

    With `failures` of n requests over the limit, "at least q percent are within it" holds at the
    given confidence when P(Binomial(n, 1 - q/100) <= failures) <= 1 - confidence. This is the
    early-stopping rule of MLPerf Inference (loadgen/early_stopping.cc) with tolerance 0: 459
    requests for p99 with no failure, 662 with one, 838 with two, 1307 with five.
    """
    from scipy.stats import binom

    if not 0 < q < 100:
        raise UserError(f"a percentile rank must lie between 0 and 100, not {q!r}")
    if not 0 < confidence < 1:
        raise UserError(f"confidence must lie between 0 and 1, not {confidence!r}")
    if failures < 0 or failures != int(failures):
        raise UserError(f"failures must be a whole number of at least 0, not {failures!r}")

    def shown(n: int) -> bool:
        return binom.cdf(failures, n, 1 - q / 100) <= 1 - confidence

    high = int(failures) + 1
    while not shown(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def percentile(values: Sequence[float] | np.ndarray, q: float) -> float:
    """The q-th percentile by linear interpolation between order statistics.

    Raises NotEnoughSamples for q from 99 up to below 100 (and its mirror at the low end) when
    `requests_for_percentile` asks for more values; q = 0 and q = 100 are the minimum and maximum
    and are never refused. Raises UserError for an empty sample or values that are not finite.
    """
    array = _finite_array(values)
    if not 0 <= q <= 100:
        raise UserError(f"a percentile rank must lie between 0 and 100, not {q!r}")
    tail = max(q, 100 - q)
    if REFUSED_FROM_Q <= tail < 100:
        needed = requests_for_percentile(tail)
        if array.size < needed:
            raise NotEnoughSamples(q, array.size, needed)
    return float(np.percentile(array, q))


def percentile_interval(n: int, q: float, confidence: float = 0.95) -> PercentileInterval:
    """Order statistics of n independent values that enclose the true q-th percentile.

    Free of any assumption about the distribution: the number of values below the percentile is
    Binomial(n, q/100), and each tail gets half of 1 - confidence. For p99: [p97.3, maximum] at
    n = 300, [p98.2, p99.6] at 1000, [p98.7, p99.3] at 5000.
    """
    from scipy.stats import binom

    if n < 1 or n != int(n):
        raise UserError(f"n must be a whole number of at least 1, not {n!r}")
    if not 0 < q < 100:
        raise UserError(f"a percentile rank must lie between 0 and 100, not {q!r}")
    p = q / 100
    tail = (1 - confidence) / 2
    # x(r) <= percentile iff at least r values lie below it. The largest r that fails with
    # probability at most `tail`, and the smallest r whose value lies above as surely.
    low = int(binom.ppf(tail, n, p))
    high = int(binom.ppf(1 - tail, n, p)) + 1
    low_rank, high_rank = max(low, 1), min(high, n)
    coverage = float(binom.cdf(high_rank - 1, n, p) - binom.cdf(low_rank - 1, n, p))
    low_q = 100 * (low_rank - 1) / n
    high_q = 100.0 if high_rank == n else 100 * (high_rank - 1) / n
    return PercentileInterval(low_rank, high_rank, low_q, high_q, coverage)


def median_interval(values: Sequence[float] | np.ndarray) -> Estimate:
    """The median and its 95 % bootstrap interval (percentile method, fixed seed).

    Fewer than three values give a median without an interval; equal values give an interval of
    width zero, which says that the clock or the counter could not tell them apart.
    """
    array = _finite_array(values)
    middle = float(np.median(array))
    if array.size < 3:
        return Estimate(middle, math.nan, math.nan, array.size)
    if np.ptp(array) == 0:
        return Estimate(middle, middle, middle, array.size)
    from scipy.stats import bootstrap

    result = bootstrap(
        (array,),
        np.median,
        confidence_level=0.95,
        n_resamples=_RESAMPLES,
        batch=max(1, 4_000_000 // array.size),  # bounds the resampling matrix to 32 MB
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(_SEED),
    )
    interval = result.confidence_interval
    return Estimate(middle, float(interval.low), float(interval.high), array.size)


def paired_ratio(
    baseline: Sequence[float] | np.ndarray, variant: Sequence[float] | np.ndarray
) -> Estimate:
    """variant / baseline: the median of the per-round ratios, with a 95 % bootstrap interval.

    Element i of both comes from round i of an interleaved run (A B A B ...), so that drift of the
    machine cancels within a round. For times, a ratio below 1 is a speed-up of 1/ratio. Raises
    UserError when the lengths differ or a baseline value is not above zero.
    """
    below, above = _finite_array(baseline), _finite_array(variant)
    if below.size != above.size:
        raise UserError(
            f"paired samples must come from the same rounds: {below.size} against {above.size}"
        )
    if (below <= 0).any():
        raise UserError("a baseline sample is zero or negative; its ratio means nothing")
    return median_interval(above / below)


def fit_power_law(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> PowerLaw:
    """Least squares of log y on log x; both must be above zero, with two different x."""
    xs, ys = _finite_array(x), _finite_array(y)
    if xs.size != ys.size:
        raise UserError(f"x and y must have the same length: {xs.size} against {ys.size}")
    if (xs <= 0).any() or (ys <= 0).any():
        raise UserError("a power law needs values above zero")
    log_x, log_y = np.log(xs), np.log(ys)
    if np.ptp(log_x) == 0:
        raise UserError("a power law needs at least two different x")
    dx, dy = log_x - log_x.mean(), log_y - log_y.mean()
    exponent = float(dx @ dy / (dx @ dx))
    coefficient = float(np.exp(log_y.mean() - exponent * log_x.mean()))
    residual = dy - exponent * dx
    total = float(dy @ dy)
    r2 = 1.0 if total == 0 else 1 - float(residual @ residual) / total
    return PowerLaw(exponent, coefficient, r2)


def _finite_array(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=float).ravel()
    if array.size == 0:
        raise UserError("there are no samples")
    if not np.isfinite(array).all():
        raise UserError("a sample is not a finite number")
    return array
