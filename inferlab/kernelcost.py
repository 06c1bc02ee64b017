"""What does an operation move, compute and launch: as separate operators, and as one kernel?

Counted from shapes before anything is timed. Every operator reads its inputs from memory and writes
its result back; a fused one reads what comes from outside and writes what goes out.
Letters: B sequences, T new tokens, S positions, M rows, H hidden size, I inner size, D head size,
G key/value heads, R query heads each.
Chapter: chapters/26_fused_kernels.md    Lab: labs/26_fused_kernels.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig
from inferlab.models.cost import dtype_bytes

FLOAT32_BYTES, INDEX_BYTES = 4, 8
# How a variant's kernel is started: by PyTorch's dispatcher, or as the call of a compiled function
# or of a Triton kernel. Matrix products of attention ("product") start one way in any of them.
STARTS = {"eager": "eager", "library": "eager", "compile": "compile", "triton": "triton"}


@dataclass(frozen=True, slots=True)
class Operator:
    """One launch: bytes read and written, and arithmetic by the unit that does it."""

    name: str
    read_bytes: float
    write_bytes: float
    numbers: float = 0.0  # that pass through the vector units, once each
    exponentials: float = 0.0
    flops: float = 0.0  # of matrix products
    start: str = "eager"

    @property
    def bytes(self) -> float:
        """Bytes read and written."""
        return self.read_bytes + self.write_bytes


@dataclass(frozen=True, slots=True)
class KernelCost:
    """The operators of one variant of an operation, in their order."""

    operators: tuple[Operator, ...]

    @property
    def launches(self) -> int:
        """Kernels that are started."""
        return len(self.operators)

    @property
    def read_bytes(self) -> float:
        """Bytes that all operators read."""
        return sum(op.read_bytes for op in self.operators)

    @property
    def write_bytes(self) -> float:
        """Bytes that all operators write."""
        return sum(op.write_bytes for op in self.operators)

    @property
    def bytes(self) -> float:
        """Bytes that all operators read and write."""
        return self.read_bytes + self.write_bytes

    @property
    def flops(self) -> float:
        """FLOPs of matrix products."""
        return sum(op.flops for op in self.operators)


def add_rms_norm(variant: str, config: ModelConfig, dtype: str, rows: int) -> KernelCost:
    """x [M, H] + residual, and the RMSNorm of the sum; the sum is kept.

    Separately, in fewer bits than 32: add, widen, square, mean, add eps, rsqrt, scale, narrow,
    weight. PyTorch's own norm is one kernel on a CUDA device; on a CPU it is the same chain again.
    """
    size, wide = dtype_bytes(dtype), FLOAT32_BYTES
    n, weight = rows * config.hidden_size, config.hidden_size * size
    add = _pass("add", 2 * n * size, n * size, n)
    if variant == "library":
        norm = _pass("rms_norm", n * size + weight, n * size, 2 * n)
        return KernelCost((add, norm))
    if variant != "eager":
        fused = _pass("add_rms_norm", 2 * n * size + weight, 2 * n * size, 2 * n)
        return _fused(variant, fused)
    small = rows * wide
    widen = _pass("to", n * size, n * wide, n)
    narrow = _pass("to", n * wide, n * size, n)
    steps = [
        _pass("pow", n * wide, n * wide, n),
        _pass("mean", n * wide, small, n),
        _pass("add", small, small, rows),
        _pass("rsqrt", small, small, rows),
        _pass("mul", n * wide + small, n * wide, n),
    ]
    if size < wide:
        steps = [widen, *steps, narrow]
    return KernelCost((add, *steps, _pass("mul", n * size + weight, n * size, n)))


def swiglu(variant: str, config: ModelConfig, dtype: str, rows: int) -> KernelCost:
    """[M, 2 I] -> silu(gate) * up [M, I]; separately: silu, then a product."""
    n = rows * config.intermediate_size
    moved = n * dtype_bytes(dtype)
    if variant == "eager":
        silu = Operator("silu", moved, moved, n, exponentials=n)
        return KernelCost((silu, _pass("mul", 2 * moved, moved, n)))
    return _fused(variant, Operator("swiglu", 2 * moved, moved, n, exponentials=n))


def rope_store(variant: str, config: ModelConfig, dtype: str, rows: int) -> KernelCost:
    """Rotate queries and keys of [M, (GR + 2G) D], and write keys and values where attention reads.

    Separately: roll, product with the cosines, product with the sines added, for queries and for
    keys, and two indexed writes.
    """
    size = dtype_bytes(dtype)
    table, slots = rows * config.head_dim * size, rows * INDEX_BYTES
    queries, keys = rows * config.q_size, rows * config.kv_size
    if variant != "eager":
        moved = (queries + 2 * keys) * size
        fused = _pass("rope_store", moved + 2 * table + slots, moved, queries + 2 * keys)
        return _fused(variant, fused)
    steps = []
    for n in (queries, keys):
        moved = n * size
        steps += [
            _pass("roll", moved, moved, n),
            _pass("mul", moved + table, moved, n),
            _pass("addcmul", 2 * moved + table, moved, n),
        ]
    write = _pass("index_copy", keys * size + slots, keys * size, keys)
    return KernelCost((*steps, write, write))


def prefill_attention(
    variant: str, config: ModelConfig, dtype: str, prompt_len: int, batch_size: int = 1
) -> KernelCost:
    """Causal attention of T tokens to themselves, [B, T, GR, D].

    Separately it writes B GR T T scores and passes over them four times. PyTorch's own kernel keeps
    them, but gets keys and values repeated for each query head. A compiled function still calls two
    products and fuses what lies between.
    """
    size, pairs = dtype_bytes(dtype), prompt_len**2
    rows = batch_size * prompt_len
    q, kv = rows * config.q_size * size, rows * config.kv_size * size
    scores = batch_size * config.num_q_heads * pairs
    written = scores * size
    flops = 2 * scores * config.head_dim
    copy = _pass("clone", q, q, q / size)
    products = (
        _product(q + kv, written, flops),
        _product(written + kv, q, flops),
    )
    if variant == "eager":
        mask = pairs * config.group_size
        between = (
            _pass("mul", written, written, scores),
            _pass("ones", 0, pairs, pairs),
            _pass("tril", pairs, pairs, pairs),
            _pass("clone", pairs, mask, mask),
            _pass("bitwise_not", mask, mask, mask),
            _pass("masked_fill", written + mask, written, scores),
            Operator("_softmax", written, written, scores, exponentials=scores),
        )
        return KernelCost((copy, products[0], *between, products[1], copy))
    if variant == "compile":
        between = Operator("softmax", written, written, scores, scores, start="compile")
        return KernelCost((products[0], between, products[1]))
    visible = batch_size * config.num_q_heads * prompt_len * (prompt_len + 1) / 2
    flops = 4 * visible * config.head_dim
    if variant == "library" and config.group_size > 1:
        repeat = _pass("clone", kv, q, q / size)
        kept = Operator("sdpa", 3 * q, q, exponentials=visible, flops=flops)
        return KernelCost((repeat, repeat, kept))
    return _fused(variant, Operator("attention", q + 2 * kv, q, 0.0, visible, flops))


def decode_attention(
    variant: str, config: ModelConfig, dtype: str, context_len: int, batch_size: int = 1
) -> KernelCost:
    """One new token a sequence attends to S positions: keys and values are read once.

    The scores are R numbers a position and group, keys and values 2 D: fusing hardly saves bytes.
    """
    size = dtype_bytes(dtype)
    q = batch_size * config.q_size * size
    keys = batch_size * context_len * config.kv_size * size
    scores = batch_size * context_len * config.num_q_heads
    written, flops = scores * size, 2 * scores * config.head_dim
    products = (
        _product(q + keys, written, flops),
        _product(written + keys, q, flops),
    )
    if variant == "eager":
        scale = _pass("mul", written, written, scores)
        softmax = Operator("_softmax", written, written, scores, exponentials=scores)
        return KernelCost((products[0], scale, softmax, products[1]))
    if variant == "compile":
        between = Operator("softmax", written, written, scores, scores, start="compile")
        return KernelCost((products[0], between, products[1]))
    return _fused(variant, Operator("attention", q + 2 * keys, q, 0.0, scores, 2 * flops))


def linear(variant: str, config: ModelConfig, dtype: str, rows: int) -> KernelCost:
    """Few rows [M, H] times the gate and up weights [2 I, H]: as many bytes in any variant."""
    size, outputs = dtype_bytes(dtype), 2 * config.intermediate_size
    read = (outputs + rows) * config.hidden_size * size
    flops = 2 * rows * outputs * config.hidden_size
    return _fused(variant, Operator("linear", read, rows * outputs * size, flops=flops))


OPERATIONS: dict[str, Callable[..., KernelCost]] = {
    "add_rms_norm": add_rms_norm,
    "rope_store": rope_store,
    "swiglu": swiglu,
    "prefill_attention": prefill_attention,
    "decode_attention": decode_attention,
    "linear": linear,
}
ATTENTION = ("prefill_attention", "decode_attention")
SIZES = {"prefill_attention": "prompt length", "decode_attention": "context"}  # else: rows


def cost(
    operation: str, variant: str, config: ModelConfig, dtype: str, size: int, batch_size: int = 1
) -> KernelCost:
    """The operators of `variant` (eager, library, compile, triton) of `operation`.

    `size` is rows of the step, of attention the prompt length or the context of each of
    `batch_size` sequences.
    """
    if operation not in OPERATIONS:
        raise UserError(f"no operation {operation!r}: choose from {', '.join(OPERATIONS)}")
    if variant not in STARTS:
        raise UserError(f"no variant {variant!r}: choose from {', '.join(STARTS)}")
    if min(size, batch_size) < 1:
        raise UserError(f"a size and a batch size of at least 1 are needed, not {size, batch_size}")
    count = OPERATIONS[operation]
    if operation in ATTENTION:
        return count(variant, config, dtype, size, batch_size)
    return count(variant, config, dtype, size * batch_size)


def least_bytes(
    operation: str, config: ModelConfig, dtype: str, size: int, batch_size: int = 1
) -> float:
    """Bytes that one kernel must move: what comes from outside and what goes out."""
    return cost(operation, "triton", config, dtype, size, batch_size).bytes


def _pass(name: str, read_bytes: float, write_bytes: float, numbers: float) -> Operator:
    return Operator(name, read_bytes, write_bytes, numbers)


def _product(read_bytes: float, write_bytes: float, flops: float) -> Operator:
    return Operator("bmm", read_bytes, write_bytes, flops=flops, start="product")


def _fused(variant: str, operator: Operator) -> KernelCost:
    return KernelCost((replace(operator, start=STARTS[variant]),))
