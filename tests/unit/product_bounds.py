"""How far may a product be from the exact one? From the formats alone, nothing guessed."""

BF16 = 2.0**-8  # a bfloat16 keeps 8 digits: rounding moves a number by at most this share of it
FLOAT32 = 2.0**-23  # the same for a tensor core's sum, which cuts off


def bound(x, weight, rounds_weights):
    """Largest error of each entry of x [M, K] W [N, K]^T with the exact weights in float64.

    Each weight may be rounded to bfloat16 (`rounds_weights`), K products are summed in float32
    in any order, and the result is rounded to bfloat16.
    """
    size = x.double().abs() @ weight.abs().t()  # sum of |x w|
    inner = FLOAT32 * (x.shape[1] + 4) + (BF16 if rounds_weights else 0.0)
    return size * inner * (1 + BF16) + (x.double() @ weight.t()).abs() * BF16 + 1e-35


def check(found, x, weight, rounds_weights):
    """Assert that `found` is the product within the bound."""
    error = (found.double() - x.double() @ weight.t()).abs()
    worst = (error / bound(x, weight, rounds_weights)).max().item()
    assert worst <= 1, f"error is {worst:.2f} of what rounding explains"
