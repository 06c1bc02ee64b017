"""Do our client and other load generators see the same server?

    cases = comparison_cases(target, prompt_len=64, output_len=32, concurrency=1)
    recorder.measure("peers, c=1", cases, STOP)
    agreement(record)

Each peer's case stands behind one of ours, which does the same job a moment before, so that a
drift of the machine falls on both; ours reports in the peer's words. A ratio beside one is then a
difference between the clients, not between definitions and not between minutes. What a client adds
by itself is told by `known_delay_case`.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pandas as pd

from inferlab.backends.http import checked
from inferlab.client.drive import LoadRun, drive
from inferlab.client.mock import MockServer
from inferlab.client.prompts import in_words, open_tokenizer, texts, word_tokens
from inferlab.client.target import Target
from inferlab.errors import MeasurementError
from inferlab.recorder import Case
from inferlab.records import Record
from inferlab.timing import StopRule
from inferlab.underload.peerreports import as_reported_by, read_report
from inferlab.underload.peers import PEERS, Job, run_peer
from inferlab.workload import RequestSpec, Workload, uniform_batch

GOAL_RATIO, LIMIT_RATIO = 0.02, 0.05  # of a median of TTFT or of time per token
COMPARED = {"ttft_s": "TTFT", "tpot_s": "time per token", "itl_s": "gap between chunks"}
# Every case has its own warm-up, and a tool takes ten seconds to start: a round is long, there are
# few. What the machine does meanwhile reaches single rounds: a median of seven leaves three out.
STOP = StopRule(min_rounds=7, max_rounds=7, warmup_rounds=0, time_cap_s=1500.0)


@dataclass(frozen=True, slots=True)
class ServerUnderTest:
    """Where the clients are sent: `kind` names the server in the record (inferlab, mock, ...).

    `tokenizer` is the folder of the model's; `ignore_eos` whether requests carry that field.
    """

    kind: str
    url: str
    model: str
    tokenizer: Path
    ignore_eos: bool = True


def make_job(
    server: ServerUnderTest, prompt_len: int, output_len: int, num_requests: int,
    concurrency: int = 1, seed: int = 0,
) -> Job:  # fmt: skip
    """`num_requests` texts of exactly `prompt_len` tokens, drawn from a seed."""
    tokenizer = open_tokenizer(server.tokenizer)
    words = word_tokens(tokenizer)
    drawn = uniform_batch(len(words), num_requests, prompt_len, output_len, seed)
    prompts = tuple(texts(in_words(drawn, words), tokenizer))
    return Job(
        server.url, server.model, server.tokenizer, prompts, output_len, concurrency,
        ignore_eos=server.ignore_eos,
    )  # fmt: skip


def our_run(job: Job) -> LoadRun:
    """Our client does the job: closed loop, the peers' texts and fields, its warm-up before.

    MeasurementError when a request failed or had another number of tokens than was asked for;
    KeyboardInterrupt after Ctrl-C.
    """
    target = Target(job.url, job.model, extensions=False, options=job.body)
    if job.num_warmup:
        warmup = [job.prompts[index % job.num_requests] for index in range(job.num_warmup)]
        first = _workload(job, warmup)
        checked(drive(target, first, concurrency=job.concurrency, prompts=warmup))
    workload = _workload(job, job.prompts)
    run = checked(drive(target, workload, concurrency=job.concurrency, prompts=job.prompts))
    wrong = [r for r in run.trace.requests if r.status != "ok" or r.output_tokens != job.output_len]
    if wrong:
        first = wrong[0]
        raise MeasurementError(
            f"{len(wrong)} of {job.num_requests} answers do not count: {first.id} is "
            f"{first.status} with {first.output_tokens} tokens"
            + (f" ({first.error})" if first.error else "")
        )
    return run


def client_case(name: str, job: Job, server: str) -> Case:
    """Our client on `job`, reported as the peer `name` would report it."""

    def run() -> dict[str, float]:
        done = our_run(job)
        found = _metrics(as_reported_by(name, done.trace))
        return {**found, "void_count": float(not done.verdict.valid)}

    return Case(run, _params("inferlab", name, job, server))


def peer_case(name: str, job: Job, server: str) -> Case:
    """The peer `name` on `job`: its own process, its own clock, its own report."""

    def run() -> dict[str, float]:
        return _metrics(read_report(name, run_peer(name, job)))

    return Case(run, _params(name, name, job, server))


def comparison_cases(
    server: ServerUnderTest, *, peers: Sequence[str], prompt_len: int, output_len: int,
    num_requests: int = 8, concurrency: int = 1, seed: int = 0,
) -> dict[str, Case]:  # fmt: skip
    """Cases for the recorder: ours and each of `peers` (see `peers.installed()`), in pairs."""
    job = make_job(server, prompt_len, output_len, num_requests, concurrency, seed)
    cases = {}
    for name in peers:
        stem = f"{server.kind}-c{concurrency}-{name}"
        cases[f"{stem}-ours"] = client_case(name, job, server.kind)
        cases[stem] = peer_case(name, job, server.kind)
    return cases


def known_delay_case(
    client: str, tokenizer: Path, *, concurrency: int = 1, num_requests: int = 16,
    ttft_s: float = 0.05, itl_s: float = 0.02,
) -> Case:  # fmt: skip
    """What a client ("inferlab" or a peer) adds to times that are known: those of the mock server.

    Metrics: median TTFT and time per token as the client reports them, less what the server logged
    (`ttft_error_s`, `tpot_error_s`), and what it logged.
    """

    def run() -> dict[str, float]:
        with MockServer(ttft_s=ttft_s, itl_s=itl_s) as mock:
            server = ServerUnderTest("mock", mock.url, "mock", tokenizer)
            job = make_job(server, 64, 32, num_requests, concurrency)
            if client == "inferlab":
                seen = as_reported_by("aiperf", our_run(job).trace)  # the plainest definitions
            else:
                seen = read_report(client, run_peer(client, job))
            logged = [entry for entry in mock.log().values() if len(entry.writes) == job.output_len]
        first_s = median(entry.writes[0] - entry.received for entry in logged)
        token_s = median(
            (entry.writes[-1] - entry.writes[0]) / (job.output_len - 1) for entry in logged
        )
        return {
            "ttft_error_s": seen["ttft_s"] - first_s, "tpot_error_s": seen["tpot_s"] - token_s,
            "logged_ttft_s": first_s, "logged_tpot_s": token_s,
        }  # fmt: skip

    params = {"phase": "known-delays", "client": client, "concurrency": concurrency,
              "num_requests": num_requests, "server": "mock"}  # fmt: skip
    return Case(run, params)


def agreement(record: Record) -> pd.DataFrame:
    """One row a peer, concurrency, server and quantity, in the order of the record's cases.

    `ours` and `theirs` are medians in seconds, both in the peer's definition; `ratio` is theirs
    over ours, paired by round, with its interval (`low`, `high`: NaN for fewer rounds than an
    interval needs); `agrees` whether it lies within LIMIT_RATIO of one. Empty without such cases.
    """
    rows = []
    for case, info in record.manifest.cases.items():
        name = info.params.get("client")
        if name not in PEERS or info.params.get("reported_as") != name:
            continue
        for metric in COMPARED:
            if metric not in record.metrics(case) or metric not in record.metrics(f"{case}-ours"):
                continue
            ratio = record.ratio(f"{case}-ours", case, metric)
            rows.append({
                "server": info.params["server"],
                "concurrency": info.params["concurrency"],
                "peer": name,
                "metric": metric,
                "ours": record.estimate(f"{case}-ours", metric).value,
                "theirs": record.estimate(case, metric).value,
                "ratio": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
                "rounds": ratio.n,
                "agrees": abs(ratio.value - 1) <= LIMIT_RATIO,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _metrics(values: dict[str, float]) -> dict[str, float]:
    """Values of a report under names that a record takes: each ends in its unit."""
    return {"requests_count" if k == "requests" else k: value for k, value in values.items()}


def _workload(job: Job, prompts: Sequence[str]) -> Workload:
    """`prompts` as requests, with their token ids: the trace then knows their lengths."""
    tokenizer = open_tokenizer(job.tokenizer)
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in prompts]
    requests = (
        RequestSpec(f"r{index:04d}", 0.0, tuple(ids), job.output_len)
        for index, ids in enumerate(encoded)
    )
    return Workload(tuple(requests), seed=0)


def _params(client: str, name: str, job: Job, server: str) -> dict[str, object]:
    return {
        "server": server, "client": client, "reported_as": name, "concurrency": job.concurrency,
        "num_requests": job.num_requests, "output_len": job.output_len,
    }  # fmt: skip
