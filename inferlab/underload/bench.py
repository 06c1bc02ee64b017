"""What does a server do under load, and what does serving add to its engine? Cases to time.

A case sends one workload through something that runs workloads (a server behind a URL, or the
engine in this process) and reports what its trace shows, by the definitions of `metrics`.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import itertools
import statistics
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from inferlab.backends.base import BackendRun
from inferlab.backends.http import HttpBackend
from inferlab.client.prompts import in_words, texts, word_tokens
from inferlab.errors import MeasurementError, UserError
from inferlab.metrics import SLO, summarize
from inferlab.profiles import Profile
from inferlab.recorder import Case
from inferlab.records import Record
from inferlab.trace import Trace
from inferlab.underload.cost import StepModel, fit_steps
from inferlab.workload import Workload, uniform_batch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from inferlab.serving.engine import Engine

METRICS_TIMEOUT_S = 10.0


class Runner(Protocol):
    """Whatever serves a workload: `backends.http`, `backends.engine`."""

    def run(self, workload: Workload) -> BackendRun: ...


@dataclass(frozen=True, slots=True)
class TextRunner:
    """A server that takes text only: prompts drawn from whole words of `tokenizer`, as text."""

    backend: HttpBackend
    tokenizer: Tokenizer

    def run(self, workload: Workload) -> BackendRun:
        """Token i of the workload becomes word i (of as many as there are); lengths stay exact."""
        words = word_tokens(self.tokenizer)
        wrapped = tuple(
            replace(spec, prompt_token_ids=tuple(t % len(words) for t in spec.prompt_token_ids))
            for spec in workload.requests
        )
        said = in_words(replace(workload, requests=wrapped), words)
        return self.backend.run(said, prompts=texts(said, self.tokenizer))


@dataclass(frozen=True, slots=True)
class Setting:
    """What a class of machine serves in lab 46; lengths in tokens."""

    max_num_seqs: int
    cache_tokens: int
    prompt_len: int
    output_len: int
    divisor: int  # of the lengths of real services
    published: tuple[tuple[int, int], ...] = ()  # (prompt, output) lengths with published figures
    published_seqs: int = 256


_GPU = Setting(max_num_seqs=32, cache_tokens=65_536, prompt_len=256, output_len=64, divisor=4)
SETTINGS = {
    "tiny": Setting(
        max_num_seqs=8, cache_tokens=8192, prompt_len=32, output_len=16, divisor=32
    ),
    "gpu16": _GPU,
    "gpu24": _GPU,
    "gpu80": Setting(
        max_num_seqs=32, cache_tokens=65_536, prompt_len=256, output_len=64, divisor=4,
        published=((1000, 1000), (128, 128)),
    ),
}  # fmt: skip


def setting(profile: Profile) -> Setting:
    """What `profile` serves."""
    return SETTINGS[profile.name]


def load_metrics(trace: Trace, slo: SLO | None = None) -> dict[str, float]:
    """What a trace of a server shows, as metrics of a record; what is undefined is left out.

    A p99 is there only where there are requests (or gaps) enough for one. `late_ratio` and
    `client_cpu_ratio` are the client's own.
    """
    summary = summarize(trace, slo)
    if not summary.counts["ok"]:
        first = next((r.error for r in trace.requests if r.error), "no reason given")
        raise MeasurementError(f"no request was answered; the first: {first}")
    found: dict[str, float | None] = {
        "output_tok_per_s": summary.output_tok_per_s,
        "answered_req_per_s": summary.requests_per_s,
        "failed_count": summary.counts["failed"],
    }
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        spread = getattr(summary, name)
        for point in ("mean", "median", "p95", "p99", "max"):
            found[f"{name[:-2]}_{point}_s"] = getattr(spread, point)
    if summary.goodput is not None:
        found["good_req_per_s"] = summary.goodput.requests_per_s
        found["good_ratio"] = summary.goodput.attainment_ratio
    client = trace.meta.get("client") or {}
    found |= {f"client_{k}": client.get(k) for k in ("late_ratio", "cpu_ratio")}
    if client:
        found["void_count"] = float(not client["valid"])
    return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Anew:
    """A runner that `opened()` gives for one run, which `first()` warms up.

    Two lives of one program differ by some percent, if only by where its memory lies. Runs within
    one life share that and cannot show it; runs in lives of their own can.
    """

    opened: Callable[[], AbstractContextManager[Runner]]
    first: Callable[[], Workload]

    def run(self, workload: Workload) -> BackendRun:
        """What a new runner made of `workload`; it is closed again, whatever happened."""
        with self.opened() as runner:
            runner.run(self.first())
            return runner.run(workload)


def load_case(
    runner: Runner,
    workload: Workload | Callable[[], Workload],
    params: Mapping[str, Any],
    predicted: Mapping[str, float] | Trace = (),
    slo: SLO | None = None,
    keep: Callable[[Trace], None] | None = None,
) -> Case:
    """Send `workload` (or what it returns, anew in each round) and report `load_metrics`.

    `predicted` may be an emulated trace of the same requests: then every metric of it is expected.
    `keep` gets the trace.
    """

    def run() -> dict[str, float]:
        trace = runner.run(workload() if callable(workload) else workload).trace
        if keep is not None:
            keep(trace)
        return load_metrics(trace, slo)

    if isinstance(predicted, Trace):
        predicted = load_metrics(predicted, slo)
    return Case(run, dict(params), dict(predicted))


def repeating_case(
    runner: Runner, url: str, make: Callable[[int], Workload], params: Mapping[str, Any],
    predicted: Mapping[str, float],
) -> Case:  # fmt: skip
    """`load_case` that also asks the server which share of the prompts its prefix cache had.

    `make(round)` is the workload of a round: fresh prompts must be fresh in each of them.
    """
    rounds = itertools.count()

    def run() -> dict[str, float]:
        before = counters(url)
        found = load_metrics(runner.run(make(next(rounds))).trace)
        after = counters(url)
        hits, asked = (
            after[name] - before[name]
            for name in ("prefix_cache_hits_total", "prompt_tokens_total")
        )
        return {**found, "hit_ratio": hits / asked if asked else 0.0}

    return Case(run, dict(params), dict(predicted))


def counters(url: str) -> dict[str, float]:
    """Name -> value of the gauges and counters that our server tells Prometheus, without prefix.

    MeasurementError when it does not answer, or says nothing that can be read.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/metrics", timeout=METRICS_TIMEOUT_S) as answer:
            lines = answer.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise MeasurementError(f"the server's metrics cannot be read: {error}") from None
    found = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith("inferlab:") and "_bucket" not in name:
            try:
                found[name.partition("{")[0].removeprefix("inferlab:")] = float(value)
            except ValueError:
                continue
    if not found:
        raise MeasurementError("the server's metrics hold nothing of ours: is it `inferlab serve`?")
    return found


