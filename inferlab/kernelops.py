"""What do the operations of chapter 26 take, and which functions compute each of them?

One set of inputs an operation, and for each variant a call without arguments: `eager` (separate
operators), `library` (PyTorch's own fused operator), `compile` (torch.compile of the separate
ones), `triton` (this package's kernel). Nothing is timed here.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from inferlab import kernels
from inferlab.errors import UserError
from inferlab.kernelcost import OPERATIONS
from inferlab.kernels import fused_reference
from inferlab.kernels.attention import attend
from inferlab.kernels.attention_reference import naive_attention
from inferlab.kvcache.view import StoreView
from inferlab.models.config import ModelConfig

Inputs = dict[str, Any]
EPS = 1e-5
# A product alone has nothing to fuse; on a GPU its kernel is judged by its bandwidth. PyTorch's
# norm is one kernel on a CUDA device only.
CPU_VARIANTS: dict[str, tuple[str, ...]] = {
    "add_rms_norm": ("eager", "compile"),
    "rope_store": ("eager", "compile"),
    "swiglu": ("eager", "compile"),
    "prefill_attention": ("eager", "library", "compile"),
    "decode_attention": ("eager", "library", "compile"),
}
CUDA_VARIANTS: dict[str, tuple[str, ...]] = {
    **{name: (*variants, "triton") for name, variants in CPU_VARIANTS.items()},
    "add_rms_norm": ("eager", "library", "compile", "triton"),
    "linear": ("library", "triton"),
}


def variants_of(operation: str, device: str) -> tuple[str, ...]:
    """Variants that can run on `device`; none for an operation that says nothing there."""
    if operation not in OPERATIONS:
        raise UserError(f"no operation {operation!r}: choose from {', '.join(OPERATIONS)}")
    if device == "cpu":
        return CPU_VARIANTS.get(operation, ())
    can_run = kernels.why_unavailable(device) is None
    return tuple(v for v in CUDA_VARIANTS[operation] if v != "triton" or can_run)


def operations_of(device: str) -> list[str]:
    """Operations that have variants to compare on `device`."""
    return [operation for operation in OPERATIONS if variants_of(operation, device)]


def separate_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of the sum, sum) of [M, H], every operation an operator of its own."""
    total = x + residual
    wide = total.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype), total


