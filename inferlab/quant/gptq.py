"""Can the weights that are not rounded yet make up for the error of those that are?

Rounding to nearest minimizes the error of each weight; a layer's error is that of its output,
||X (W - W')^T||^2, and inputs are correlated. GPTQ rounds one input channel after the other and
moves the channels still to come so that the output stays closest: with H = X^T X, rounding channel
q by e_q = (w_q - w'_q) / [H^-1]_qq asks for w_r -= e_q [H^-1]_qr for each r > q. The rows of the
Cholesky factor of H^-1 hold all those terms, with the finished channels taken out.
Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022, algorithm 1; after Hassibi and Stork, "Optimal Brain Surgeon", 1993.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

from dataclasses import replace

import torch

from inferlab.errors import UserError
from inferlab.quant.formats import WeightFormat
from inferlab.quant.grid import Quantized, encode, quantize


def quantize_gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    format: WeightFormat,
    damping: float = 0.01,
    block: int = 128,
) -> Quantized:
    """Round [N, K] `weight` in the order of its inputs, each column's error spread over the rest.

    `hessian` [K, K] is X^T X of the layer's inputs, up to a factor. The grid of a group is fixed
    when its first column is reached, from the weights as they then are; one scale per channel or
    matrix comes from the weights as given. Columns of a `block` are updated at once, those behind
    it only at its end, in one product. Raises UserError for weights that `quantize` refuses and
    for a Hessian that cannot be inverted.
    """
    channels, inputs = weight.shape
    factor = inverse_factor(hessian, inputs, damping).to(weight.device)
    grid = quantize(weight, format)  # of the whole, and the check of weight and format
    block = _whole_groups(block, format)
    # [K, N]: a column of the weight lies together in memory, since each is read K times.
    left = weight.detach().float().t().contiguous()
    codes = torch.empty(inputs, channels, dtype=torch.int8, device=weight.device)
    scales, offsets = [], []
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        errors = torch.zeros(end - start, channels, device=weight.device)
        for q in range(start, end):
            if format.group_size and q % format.group_size == 0:
                grid = _group_grid(left[q : q + format.group_size], format)
                scales.append(grid.scales)
                offsets.append(grid.offsets)
            code, rounded = _round(left[q], grid)
            codes[q] = code
            error = (left[q] - rounded) / factor[q, q]
            left[q + 1 : end] -= torch.outer(factor[q, q + 1 : end], error)
            errors[q - start] = error
        left[end:] -= factor[start:end, end:].t() @ errors
    codes = codes.t().contiguous()
    if not format.group_size:
        return Quantized(codes, grid.scales, grid.offsets, format)
    joined = None if format.symmetric else torch.cat(offsets, dim=1)
    return Quantized(codes, torch.cat(scales, dim=1), joined, format)


def inverse_factor(hessian: torch.Tensor, size: int, damping: float = 0.01) -> torch.Tensor:
    """[K, K] upper triangular U with U^T U = (H + damping mean(diag H) I)^-1, float32.

    A channel that the calibration data never used (a zero on the diagonal) says nothing about the
    others: it gets a diagonal of 1 and is rounded to nearest. Raises UserError for another size,
    inf or NaN, an empty Hessian, and one that damping does not make invertible.
    """
    if tuple(hessian.shape) != (size, size):
        raise UserError(
            f"the Hessian is {list(hessian.shape)} and the layer has {size} inputs: "
            "observe this layer's own inputs"
        )
    if not 0 <= damping < 1:
        raise UserError(f"damping is {damping:g}: give a share of the mean diagonal, 0 to 1")
    damped = hessian.detach().float().clone()
    diagonal = damped.diagonal()
    if not torch.isfinite(damped).all() or (diagonal < 0).any():
        raise UserError("the Hessian holds inf, NaN or a negative square: observe again")
    alive = diagonal > 0
    if not alive.any():
        raise UserError("the Hessian is all zero: the calibration data never reached this layer")
    diagonal += damping * diagonal[alive].mean() * alive
    diagonal[~alive] = 1.0
    lower, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed or not torch.isfinite(upper).all():
        raise UserError(
            f"the Hessian of {size} inputs cannot be inverted with damping {damping:g}: "
            "give more calibration tokens or a damping of 0.01 or more"
        )
    return upper


def _round(column: torch.Tensor, grid: Quantized) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [N] of one column [N] and the weights they stand for; grid scales are [N, 1]."""
    code = encode(column[:, None], grid.scales, grid.offsets, grid.format)[:, 0]
    rounded = code * grid.scales[:, 0]
    return code, rounded if grid.offsets is None else rounded + grid.offsets[:, 0]


def _group_grid(columns: torch.Tensor, format: WeightFormat) -> Quantized:
    """The grid of one group, [size, N] of its weights: as one scale per channel of this slice."""
    return quantize(columns.t(), replace(format, group_size=None))


def _whole_groups(block: int, format: WeightFormat) -> int:
    """`block`, enlarged so that no group is cut: its grid needs all its columns up to date."""
    if block < 1:
        raise UserError(f"a block of {block} columns cannot be updated: give 1 or more")
    group = format.group_size or 1
    return -(-block // group) * group
