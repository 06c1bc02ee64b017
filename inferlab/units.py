"""How a quantity in SI units is written for a reader: prefix, unit, two or three digits.

Values are stored and computed without prefixes (seconds, bytes, FLOP); only text and axis labels
use these functions.
"""

import math

MILLI = 1e-3
MICRO = 1e-6
KILO = 1e3
MEGA = 1e6
GIGA = 1e9
TERA = 1e12

KIB = 2**10
MIB = 2**20
GIB = 2**30

MISSING = "n/a"

_SI_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_TIME_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_RATES = {"_tok_per_s": "tok/s", "_req_per_s": "req/s", "events_per_s": "events/s", "flops": "FLOP"}
_BINARY_UNITS = ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "B"))


def round_significant(value: float, digits: int = 3) -> float:
    """The value rounded to `digits` significant digits (zero and non-finite stay as they are)."""
    if value == 0 or not math.isfinite(value):
        return value
    return float(f"{value:.{digits - 1}e}")


def format_number(value: float | None, digits: int = 3) -> str:
    """A plain decimal number of `digits` significant digits, never in exponent notation.

    Digits before the decimal point are kept whole: 12345 with three digits reads "12,300".
    """
    if value is None or not math.isfinite(value):
        return MISSING
    rounded = round_significant(value, digits)
    magnitude = math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"


def _format_scaled(value: float | None, steps, unit: str, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    rounded = abs(round_significant(value, digits))
    # Rounding first keeps 999.96 from reading "1,000" in the smaller unit.
    scale, prefix = next((step for step in steps if rounded >= step[0]), steps[-1])
    if rounded == 0:
        scale, prefix = next((step for step in steps if step[0] == 1), steps[-1])
    return f"{format_number(value / scale, digits)} {prefix}{unit}".rstrip()


def format_seconds(value_s: float | None, digits: int = 3) -> str:
    """A duration in s, ms, µs or ns: 0.01234 -> "12.3 ms"; None or NaN -> "n/a"."""
    return _format_scaled(value_s, _TIME_UNITS, "", digits)


def format_bytes(value_bytes: float | None, digits: int = 3, *, binary: bool = False) -> str:
    """A number of bytes with decimal prefixes (kB, MB, GB), or binary ones (KiB, MiB, GiB)."""
    if binary:
        return _format_scaled(value_bytes, _BINARY_UNITS, "", digits)
    return _format_scaled(value_bytes, _SI_PREFIXES, "B", digits)


def format_rate(value: float | None, unit: str, digits: int = 3) -> str:
    """A rate with an SI prefix before its unit: (2.3e10, "B/s") -> "23.0 GB/s".

    Rates of countable things read better bare: for units that start with "tok", "req" or "events"
    no prefix is used ("12,300 tok/s").
    """
    if unit.startswith(("tok", "req", "events")):
        return _format_scaled(value, ((1.0, ""),), unit, digits)
    return _format_scaled(value, _SI_PREFIXES, unit, digits)


def format_ratio(value: float | None, digits: int = 3) -> str:
    """A ratio as "1.53x"; None or NaN -> "n/a"."""
    text = format_number(value, digits)
    return text if text == MISSING else f"{text}x"


def format_metric(name: str, value: float | None) -> str:
    """A metric in the unit that its name ends in: ("ttft_s", 0.0123) -> "12.3 ms"; None -> "n/a".

    A name that ends in "ratio" or "share" is a percentage; whole numbers stay as they are.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    for suffix, unit in _RATES.items():
        if name.endswith(suffix):
            return format_rate(value, unit)
    if name.endswith("_s"):
        return format_seconds(value)
    if name.endswith(("_ratio", "share")):
        return f"{value:.0%}"
    return format_number(value) if isinstance(value, float) else str(value)
