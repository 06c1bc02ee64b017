"""How fast does an engine serve a line of requests, and what does a newcomer do to the others?

Cases to time; each makes its engine, and so allocates its store, before the clock starts.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from inferlab.continuous.emulate import StepSeconds, emulate
from inferlab.continuous.late import Late, emulate_late, intruder_metrics
from inferlab.continuous.setting import Setting
from inferlab.continuous.tails import highest_percentile
from inferlab.decoding.generate import generate
from inferlab.errors import UserError
from inferlab.hardware.probes import synchronize
from inferlab.lengths import Lengths
from inferlab.metrics import tpot_s, ttft_s
from inferlab.models.decoder import Decoder
from inferlab.models.placement import dtype_name
from inferlab.recorder import Case
from inferlab.serving.engine import Engine
from inferlab.stats import percentile
from inferlab.trace import Request, Trace
from inferlab.workload import random_prompt


@dataclass(frozen=True, slots=True)
class Served:
    """When each token came, which it was, and what the engine counted."""

    trace: Trace
    token_ids: list[list[int]]
    num_steps: int
    num_preempted: int
    computed_tokens: int

    @property
    def wall_s(self) -> float:
        """Seconds from the start to the last token."""
        return max(request.events[-1][0] for request in self.trace.requests)

    @property
    def output_tok_per_s(self) -> float:
        """Output tokens over all seconds."""
        return sum(r.output_tokens for r in self.trace.requests) / self.wall_s


def prompts_for(vocab_size: int, requests: Sequence[Lengths], seed: int) -> list[list[int]]:
    """Random prompts of these lengths; prompt i depends on the seed, i and its length only."""
    return [
        random_prompt(vocab_size, request.prompt_len, seed, index)
        for index, request in enumerate(requests)
    ]


def serve(
    decoder: Decoder, requests: Sequence[Lengths], setting: Setting, seed: int = 0,
    step: str = "eager", late: Late | None = None, prompts: Sequence[Sequence[int]] | None = None,
) -> Served:  # fmt: skip
    """All `requests` at once through an engine of that setting, greedily; `late` on top, last."""
    everyone = [*requests, late.lengths] if late else list(requests)
    prompts = prompts or prompts_for(decoder.config.vocab_size, everyone, seed)
    names = [f"r{i:05d}" for i in range(len(everyone))]
    engine = Engine(decoder, step=step, **setting.engine_options())
    events: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    token_ids: dict[str, list[int]] = {name: [] for name in names}
    sent = dict.fromkeys(names, 0.0)
    pending = late is not None
    gc.collect()
    synchronize(decoder.device)
    start = time.perf_counter()
    for name, prompt, request in zip(names, prompts, requests, strict=False):
        engine.add_request(name, prompt, request.output_len)
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter() - start
        for output in outputs:
            events[output.seq_id].append((now, 1))
            token_ids[output.seq_id].append(output.token_id)
        if pending and len(events[names[0]]) >= late.after_tokens:
            sent[names[-1]], pending = time.perf_counter() - start, False
            engine.add_request(names[-1], prompts[-1], late.lengths.output_len)
    found = tuple(
        Request(name, sent[name], sent[name], len(prompt), tuple(events[name]))
        for name, prompt in zip(names, prompts, strict=True)
        if events[name]
    )
    if len(found) < len(names):
        raise UserError("the late request never came: the others are too short for after_tokens")
    meta = {"label": "measured", "backend": "engine", "policy": setting.policy}
    counts = engine.stats()
    return Served(
        Trace(found, meta), [token_ids[name] for name in names], counts.num_steps,
        counts.num_preempted, counts.computed_tokens,
    )  # fmt: skip


def served_case(
    decoder: Decoder, requests: Sequence[Lengths], setting: Setting, step_s: StepSeconds,
    params: Mapping[str, object], seed: int = 0, step: str = "eager",
) -> Case:  # fmt: skip
    """Throughput, TPOT and TTFT of a line of requests; predicted by the emulated schedule."""

    def run() -> dict[str, float]:
        served = serve(decoder, requests, setting, seed, step)
        return trace_metrics(served.trace) | {
            "num_steps": served.num_steps, "num_preempted": served.num_preempted,
            "num_computed_tokens": served.computed_tokens,
        }  # fmt: skip

    expected = emulate(requests, setting, step_s)
    predicted = trace_metrics(expected.trace) | {
        "num_steps": len(expected.steps), "num_preempted": expected.num_preempted,
    }  # fmt: skip
    return Case(run, _params(decoder, setting, len(requests)) | dict(params), predicted)


def trace_metrics(trace: Trace) -> dict[str, float]:
    """What a run is judged by, from its trace alone."""
    wall_s = max(request.events[-1][0] for request in trace.requests)
    tpots = [value for value in map(tpot_s, trace.requests) if value is not None]
    return {
        "output_tok_per_s": sum(r.output_tokens for r in trace.requests) / wall_s,
        "tpot_p95_s": percentile(tpots, 95),
        "tpot_median_s": statistics.median(tpots),
        "ttft_median_s": statistics.median(map(ttft_s, trace.requests)),
        "e2e_mean_s": statistics.mean(r.events[-1][0] for r in trace.requests),
    }


def kept_rows_case(
    decoder: Decoder, requests: Sequence[Lengths], batch_size: int, params: Mapping[str, object],
    seed: int = 0,
) -> Case:  # fmt: skip
    """Static batches by `generate`: padded, and every row computed until the longest is done."""
    prompts = prompts_for(decoder.config.vocab_size, requests, seed)
    outputs = [r.output_len for r in requests]

    def run() -> dict[str, float]:
        synchronize(decoder.device)
        start = time.perf_counter()
        for i in range(0, len(prompts), batch_size):
            generate(decoder, prompts[i : i + batch_size], outputs[i : i + batch_size])
        synchronize(decoder.device)
        return {"output_tok_per_s": sum(outputs) / (time.perf_counter() - start)}

    own = {"policy": "static", "max_num_seqs": batch_size}  # it has no store
    return Case(run, _served(decoder, len(requests)) | own | dict(params))


def intruder_case(
    decoder: Decoder, requests: Sequence[Lengths], late: Late, setting: Setting,
    step_s: StepSeconds, params: Mapping[str, object], seed: int = 0, step: str = "eager",
) -> Case:  # fmt: skip
    """Gaps between the tokens of running requests while a long prompt is read beside them.

    `itl_tail_s` is the highest percentile that the number of gaps allows (parameter `tail_q`).
    """

    def run() -> dict[str, float]:
        return intruder_metrics(serve(decoder, requests, setting, seed, step, late).trace)

    emulated = emulate_late(requests, late, setting, step_s)
    gaps = sum(r.output_len - 1 for r in requests)
    more = {"intruder_len": late.lengths.prompt_len, "tail_q": highest_percentile(gaps)}
    return Case(
        run, _params(decoder, setting, len(requests)) | more | dict(params),
        intruder_metrics(emulated.trace),
    )  # fmt: skip


def steady_case(
    decoder: Decoder, setting: Setting, prompt_len: int, output_len: int,
    step_s: StepSeconds, seed: int = 0, step: str = "eager",
) -> Case:  # fmt: skip
    """Steps of a full engine in which nobody comes or goes, to hold against `bare_case`."""
    requests = [Lengths(prompt_len, output_len)] * setting.max_num_seqs

    def run() -> dict[str, float]:
        trace = serve(decoder, requests, setting, seed, step).trace
        begin = max(request.events[0][0] for request in trace.requests)
        times = [at for at, _ in trace.requests[0].events if at >= begin]
        return _step_metrics(times, setting.max_num_seqs)

    params = _params(decoder, setting, len(requests)) | {"phase": "steady", "loop": "engine"}
    plain = replace(setting, chunk_size=None)
    whole = emulate(requests, plain, step_s)
    decodes = [b.end_s - a.end_s for a, b in zip(whole.steps, whole.steps[1:], strict=False)
               if b.num_decodes]  # fmt: skip
    middle = statistics.median(decodes)
    return Case(run, params, {"step_tok_per_s": setting.max_num_seqs / middle})


def bare_case(
    decoder: Decoder, cache: str, batch_size: int, prompt_len: int, output_len: int, seed: int = 0
) -> Case:
    """The same steps in a loop without an engine: one batch, one dense cache."""
    requests = [Lengths(prompt_len, output_len)] * batch_size
    prompts = prompts_for(decoder.config.vocab_size, requests, seed)

    def run() -> dict[str, float]:
        times = []

        def on_step(_: int, token_ids: torch.Tensor) -> None:
            token_ids.tolist()  # the engine hands every token out: so does this loop
            times.append(time.perf_counter())

        generate(decoder, prompts, output_len, cache, on_step=on_step)
        return _step_metrics(times, batch_size)

    params = {"phase": "steady", "loop": f"bare {cache}", "model": decoder.config.name,
              "dtype": dtype_name(decoder.dtype), "max_num_seqs": batch_size}  # fmt: skip
    return Case(run, params)


def _step_metrics(times: Sequence[float], rows: int) -> dict[str, float]:
    """Throughput by the median step, and the median step."""
    middle = statistics.median(np.diff(times))
    return {"step_tok_per_s": rows / middle, "step_s": middle}


def _params(decoder: Decoder, setting: Setting, num_requests: int) -> dict[str, object]:
    return _served(decoder, num_requests) | {
        "policy": setting.policy, "store": setting.store, "max_num_seqs": setting.max_num_seqs,
        "store_tokens": setting.store_tokens, "block_size": setting.lent_at_once,
        "max_len": setting.max_len, "chunk_size": setting.chunk_size or 0,
    }  # fmt: skip


def _served(decoder: Decoder, num_requests: int) -> dict[str, object]:
    return {
        "model": decoder.config.name, "dtype": dtype_name(decoder.dtype),
        "num_requests": num_requests,
    }  # fmt: skip
