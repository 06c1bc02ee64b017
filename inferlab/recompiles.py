"""Which changes between two calls make `torch.compile` start again, and how often?

Dynamo guards what it saw: shapes, dtypes, numbers of Python. A call that differs is traced anew. It
is counted here without a compiler behind it, which takes a fraction of a second.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from inferlab.decoding.compiled import decode_step
from inferlab.errors import UserError
from inferlab.models.decoder import Decoder

Call = Sequence[Any]
TRIGGERS = ("another token", "another batch size", "a growing cache", "a Python number", "a dtype")


def count_compilations(
    function: Callable, calls: Iterable[Call], dynamic: bool | None = None
) -> int:
    """Graphs that Dynamo makes of `function` over `calls`, each a tuple of arguments.

    `dynamic` as of torch.compile: None turns what changed once into a symbol, False never does.
    Raises UserError when the function cannot be traced whole.
    """
    found = 0

    def backend(graph, inputs):
        nonlocal found
        found += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)
    try:
        with torch.no_grad():
            for arguments in calls:
                compiled(*arguments)
    except torch._dynamo.exc.TorchDynamoException as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the step cannot be compiled: {line[:160]}") from error
    finally:
        torch._dynamo.reset()
    return found


def step_calls(decoder: Decoder, trigger: str, num_calls: int) -> tuple[Callable, list[Call]]:
    """A step of `decoder` and `num_calls` calls of it in which one thing changes.

    "a Python number" is the cache's length as an attribute that the step reads, as the static
    cache does; everything else is a tensor of fixed shape.
    """
    if trigger not in TRIGGERS:
        raise UserError(f"unknown trigger {str(trigger)[:40]!r}; known: {', '.join(TRIGGERS)}")
    config, device, first = decoder.config, decoder.device, 8
    decoder.reserve(first + num_calls)

    def call(index: int, batch: int, width: int, dtype: torch.dtype) -> Call:
        size = (batch, config.num_kv_heads, width, config.head_dim)
        keys, values = (
            [torch.zeros(size, dtype=dtype, device=device) for _ in range(config.num_layers)]
            for _ in range(2)
        )
        token = torch.full((batch, 1), index % config.vocab_size, device=device)
        place = torch.full((batch, 1), width - 1, device=device)
        return decoder, token, place, keys, values

    width, dtype = first + num_calls, decoder.dtype
    if trigger == "a Python number":
        return _numbered_step, [(*call(i, 1, width, dtype), first + i) for i in range(num_calls)]
    batches = [1 + i if trigger == "another batch size" else 1 for i in range(num_calls)]
    widths = [first + i if trigger == "a growing cache" else width for i in range(num_calls)]
    if trigger == "a dtype":
        other = torch.bfloat16 if dtype == torch.float32 else torch.float32
        copy = type(decoder)(config, other, device)
        copy.load_state_dict(decoder.state_dict())
        copy.reserve(width)
        calls = [call(i, 1, width, other if i % 2 else dtype) for i in range(num_calls)]
        return decode_step, [(copy if i % 2 else decoder, *one[1:]) for i, one in enumerate(calls)]
    return decode_step, [
        call(i, b, w, dtype) for i, (b, w) in enumerate(zip(batches, widths, strict=True))
    ]


def _numbered_step(
    decoder: Decoder,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    length: int,
) -> torch.Tensor:
    """A step that is told its length as a number: how much of the cache it looks at."""
    keys, values = ([store.narrow(2, 0, length) for store in part] for part in (keys, values))
    return decode_step(decoder, token_ids, positions.clamp(max=length - 1), keys, values)
