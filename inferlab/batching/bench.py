"""Cases to time: step times of batches, ways to read prompts, and servers under Poisson arrivals.

Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np

from inferlab.backends.batched import BatchedBackend
from inferlab.batching import cost
from inferlab.batching.queueing import bulk_queue, mg1_wait_s
from inferlab.batching.simulate import StepTimes, mean_wait_range_s, simulate
from inferlab.fitting import Fitted
from inferlab.hardware.probes import synchronize
from inferlab.kvcache import CacheShape, PagedCache
from inferlab.metrics import e2e_s, tpot_s, ttft_s
from inferlab.models.decoder import Decoder
from inferlab.models.placement import dtype_name
from inferlab.recorder import Case
from inferlab.serving.batcher import BatchPolicy, static
from inferlab.serving.waits import batch_sizes_seen, batches_of, policy_meta, waits_s
from inferlab.timing import ByRound
from inferlab.trace import Trace
from inferlab.workload import Workload, poisson_arrivals, unequal_batch, uniform_batch

RANGE_RUNS = 100  # emulated runs behind the range of a short run


def service_case(
    decoder: Decoder, batch_size: int, prompt_len: int, output_len: int, fitted: Fitted
) -> Case:
    """One batch of equal requests, all due at once: its prefill, a step, and all of it.

    Measured with the server that is to be emulated: what its loop costs is inside.
    """
    backend = BatchedBackend(decoder, static(batch_size))
    workload = uniform_batch(decoder.config.vocab_size, batch_size, prompt_len, output_len, seed=40)

    def run() -> dict[str, float]:
        request = backend.run(workload).trace.requests[0]
        first, last = request.events[0][0], request.events[-1][0]
        return {
            "tpot_s": (last - first) / (output_len - 1),
            "prefill_s": first,
            "service_s": last,
        }

    config, dtype = decoder.config, dtype_name(decoder.dtype)
    params = {
        "phase": "service", "model": config.name, "dtype": dtype, "batch_size": batch_size,
        "prompt_len": prompt_len, "output_len": output_len,
    }  # fmt: skip
    service_s = cost.predict_service_s(
        config, dtype, batch_size, prompt_len, output_len, fitted.prefill, fitted.decode
    )
    read_s = cost.predict_prefill_s(
        config, dtype, [prompt_len] * batch_size, "packed", fitted.prefill
    )
    steps = output_len - 1
    predicted = {
        "tpot_s": (service_s - read_s) / steps, "prefill_s": read_s, "service_s": service_s
    }  # fmt: skip
    return Case(run, params, predicted)


def prefill_case(
    decoder: Decoder, lengths: Sequence[int], mix: str, how: str, fitted: Fitted
) -> Case:
    """Reading prompts of these lengths "padded" or "packed" together, or one after the other."""
    config, dtype, device = decoder.config, dtype_name(decoder.dtype), decoder.device
    workload = unequal_batch(config.vocab_size, lengths, 1, seed=40)
    prompts = [spec.prompt_token_ids for spec in workload.requests]
    backend = BatchedBackend(decoder, static(len(prompts)), "padded" if how == "alone" else how)

    def run() -> dict[str, float]:
        store = _store(decoder, len(prompts), max(lengths))
        groups = [[prompt] for prompt in prompts] if how == "alone" else [prompts]
        synchronize(device)
        start = time.perf_counter()
        for group in groups:
            backend.read(group, store)
            synchronize(device)
        return {"prefill_s": time.perf_counter() - start}

    params = {
        "phase": "prefill", "prefill": how, "mix": mix, "model": config.name, "dtype": dtype,
        "batch_size": len(prompts), "num_tokens": sum(lengths), "longest": max(lengths),
        "waste_ratio": cost.padding_waste_ratio(lengths),
        "flops": cost.prefill_flops(config, dtype, lengths, how),
    }  # fmt: skip
    predicted = cost.predict_prefill_s(config, dtype, lengths, how, fitted.prefill)
    return Case(run, params, {"prefill_s": predicted})


def _store(decoder: Decoder, rows: int, capacity: int) -> PagedCache:
    config, size = decoder.config, -(-capacity // 16) * 16
    shape = CacheShape(config.num_layers, rows, config.num_kv_heads, size, config.head_dim)
    return PagedCache(shape, decoder.dtype, decoder.device, size, rows)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of known lengths that come at `load` times what is served one at a time."""

    prompt_len: int
    output_lens: tuple[int, ...]  # taken in turn, shuffled
    num_requests: int
    load: float

    def workload(self, vocab_size: int) -> Workload:
        """The requests, all due at 0 s."""
        repeats = -(-self.num_requests // len(self.output_lens))
        outputs = np.array(self.output_lens * repeats)[: self.num_requests]
        outputs = np.random.default_rng(40).permutation(outputs).tolist()
        return unequal_batch(vocab_size, [self.prompt_len] * self.num_requests, outputs, 40)

    def services_s(self, times: StepTimes) -> list[float]:
        """Seconds of each request when it is served alone."""
        return [times.service_s(1, self.prompt_len, n) for n in self.output_lens]

    def rate_req_per_s(self, times: StepTimes) -> float:
        """Requests a second: `load` over the mean service of one alone."""
        return self.load / statistics.fmean(self.services_s(times))


def load_case(
    decoder: Decoder, policy: BatchPolicy, traffic: Traffic, times: StepTimes,
    traces: MutableMapping[str, Trace], name: str,
) -> Case:  # fmt: skip
    """A server under Poisson arrivals in real time, beside its emulation on the same arrivals.

    Round i of every case of one traffic draws the same arrivals. The last trace is left in
    `traces[name]`. Predicted: the mean over infinitely many requests (theory) and where the mean
    of a run this short lies (emulated).
    """
    workload = traffic.workload(decoder.config.vocab_size)
    rate = traffic.rate_req_per_s(times)
    backend = BatchedBackend(decoder, policy)

    def run(round_index: int) -> dict[str, float]:
        due = poisson_arrivals(workload, rate, 401 + round_index)
        traces[name] = trace = backend.run(due).trace
        emulated = under_load(simulate(due, policy, times))
        return under_load(trace) | {f"emulated_{key}": emulated[key] for key in EMULATED}

    params = {
        "phase": "load", **policy_meta(policy), "load": traffic.load,
        "rate_req_per_s": rate, "num_requests": traffic.num_requests,
        "model": decoder.config.name, "dtype": dtype_name(decoder.dtype),
        "prompt_len": traffic.prompt_len, "output_len": statistics.fmean(traffic.output_lens),
        "lengths": "equal" if len(set(traffic.output_lens)) == 1 else "mixed",
    }  # fmt: skip
    return Case(ByRound(run), params, predict_load(workload, policy, traffic, times))


EMULATED = ("wait_s", "ttft_s", "e2e_s")


def under_load(trace: Trace) -> dict[str, float]:
    """Means over the requests of a run: wait, TTFT, TPOT, E2E; throughput and batches."""
    requests, batches = trace.requests, batches_of(trace)
    gaps = [value for r in requests if (value := tpot_s(r)) is not None]
    end_s = max(batch.end_s for batch in batches)
    found = {
        "wait_s": statistics.fmean(waits_s(trace)),
        "ttft_s": statistics.fmean(ttft_s(r) for r in requests),
        "e2e_s": statistics.fmean(e2e_s(r) for r in requests),
        "output_tok_per_s": sum(r.output_tokens for r in requests) / end_s,
        "num_batched": len(requests) / len(batches),
        "num_batched_seen": statistics.fmean(batch_sizes_seen(trace)),
        "busy_per_request_s": sum(batch.service_s for batch in batches) / len(requests),
    }
    return found | ({"tpot_s": statistics.fmean(gaps)} if gaps else {})


def predict_load(
    workload: Workload, policy: BatchPolicy, traffic: Traffic, times: StepTimes
) -> dict[str, float]:
    """Mean wait by theory where it has one, and the range of short runs by emulation.

    M/D/1 or M/G/1 without batches; a chain of batches for equal requests, full or dynamic without
    a wait limit. From the batch that a request sees follow its TTFT, TPOT and E2E.
    """
    rate, outputs = traffic.rate_req_per_s(times), traffic.output_lens
    low, high = mean_wait_range_s(workload, rate, policy, times, RANGE_RUNS)
    predicted = {"wait_low_s": low, "wait_high_s": high}
    wait_s, seen = math.nan, 1.0
    if policy.size == 1:
        wait_s = mg1_wait_s(rate, traffic.services_s(times))
    elif len(set(outputs)) == 1 and policy.max_wait_s in (0.0, math.inf):
        sizes = range(1, policy.size + 1)
        by_size = [times.service_s(k, traffic.prompt_len, outputs[0]) for k in sizes]
        queue = bulk_queue(rate, by_size, full=policy.max_wait_s == math.inf)
        wait_s, seen = queue.wait_s, queue.batch_size_seen
    if not math.isfinite(wait_s):
        return predicted
    read_s = times.prefill_at(seen * traffic.prompt_len)
    step_s = times.step_at(seen)
    more = statistics.fmean(outputs) - 1
    return predicted | {
        "wait_s": wait_s, "ttft_s": wait_s + read_s, "tpot_s": step_s,
        "e2e_s": wait_s + read_s + more * step_s, "num_batched_seen": seen,
    }  # fmt: skip


def check_tokens(
    decoder: Decoder, workload: Workload, policies: Mapping[str, tuple[BatchPolicy, str]]
) -> dict[str, bool]:
    """Whether each (policy, prefill) writes the tokens that every request gets alone."""
    from inferlab.decoding.generate import generate

    alone = [generate(decoder, [s.prompt_token_ids], s.output_len)[0] for s in workload.requests]
    return {
        name: BatchedBackend(decoder, policy, prefill).run(workload).token_ids == alone
        for name, (policy, prefill) in policies.items()
    }
