"""Which change of basis spreads a few large channels over all of them, and can be undone?

Quantization gives every group of weights (or of activations) one scale, set by its largest value.
An orthogonal matrix Q keeps lengths and products, x W^T = (x Q)(W Q)^T, so a layer may be computed
in another basis with the same result; in a random basis every channel is a mix of all, and none is
much larger than the others.
Source: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", 2024.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import torch

from inferlab.errors import UserError

MAX_SIZE = 65_536  # 34 GB in float64: a larger one is a slip, not a hidden size
PALEY_PRIMES = (11, 19)  # seeds of order 12 and 20, for sizes that are no power of two


def random_orthogonal(size: int, seed: int = 0) -> torch.Tensor:
    """[size, size] float64, orthogonal, drawn uniformly (Haar) from the seed.

    Source: Mezzadri, "How to generate random matrices from the classical compact groups", 2007:
    the Q of a QR of normal numbers, its columns' signs taken from R's diagonal.
    """
    generator = _generator(size, seed)
    normal = torch.randn(size, size, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(normal)
    return q * r.diagonal().sign()


def random_permutation(size: int, seed: int = 0) -> torch.Tensor:
    """[size, size] float64: 0 and 1, one 1 a row; x @ P moves channels and mixes none."""
    order = torch.randperm(size, generator=_generator(size, seed))
    return torch.eye(size, dtype=torch.float64)[order]


def hadamard(size: int, seed: int | None = None) -> torch.Tensor:
    """[size, size] float64 of +-1/sqrt(size), orthogonal; a seed flips the signs of its rows.

    Built as a Kronecker product of orders 2 (Sylvester), 12 and 20 (Paley), so `size` must be
    a product of those: 512, 576 = 4 x 12 x 12, 1536, 2048, 2560, ... UserError for others.
    With random signs (QuaRot's choice) no input vector is systematically a column of it.
    """
    _check_size(size)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for order in _seed_orders(size):
        block = _SYLVESTER if order == 2 else _paley(order - 1)
        matrix = torch.kron(matrix, block)
    if seed is not None:
        signs = torch.randint(0, 2, (size, 1), generator=_generator(size, seed)) * 2 - 1
        matrix = matrix * signs
    return matrix / size**0.5


_SYLVESTER = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)


def _seed_orders(size: int) -> list[int]:
    """The orders 2, 12 and 20 whose product is `size`; a UserError when there are none."""
    orders, rest = [], size
    for order in (*(prime + 1 for prime in PALEY_PRIMES), 2):
        while rest % order == 0:
            orders.append(order)
            rest //= order
    if rest != 1:
        raise UserError(
            f"no Hadamard matrix of size {size} is known here: a size must be a product of "
            "2, 12 and 20 (512, 576, 1536, 2048, ...); use random_orthogonal instead"
        )
    return orders


def _paley(prime: int) -> torch.Tensor:
    """A Hadamard matrix of order prime + 1, for a prime of the form 4 m - 1 (Paley, 1933)."""
    squares = {(n * n) % prime for n in range(1, prime)}
    character = [0] + [1 if n in squares else -1 for n in range(1, prime)]
    jacobsthal = [[character[(i - j) % prime] for j in range(prime)] for i in range(prime)]
    skew = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    skew[1:, 1:] = torch.tensor(jacobsthal, dtype=torch.float64)
    return skew + torch.eye(prime + 1, dtype=torch.float64)


def _generator(size: int, seed: int) -> torch.Generator:
    _check_size(size)
    return torch.Generator().manual_seed(seed)


def _check_size(size: int) -> None:
    if not 1 <= size <= MAX_SIZE:
        raise UserError(f"a rotation of size {size} cannot be made: give 1 to {MAX_SIZE}")
