"""How does a server do that gathers requests into batches and serves one batch at a time?

In real time: a request enters the line when it is due, a policy says when a batch starts, and
everybody in it waits for its prompts to be read together and for nobody else's answer: tokens are
sent as they come. Who has all tokens keeps its place until the longest answer is done.
Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import torch

from inferlab.backends.base import BackendRun, batch_bytes, check_prompts
from inferlab.decoding.generate import checked_lengths, pad_prompts
from inferlab.decoding.sampling import GREEDY, choose
from inferlab.errors import UserError
from inferlab.hardware.probes import synchronize
from inferlab.kvcache import CacheShape, PagedCache
from inferlab.models.config import ModelConfig
from inferlab.models.decoder import Decoder
from inferlab.models.load import load_decoder
from inferlab.models.placement import check_host_memory, dtype_name
from inferlab.serving.batcher import NONE, Batcher, BatchPolicy, make_policy
from inferlab.serving.waits import (
    ServedBatch,
    batches_meta,
    check_prefill,
    policy_meta,
    served_request,
)
from inferlab.trace import Trace
from inferlab.workload import RequestSpec, Workload

ALIGNMENT = 16  # positions: a row of the store is a multiple, as kernels like it


class BatchedBackend:
    """Our decoder behind a line of requests.

    Keys and values lie in a paged store whose blocks are as long as the longest text: dense rows
    that hold no padding, so that only the prefill differs between "padded" and "packed". The store
    is allocated before the clock starts and kept for runs of the same size.
    """

    name = "batched"

    def __init__(
        self,
        decoder: Decoder,
        policy: BatchPolicy = NONE,
        prefill: str = "padded",
        weights: str = "real",
    ) -> None:
        check_prefill(prefill)
        self.decoder, self.policy, self.prefill, self.weights = decoder, policy, prefill, weights
        self.config = decoder.config
        self.dtype = dtype_name(decoder.dtype)
        self._store: PagedCache | None = None

    @property
    def device(self) -> torch.device:
        """Where the decoder lies."""
        return self.decoder.device

    def run(self, workload: Workload) -> BackendRun:
        """Serve all requests, each from the time it is due; times are seconds from the start.

        Raises BatchTooLarge when a CPU could not hold a batch of the policy's size.
        """
        if not workload.requests:
            raise UserError("the workload has no requests")
        store = self._prepare(workload)
        batcher: Batcher[RequestSpec] = Batcher(self.policy)
        pending, served = deque(workload.requests), []
        batches: list[ServedBatch] = []
        synchronize(self.device)
        start = time.perf_counter()
        while pending or batcher.num_waiting:
            now_s = time.perf_counter() - start
            while pending and pending[0].scheduled <= now_s:
                batcher.add(pending[0], pending[0].scheduled)
                pending.popleft()
            batch = batcher.take(now_s, bool(pending))
            if not batch:
                _sleep_until(start, batcher.due_s(), pending)
                continue
            try:
                tokens, times = self._serve(batch, store)
            except Exception:
                self.release()  # after an out-of-memory error the next case needs the room
                raise
            ends_s = [moment - start for moment in times]
            batches.append(ServedBatch(now_s, ends_s[-1], len(batch)))
            served += [(spec, row, ends_s) for spec, row in zip(batch, tokens, strict=True)]
        meta = {
            "label": "measured", "backend": self.name, "model": self.config.name,
            "weights": self.weights, "dtype": self.dtype, "device": self.device.type,
            **policy_meta(self.policy), "prefill": self.prefill, "batches": batches_meta(batches),
        }  # fmt: skip
        requests = tuple(served_request(spec, ends_s) for spec, _, ends_s in served)
        token_ids = [row[: spec.output_len] for spec, row, _ in served]
        return BackendRun(Trace(requests, meta), token_ids)

    def release(self) -> None:
        """Let go of the store that is kept between runs."""
        self._store = None

    @torch.inference_mode()
    def _serve(
        self, batch: Sequence[RequestSpec], store: PagedCache
    ) -> tuple[list[list[int]], list[float]]:
        """Tokens of each request until the longest answer is done, and when each step ended."""
        prompts = [spec.prompt_token_ids for spec in batch]
        steps = max(spec.output_len for spec in batch)
        logits = self.read(prompts, store)
        columns, times = [], []
        places = torch.tensor([len(prompt) for prompt in prompts], device=self.device)[:, None]
        for step in range(steps):
            columns.append(choose(logits, GREEDY, None))
            synchronize(self.device)
            times.append(time.perf_counter())
            if step + 1 < steps:
                logits = self.decoder(columns[-1][:, None], store, places + step)
        return torch.stack(columns, dim=1).tolist(), times

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]], store: PagedCache) -> torch.Tensor:
        """Logits [B, V] behind the prompts of a batch, then rows 0 to B - 1 of the store."""
        for seq_id in reversed(store.manager.seq_ids):
            store.free(seq_id)  # the last first: rows then follow each other in memory again
        if self.prefill == "packed":
            from inferlab.kvcache.packed import pack_prompts

            return pack_prompts(self.decoder, prompts, store)
        store.select(range(len(prompts)))
        padded = pad_prompts(prompts, 0, self.decoder.dtype, self.device)
        mask = padded.prefill_mask(padded.prompt_len)
        return self.decoder(padded.token_ids, store, padded.positions, mask)

    def _prepare(self, workload: Workload) -> PagedCache:
        """An empty store for batches of the policy's size, or the one that is there."""
        specs = workload.requests
        config, size = self.config, min(self.policy.size, len(specs))
        # The longest prompt may stand beside the longest answer, and is decoded on until that ends.
        longest = -(-check_prompts(config, workload) // ALIGNMENT) * ALIGNMENT
        checked_lengths(
            self.decoder, [s.prompt_token_ids for s in specs], [s.output_len for s in specs]
        )
        shape = CacheShape(config.num_layers, size, config.num_kv_heads, longest, config.head_dim)
        if self._store is None or self._store.shape != shape:
            self.release()
            widest = sorted(specs, key=lambda s: s.prompt_len)[-size:]
            needed = batch_bytes(
                config, self.decoder.dtype.itemsize, Workload(tuple(widest), workload.seed), 1.0
            )
            what = f"a batch of {size} with {longest} positions each"
            check_host_memory(needed, what, self.device)
            self._store = PagedCache(shape, self.decoder.dtype, self.device, longest, size)
        return self._store


def _sleep_until(start: float, due_s: float | None, pending: Sequence[RequestSpec]) -> None:
    """Until the line is due or the next request is; one of them there is."""
    moments = [due_s] if due_s is not None else []
    moments += [pending[0].scheduled] if pending else []
    time.sleep(max(0.0, start + min(moments) - time.perf_counter()))


def load(
    model: str | ModelConfig,
    dtype: str,
    device: str,
    weights: str = "real",
    policy: str = "dynamic",
    batch_size: int = 8,
    max_wait_s: float = 0.0,
    prefill: str = "padded",
    pack: bool = True,
    seed: int = 0,
) -> BatchedBackend:
    """Load the decoder behind a line; `policy` is one of POLICIES, `batch_size` its largest batch.

    `pack` is for the weights on a CPU, `seed` that of random ones.
    """
    chosen = make_policy(policy, batch_size, max_wait_s)
    check_prefill(prefill)
    decoder = load_decoder(model, dtype, device, weights, seed=seed, pack=pack)
    return BatchedBackend(decoder, chosen, prefill, weights)
