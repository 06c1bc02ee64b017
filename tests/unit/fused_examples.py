"""Inputs of the fused kernels for tests on a CPU and a GPU, and how far a result may be off."""

import torch
from tiny_models import tiny

from inferlab.kernels import fused_reference
from inferlab.kvcache.base import CacheShape
from inferlab.kvcache.bucketed import BucketedCache
from inferlab.kvcache.paged import PagedCache
from inferlab.kvcache.view import StoreView
from inferlab.models.config import RopeScaling
from inferlab.models.decoder import Decoder
from inferlab.models.layers import rope_table

DTYPES = (torch.float32, torch.bfloat16)
# Half a step, as a share of a number.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SCALED = RopeScaling(factor=8.0, original_max_context_len=32)


def normal(*shape, seed=0, dtype=torch.float32, scale=1.0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)


def check(found, exact, slack=0.0):
    """Off by one rounding to the dtype, and `slack` (of float32 sums), at most."""
    error = (found.double() - exact).abs()
    allowed = exact.abs() * (ROUNDING[found.dtype] * 1.01 + 2.0**-21) + slack + 1e-30
    assert (error <= allowed).all(), (error / allowed).max().item()


def check_norm(norm, dtype, rows, size, add, device="cpu"):
    x = normal(rows, size, dtype=dtype, device=device)
    weight = normal(size, seed=2, dtype=dtype, device=device)
    residual = normal(rows, size, seed=1, dtype=dtype, device=device) if add else None
    normed, total = norm(x, residual, weight, 1e-5)
    if add:
        assert torch.equal(total, x + residual)
    else:
        assert total is x
    exact, _ = fused_reference.add_rms_norm(total.double(), None, weight.double(), 1e-5)
    assert normed.dtype == dtype
    check(normed, exact, slack=exact.abs() * 2.0**-21)


def check_swiglu(swiglu, dtype, rows, inner, device="cpu"):
    gate_up = normal(rows, 2 * inner, dtype=dtype, scale=3.0, device=device)
    gate_up[0, 0], gate_up[0, 1] = -200.0, 200.0
    found = swiglu(gate_up)
    assert found.dtype == dtype and found.shape == (rows, inner)
    check(found, fused_reference.swiglu(gate_up.double()), slack=2e-6)


def store(dense, batch, num_kv, block_size, head_dim, dtype, device="cpu"):
    """A store with strides of its own: a dense one, or blocks dealt out in a mixed order."""
    factory = {"dtype": dtype, "device": device}
    lengths = torch.zeros(batch, dtype=torch.int32, device=device)
    if dense:
        keys = torch.full((batch, num_kv, block_size, head_dim), 9.0, **factory)
        return StoreView(keys, keys.clone(), lengths)
    width = 3
    both = torch.full((2, batch * width + 2, block_size, num_kv, head_dim), 9.0, **factory)
    order = torch.randperm(batch * width + 2, generator=torch.Generator().manual_seed(4))
    tables = order[: batch * width].view(batch, width).int().to(device)
    keys, values = both[0].transpose(1, 2), both[1].transpose(1, 2)  # [N, G, P, D]
    return StoreView(keys, values, lengths, tables)


ROTATIONS = [  # B, T, query heads, G, D, norms of queries and keys
    (1, 1, 9, 3, 64, False), (3, 1, 7, 1, 128, True), (2, 5, 4, 4, 16, True),
    (5, 13, 6, 2, 8, False),
]  # fmt: skip


def check_rotation(kernel, dtype, dense, shape, device="cpu"):
    """One of ROTATIONS by `kernel`, with a scaled rope and, where T > 1, two padded columns."""
    batch, new, num_q, num_kv, head_dim, norms = shape
    config = tiny(head_dim=head_dim, rope_theta=500.0, rope_scaling=SCALED)
    positions = torch.arange(batch)[:, None] * 2 + torch.arange(new)
    if new > 1:
        positions[0] -= 2
    positions = positions.to(device)
    view = store(dense, batch, num_kv, 32 if dense else 8, head_dim, dtype, device)
    expected = StoreView(view.keys.double(), view.values.double(), view.lengths, view.block_tables)
    slots = view.slots(positions)
    angles = rope_table(config, 64, torch.float32, device).to(dtype)
    cosines, sines = angles[positions.flatten().clamp(min=0)].chunk(2, dim=-1)
    qkv = normal(batch * new, (num_q + 2 * num_kv) * head_dim, dtype=dtype, device=device)
    weights = [
        normal(head_dim, seed=seed, dtype=dtype, device=device) if norms else None
        for seed in (5, 6)
    ]
    exact = qkv.double()
    wanted = fused_reference.rotate_and_store(
        exact, cosines.double(), sines.double(), expected, slots,
        *(None if weight is None else weight.double() for weight in weights), 1e-6, keep_keys=True,
    )  # fmt: skip
    slack = 2.0**-20
    for keep in (False, True):
        given = qkv.clone()
        queries = kernel(given, cosines, sines, view, slots, *weights, 1e-6, keep_keys=keep)
        check(queries, wanted, slack)
        check(view.keys, expected.keys, slack)
        assert torch.equal(view.values, expected.values.to(dtype))
        check(given, exact if keep else qkv.double(), slack)


def check_product(product, dtype, shape, extras, device="cpu", **options):
    """x [M, K] by weights [N, K] in one go with what `extras` names."""
    rows, channels, inputs = shape
    factory = {"dtype": dtype, "device": device}
    gated = "gated" in extras
    x = normal(rows, inputs, **factory)
    weight = normal(channels * (1 + gated), inputs, seed=1, scale=0.1, **factory)
    bias = normal(weight.shape[0], seed=2, **factory) if "bias" in extras else None
    residual = normal(rows, channels, seed=3, **factory) if "residual" in extras else None
    found = product(x, weight, bias, residual, gated, **options)
    assert found.dtype == dtype and found.shape == (rows, channels)
    wide = (None if part is None else part.double() for part in (bias, residual))
    exact = fused_reference.linear(x.double(), weight.double(), *wide, gated)
    size = (x.double().abs() @ weight.double().abs().t()).max()
    # float32 sums of K numbers; a tensor core cuts off, and a gate multiplies what was summed
    slack = size * (1 + size * gated) * 2.0**-22
    if rows > 16:  # rounded after each operation
        slack = slack + 3 * ROUNDING[dtype] * (size if gated else exact.abs() + 4)
    check(found, exact, slack)


@torch.no_grad()
def random_decoder(config, dtype=torch.float32, device="cpu"):
    """Weights large enough that the tokens differ from each other."""
    decoder = Decoder(config, dtype, device)
    for seed, (name, weight) in enumerate(decoder.named_parameters()):
        near = 1.0 if "norm" in name else 0.0
        weight.copy_(near + normal(*weight.shape, seed=seed, scale=0.15))
    return decoder


def cache_of(kind, decoder, batch, capacity, block_size=4):
    config = decoder.config
    shape = CacheShape(config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
    if kind == "bucketed":
        return BucketedCache(shape, decoder.dtype, decoder.device)
    return PagedCache(shape, decoder.dtype, decoder.device, block_size=block_size)
