"""What does a decode step take when the host does not have to start every kernel of it?

A step at a small batch is several hundred short kernels. Starting one costs the host some
microseconds (a Triton kernel more than one of PyTorch), so that with fast products a GPU waits for
its next kernel most of the time. A CUDA graph is the whole step, recorded once and started with one
call. A graph fixes addresses and shapes: over a bucketed cache one graph serves a whole bucket.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from inferlab.kvcache import BucketedCache

Work = Callable[[], Any]
Step = Callable[[torch.Tensor, torch.Tensor, BucketedCache], torch.Tensor]


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


class GraphedStep:
    """A step that is replayed from CUDA graphs, one for each bucket of the cache it last saw.

    The first step in a bucket is captured, which takes tens of milliseconds: warm up over the
    lengths that are timed. The logits of a step are overwritten by the next one. With
    `one_for_all` the step reads no more than is stored by itself and one graph does for every
    bucket. `capture` replaces `captured` in tests.
    """

    def __init__(
        self, step: Step, one_for_all: bool = False, capture: Callable[..., Work] = captured
    ) -> None:
        self.step = step
        self._one_for_all = one_for_all
        self._capture = capture
        self._cache: BucketedCache | None = None
        self._replays: dict[int, Work] = {}

    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, cache: BucketedCache
    ) -> torch.Tensor:
        """[B, 1] token ids and positions -> [B, V] logits; the cache is written, not advanced."""
        if self._cache is not cache:
            self._begin(token_ids, positions, cache)
        self._token_ids.copy_(token_ids)
        self._positions.copy_(positions)
        key = 0 if self._one_for_all else cache.width
        if key not in self._replays:
            self._replays[key] = self._capture(
                lambda: self.step(self._token_ids, self._positions, cache),
                token_ids.device,
                self._pool,
            )
        return self._replays[key]()

    def release(self) -> None:
        """Let go of the graphs, and of the cache whose addresses they hold."""
        self._replays.clear()
        self._cache = None

    def _begin(
        self, token_ids: torch.Tensor, positions: torch.Tensor, cache: BucketedCache
    ) -> None:
        """Inputs and memory that the graphs over this cache share."""
        self.release()
        self._cache = cache
        with torch.inference_mode(False):
            self._token_ids = torch.empty_like(token_ids, memory_format=torch.contiguous_format)
            self._positions = torch.empty_like(self._token_ids)
        on_gpu = token_ids.device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None
