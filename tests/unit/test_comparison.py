"""Our client and another one on the same job: pairs of cases, and the table of how they agree."""

from __future__ import annotations

import dataclasses

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from inferlab.client.mock import MockServer
from inferlab.dialects import DIALECTS
from inferlab.errors import MeasurementError
from inferlab.profiles import current_profile
from inferlab.recorder import Case, Recorder
from inferlab.timing import StopRule
from inferlab.underload import comparison
from inferlab.underload.comparison import (
    ServerUnderTest,
    agreement,
    comparison_cases,
    make_job,
    our_run,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a tokenizer of two hundred words, each with its leading space."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = [a + b + c for a in "bdfgkl" for b in "aeiou" for c in "mnrstx"]
    vocabulary = {f"Ġ{word}": number for number, word in enumerate(words)}
    built = Tokenizer(models.WordLevel({**vocabulary, "?": len(words)}, unk_token="?"))  # noqa: S106
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def server(tokenizer):
    with MockServer(ttft_s=0.02, itl_s=0.01) as mock:
        yield ServerUnderTest("mock", mock.url, "mock", tokenizer)


def test_prompts_have_exactly_their_length_and_come_from_the_seed(tokenizer):
    server = ServerUnderTest("mock", "http://127.0.0.1:1", "mock", tokenizer)
    job = make_job(server, prompt_len=12, output_len=4, num_requests=3, seed=1)
    assert [len(text.split()) for text in job.prompts] == [12] * 3
    assert len(set(job.prompts)) == 3
    assert job.prompts == make_job(server, 12, 4, 3, seed=1).prompts
    assert job.prompts != make_job(server, 12, 4, 3, seed=2).prompts


def test_our_client_does_the_job(server):
    job = make_job(server, prompt_len=12, output_len=4, num_requests=6, concurrency=2)
    trace = our_run(job).trace
    assert [r.output_tokens for r in trace.requests] == [4] * 6


def test_a_failed_request_voids_the_comparison(server):
    broken = ServerUnderTest("mock", server.url, "http-500", server.tokenizer)
    job = make_job(broken, prompt_len=12, output_len=4, num_requests=2)
    with pytest.raises(MeasurementError, match="every request failed; the first: HTTP 500"):
        our_run(job)
    short = ServerUnderTest("mock", server.url, "die-mid-stream", server.tokenizer)
    one_bad = dataclasses.replace(make_job(short, 12, 4, 2), num_warmup=0, model="mock")
    with (
        MockServer(ttft_s=0.01, itl_s=0.005, fault="die-mid-stream", fault_every=2) as broken,
        pytest.raises(MeasurementError, match="1 of 2 answers do not count: r0001 is error"),
    ):
        our_run(dataclasses.replace(one_bad, url=broken.url))


def test_ctrl_c_is_no_answer_that_does_not_count(server, monkeypatch):
    job = make_job(server, prompt_len=12, output_len=4, num_requests=2)
    drive = comparison.drive

    def interrupted(*arguments, **more):
        return dataclasses.replace(drive(*arguments, **more), interrupted=True)

    monkeypatch.setattr(comparison, "drive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        our_run(job)


@pytest.fixture
def slow_peer(monkeypatch):
    """Another client: ours, but it reports a fifth more time per token."""

    def run_peer(name, job):
        report = DIALECTS[name](our_run(job).trace)
        report["inter_token_latency"]["p50"] *= 1.2
        return report

    monkeypatch.setattr(comparison, "run_peer", run_peer)


def test_pairs_of_cases_become_a_table(server, slow_peer):
    cases = comparison_cases(
        server, peers=["aiperf"], prompt_len=12, output_len=8, num_requests=4, concurrency=2
    )
    assert list(cases) == ["mock-c2-aiperf-ours", "mock-c2-aiperf"]  # ours goes first
    recorder = Recorder("01_metrics", {}, current_profile())
    stop = StopRule(min_rounds=2, max_rounds=2, warmup_rounds=0)
    table = agreement(recorder.measure("peers", cases, stop)).set_index("metric")
    assert list(table.index) == ["ttft_s", "tpot_s", "itl_s"]
    assert table.loc["tpot_s", "ratio"] == pytest.approx(1.2, rel=0.05)
    assert not table.loc["tpot_s", "agrees"]
    assert table.loc["tpot_s", "ours"] == pytest.approx(0.010, rel=0.2)
    assert set(table["peer"]) == {"aiperf"} and set(table["concurrency"]) == {2}
    assert set(table["rounds"]) == {2} and set(table["server"]) == {"mock"}


def test_without_such_cases_the_table_is_empty():
    recorder = Recorder("01_metrics", {}, current_profile())
    case = Case(lambda: {"ttft_s": 1.0}, {"client": "inferlab"})
    stop = StopRule(min_rounds=1, max_rounds=1, warmup_rounds=0)
    assert agreement(recorder.measure("other", {"a": case}, stop)).empty


def test_our_client_adds_next_to_nothing_to_known_delays(tokenizer):
    case = comparison.known_delay_case("inferlab", tokenizer, num_requests=2, itl_s=0.005)
    values = case.run()
    assert values["logged_ttft_s"] == pytest.approx(0.05, rel=0.1)
    assert abs(values["ttft_error_s"]) < 0.01 and abs(values["tpot_error_s"]) < 0.001
    assert case.params["phase"] == "known-delays" and case.params["client"] == "inferlab"
