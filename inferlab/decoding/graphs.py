"""What does a decode step take when the host does not have to start every kernel of it?

A step at a small batch is several hundred short kernels. Starting one costs the host some
microseconds (a Triton kernel more than one of PyTorch), so that with fast low-bit products a GPU
waits for its next kernel most of the time. A CUDA graph is the whole step, recorded once and
started with one call. A graph fixes addresses and shapes, so every length of the cache has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from inferlab.kvcache import KVCache, StaticCache
from inferlab.models.decoder import Decoder

Work = Callable[[], Any]
MOST_GRAPHS = 1024  # steps kept before all are let go


def captured(work: Work, device: torch.device | str, pool: Any = None) -> Work:
    """`work` as a CUDA graph: a callable that replays it and returns the tensors of the capture.

    `work` may not wait for the device, and reads and writes the same tensors each time. It runs
    twice before the capture, so that kernels are compiled and chosen. On a CPU: `work` itself.
    """
    if torch.device(device).type != "cuda":
        return work
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        work()
        work()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = work()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


class GraphedDecoder:
    """A decoder whose decode steps over a static cache are replayed from CUDA graphs.

    A step at a length that was not seen yet is captured first, which takes tens of milliseconds:
    warm up over the lengths that are timed. Prefills, padded batches and other caches go to the
    decoder itself, and so does everything on a CPU. The logits of a step are overwritten by the
    next one. `capture` replaces `captured` in tests.
    """

    def __init__(self, decoder: Decoder, capture: Callable[..., Work] | None = None) -> None:
        self.decoder = decoder
        if capture is None and decoder.device.type == "cuda":
            capture = captured
        self._capture = capture
        self._cache: KVCache | None = None
        self._steps: dict[int, Work] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def __call__(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        all_positions: bool = False,
    ) -> torch.Tensor:
        """As `Decoder.forward`."""
        replayable = token_ids.shape[1] == 1 and mask is None and isinstance(cache, StaticCache)
        if self._capture is None or not replayable or all_positions:
            return self.decoder(token_ids, cache, positions, mask, all_positions)
        if cache is not self._cache or len(self._steps) >= MOST_GRAPHS:
            self._begin(token_ids, cache, positions)
        self._token_ids.copy_(token_ids)
        self._positions.copy_(positions)
        length = cache.length
        if length not in self._steps:
            self._steps[length] = self._step(cache, length)
        self._steps[length]()
        cache.length = length
        cache.advance(1)
        return self._logits

    def release(self) -> None:
        """Let go of the graphs and of the cache whose addresses they hold."""
        self._steps.clear()
        self._cache = None

    def _begin(self, token_ids: torch.Tensor, cache: KVCache, positions: torch.Tensor) -> None:
        """Inputs, output and memory that the graphs over this cache share."""
        self.release()
        config = self.decoder.config
        self._cache = cache
        self._token_ids, self._positions = token_ids.clone(), positions.clone()
        self._logits = torch.empty(
            token_ids.shape[0], config.vocab_size, dtype=self.decoder.dtype,
            device=self.decoder.device,
        )  # fmt: skip
        on_gpu = self.decoder.device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None
        # Grown now: the graphs must not keep the address of a table that is replaced.
        self.decoder.reserve(min(cache.shape.capacity, config.max_context_len))

    def _step(self, cache: KVCache, length: int) -> Work:
        def work() -> None:
            cache.length = length  # the decoder advances it; the same position is written again
            self._logits.copy_(self.decoder(self._token_ids, cache, self._positions))

        return self._capture(work, self.decoder.device, self._pool)