def rolled_rope(
    qkv: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, view: StoreView,
    slots: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Rotate by a roll of each head, as the decoder does: the fewest operators."""
    queries, keys, values = _heads(qkv, view)
    queries, keys = (fused_reference.rotate(x, cosines, sines) for x in (queries, keys))
    return _store(queries, keys, values, view, slots)


def halved_rope(
    qkv: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, view: StoreView,
    slots: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """The same by halves of each head: more operators, and loops that a compiler can vectorize."""
    queries, keys, values = _heads(qkv, view)
    queries, keys = (_rotate_halves(x, cosines, sines) for x in (queries, keys))
    return _store(queries, keys, values, view, slots)


def _heads(qkv: torch.Tensor, view: StoreView) -> tuple[torch.Tensor, ...]:
    """[M, (GR + 2G) D] -> queries [M, GR, D], keys and values [M, G, D]."""
    num_kv, head_dim = view.keys.shape[1], view.keys.shape[3]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    return heads.split((heads.shape[1] - 2 * num_kv, num_kv, num_kv), dim=1)


def _rotate_halves(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    (low, high), (cos_low, cos_high) = x.chunk(2, -1), cosines[:, None].chunk(2, -1)
    sin_low, sin_high = sines[:, None].chunk(2, -1)  # the first half is negated
    return torch.cat((low * cos_low + high * sin_low, high * cos_high + low * sin_high), dim=-1)


def _store(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: StoreView,
    slots: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Write keys and values [M, G, D] of one sequence to its places."""
    view.keys[0].index_copy_(1, slots, keys.transpose(0, 1))
    view.values[0].index_copy_(1, slots, values.transpose(0, 1))
    return queries


def naive_prefill(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention that writes its scores, in the dtype of its inputs."""
    return naive_attention(queries, keys, values, causal=True, dtype=None)


def naive_decode(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of one new token to all positions, scores written out."""
    return naive_attention(queries, keys, values, causal=False, dtype=None)


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return attend(queries, keys, values, None).view(queries.shape)


def _split_kv(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    view = StoreView(keys, values, _lengths(keys.shape[0], keys.shape[2], keys.device))
    return _kernel("split_kv", "decode_attention")(queries[:, 0], view)[:, None]


@functools.cache
def _lengths(batch_size: int, length: int, device: torch.device) -> torch.Tensor:
    return torch.full((batch_size,), length, dtype=torch.int32, device=device)


def _kernel(module: str, name: str) -> Callable[..., Any]:
    """A kernel of this package; triton is imported only now."""
    return getattr(importlib.import_module(f"inferlab.kernels.{module}"), name)


def function_of(operation: str, variant: str) -> Callable[..., Any]:
    """The function of a variant; what `compile` compiles for "compile"."""
    separate = {
        "add_rms_norm": separate_norm, "rope_store": rolled_rope, "swiglu": fused_reference.swiglu,
        "prefill_attention": naive_prefill, "decode_attention": naive_decode,
    }  # fmt: skip
    others = {
        ("add_rms_norm", "library"): lambda: fused_reference.add_rms_norm,
        ("prefill_attention", "library"): lambda: _attend,
        ("decode_attention", "library"): lambda: _attend,
        ("linear", "library"): lambda: F.linear,
        ("rope_store", "compile"): lambda: halved_rope,
        ("add_rms_norm", "triton"): lambda: _kernel("norm", "add_rms_norm"),
        ("rope_store", "triton"): lambda: _kernel("rope_store", "rotate_and_store"),
        ("swiglu", "triton"): lambda: _kernel("swiglu", "swiglu"),
        ("prefill_attention", "triton"): lambda: _kernel("flash_attention", "flash_attention"),
        ("decode_attention", "triton"): lambda: _split_kv,
        ("linear", "triton"): lambda: _kernel("linear", "small_linear"),
    }
    if (operation, variant) in others:
        return others[operation, variant]()
    if variant in ("eager", "compile") and operation in separate:
        return separate[operation]
    raise UserError(f"there is no variant {variant!r} of {operation!r}")


def make_inputs(
    operation: str, config: ModelConfig, dtype: torch.dtype, device: str, size: int,
    batch_size: int = 1, seed: int = 0,
) -> Inputs:  # fmt: skip
    """Random inputs of an operation by the names of its functions' arguments.

    `size` as of `kernelcost.cost`. The place for keys and values is empty and as long as the rows.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    rows, head_dim = size * batch_size, config.head_dim
    if operation == "add_rms_norm":
        hidden = config.hidden_size
        return {"x": normal(rows, hidden), "residual": normal(rows, hidden),
                "weight": normal(hidden), "eps": EPS}  # fmt: skip
    if operation == "swiglu":
        return {"gate_up": normal(rows, 2 * config.intermediate_size)}
    if operation == "linear":
        hidden = config.hidden_size
        return {"x": normal(rows, hidden), "weight": normal(2 * config.intermediate_size, hidden)}
    if operation == "rope_store":
        places = normal(2, 1, config.num_kv_heads, rows, head_dim).zero_()
        view = StoreView(places[0], places[1], _lengths(1, rows, places.device))
        return {"qkv": normal(rows, config.qkv_size), "cosines": normal(rows, head_dim),
                "sines": normal(rows, head_dim), "view": view,
                "slots": torch.arange(rows, device=device)}  # fmt: skip
    if operation not in OPERATIONS:
        raise UserError(f"no operation {operation!r}: choose from {', '.join(OPERATIONS)}")
    new = size if operation == "prefill_attention" else 1
    keys = normal(2, batch_size, config.num_kv_heads, size, head_dim)
    queries = normal(batch_size, new, config.num_q_heads, head_dim)
    return {"queries": queries, "keys": keys[0], "values": keys[1]}


def reference(operation: str, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """What the operation gives in float64, nothing rounded on the way."""
    wide = {name: _widened(value) for name, value in inputs.items()}
    if operation == "prefill_attention":
        return (naive_attention(**wide, causal=True),)
    if operation == "decode_attention":
        return (naive_attention(**wide, causal=False),)
    if operation == "linear":
        return (F.linear(**wide),)
    if operation == "rope_store":
        return outputs(rolled_rope(**wide), wide)
    return outputs(getattr(fused_reference, operation)(**wide), wide)


def outputs(result: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """All that a variant computed: what it returned and what it wrote to a store."""
    found = result if isinstance(result, tuple) else (result,)
    view = inputs.get("view")
    return found if view is None else (*found, view.keys, view.values)


def _widened(value: Any) -> Any:
    if isinstance(value, StoreView):
        return StoreView(value.keys.double(), value.values.double(), value.lengths)
    is_real = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if is_real else value