def step_cases(
    engine: Engine, batch_sizes: tuple[int, ...], prompt_lens: tuple[int, ...], prompt_len: int,
    steps: int,
) -> dict[str, Case]:  # fmt: skip
    """What `engine` takes for decode steps by rows, and for reading one prompt, by length."""
    cases = {}
    names = itertools.count()

    def timed(num_seqs: int, length: int, output_len: int) -> list[float]:
        batch = uniform_batch(engine.decoder.config.vocab_size, num_seqs, length, output_len)
        for spec in batch.requests:
            engine.add_request(f"timed-{next(names)}", spec.prompt_token_ids, output_len)
        seconds = []
        while engine.has_work:
            start = time.perf_counter()
            engine.step()
            seconds.append(time.perf_counter() - start)
        return seconds

    def decode(num_seqs: int) -> dict[str, float]:
        return {"step_s": statistics.median(timed(num_seqs, prompt_len, steps + 1)[1:])}

    def read(length: int) -> dict[str, float]:
        return {"read_s": min(timed(1, length, 1)[0] for _ in range(2))}

    for size in batch_sizes:
        params = {"phase": "steps", "kind": "decode", "num_seqs": size, "prompt_len": prompt_len}
        cases[f"steps/decode-{size}"] = Case(lambda n=size: decode(n), params)
    for length in prompt_lens:
        params = {"phase": "steps", "kind": "read", "num_seqs": 1, "prompt_len": length}
        cases[f"steps/read-{length}"] = Case(lambda n=length: read(n), params)
    return cases


def step_model(record: Record) -> StepModel:
    """Straight lines through the steps that `record` holds."""
    found: dict[str, dict[int, float]] = {"decode": {}, "read": {}}
    for case in record.cases(phase="steps"):
        params = record.manifest.cases[case].params
        metric, size = ("step_s", "num_seqs") if params["kind"] == "decode" else (
            "read_s", "prompt_len")  # fmt: skip
        if metric in record.metrics(case):
            found[params["kind"]][params[size]] = record.estimate(case, metric).value
    if not all(found.values()):
        raise UserError("the record has no timed steps: measure step_cases first")
    return fit_steps(found["decode"], found["read"])


def calibration_case(streams: int) -> Case:
    """Our client's errors against the log of a mock server that writes to `streams` streams."""
    from inferlab.client.calibrate import calibrate

    requests = max(4, 3 * streams)

    def run() -> dict[str, float]:
        point = calibrate(streams, requests=requests)
        return {**point.metrics(), "void_count": float(not point.valid)}

    return Case(run, {"phase": "client", "streams": streams, "num_requests": requests})


def capacity_case(streams: int) -> Case:
    """The highest rate of events at which our client's errors stay within its bounds."""
    from inferlab.client.calibrate import find_capacity

    def run() -> dict[str, float]:
        found = find_capacity(streams)
        highest = max(point.events_per_s for point in found.points)
        return {"within_events_per_s": found.events_per_s or 0.0, "tried_events_per_s": highest}

    return Case(run, {"phase": "client-capacity", "streams": streams})
