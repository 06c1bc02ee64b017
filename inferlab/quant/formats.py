"""Which low-bit weight formats are there, and how many bytes does a weight take in each?

A weight w of a matrix [N, K] (N output channels, K inputs) is stored as a whole number, its code:
w ~ code * scale (+ offset). Weights that share a scale form a group. No torch here.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass

from inferlab.errors import UserError

SCALE_BYTES = 2  # scales and offsets are bfloat16 numbers


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How codes, scales and offsets stand for a weight matrix [N, K].

    `group_size`: how many inputs of one output channel share a scale; None: all K (one scale per
    channel); 0: one scale for the whole matrix. `symmetric`: code 0 is weight 0 and there is no
    offset; else every group also has an offset, the weight that code 0 stands for.
    """

    name: str
    bits: int
    group_size: int | None
    symmetric: bool

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UserError(f"a weight format has 2 to 8 bits, not {self.bits!r}")
        if self.group_size is not None and self.group_size < 0:
            raise UserError(f"a group has at least one weight, not {self.group_size!r}")

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code; codes are signed. Symmetric formats leave the lowest unused,
        so that a weight and its negative are rounded alike."""
        half = 2 ** (self.bits - 1)
        return (1 - half if self.symmetric else -half), half - 1

    def num_groups(self, in_features: int) -> int:
        """Groups in one output channel (1 where the whole channel or matrix shares a scale)."""
        if not self.group_size:
            return 1
        if in_features % self.group_size:
            raise UserError(
                f"{in_features} inputs do not divide into groups of {self.group_size} "
                f"({self.name}): use {_that_divide(in_features)}"
            )
        return in_features // self.group_size

    def matrix_bytes(self, out_features: int, in_features: int) -> float:
        """Bytes of a matrix [out, in]: codes, bf16 scales, and bf16 offsets when asymmetric."""
        rows = 1 if self.group_size == 0 else out_features
        scales = rows * self.num_groups(in_features) * (1 if self.symmetric else 2)
        return out_features * in_features * self.bits / 8 + scales * SCALE_BYTES

    def bytes_per_weight(self, in_features: int) -> float:
        """Bytes that one weight of a matrix with `in_features` inputs takes, scales included.

        A scale for the whole matrix is not counted: it takes no share of a single weight.
        """
        if self.group_size == 0:
            return self.bits / 8
        return self.matrix_bytes(1, in_features) / in_features


FORMATS: dict[str, WeightFormat] = {
    format.name: format
    for format in (
        WeightFormat("int8", 8, None, True),
        WeightFormat("int8-tensor", 8, 0, True),
        WeightFormat("int8-asym", 8, None, False),
        WeightFormat("int4-g32", 4, 32, False),
        WeightFormat("int4-g32-sym", 4, 32, True),
        WeightFormat("int4-g64", 4, 64, False),
        WeightFormat("int4-g128", 4, 128, False),
        WeightFormat("int4-channel", 4, None, False),
    )
}


def get_format(name: str) -> WeightFormat:
    """The format called `name`; a UserError that lists all of them when there is none."""
    if name not in FORMATS:
        raise UserError(f"unknown weight format {str(name)[:40]!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def _that_divide(in_features: int) -> str:
    """The named formats that `in_features` inputs allow, as a sentence part."""
    fitting = [
        format.name
        for format in FORMATS.values()
        if not format.group_size or in_features % format.group_size == 0
    ]
    return " or ".join(fitting)
