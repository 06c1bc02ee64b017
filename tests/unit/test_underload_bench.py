"""Cases of lab 46: from emulated traces, from a tiny engine, from a server's own counters."""

import contextlib
import dataclasses
import http.server
import threading
from types import SimpleNamespace

import pytest
import torch
from record_examples import manifest, samples
from test_paged import decoder_of

from inferlab.backends.base import BackendRun
from inferlab.backends.http import HttpBackend
from inferlab.client.result import LoadRun
from inferlab.errors import MeasurementError, UserError
from inferlab.lengths import constant
from inferlab.metrics import SLO
from inferlab.models.config import get_config
from inferlab.profiles import PROFILES
from inferlab.records import CaseInfo, Record
from inferlab.records.schema import is_metric_name
from inferlab.roofline import Ceilings
from inferlab.serving.engine import Engine
from inferlab.trace import Request, Trace
from inferlab.underload import bench, crowd
from inferlab.underload.cost import StepModel
from inferlab.underload.emulate import EmulatedServer
from inferlab.underload.traffic import lengths_of, times_of, workload_of
from inferlab.workload import constant_times, scheduled_at

MODEL = StepModel(0.012, 0.001, 0.012, 0.0005)
SERVER = EmulatedServer(MODEL, 4, 2048)
SLO_WIDE = SLO(ttft_s=10.0, tpot_s=1.0)


class Emulated:
    """A runner that counts what it was asked."""

    def __init__(self):
        self.seen = []

    def run(self, workload):
        self.seen.append(workload)
        trace = SERVER.open_loop(lengths_of(workload), times_of(workload))
        return BackendRun(trace, [])


def work(count=20, seed=0):
    lengths = constant(8, 5).sample(count, 0)
    return scheduled_at(workload_of(lengths, 61, seed), constant_times(count, 5.0))


def test_every_profile_has_a_setting_and_only_the_largest_has_published_lengths():
    found = {name: bench.setting(profile) for name, profile in PROFILES.items()}
    assert [name for name, one in found.items() if one.published] == ["gpu80"]
    limit = get_config("smollm2-135m").max_context_len
    assert all(8 * one.prompt_len + one.output_len < limit for one in found.values())


def test_metrics_of_a_trace_have_units_and_no_p99_of_a_few():
    found = bench.load_metrics(Emulated().run(work()).trace, SLO_WIDE)
    assert all(map(is_metric_name, found))
    assert found["good_ratio"] == 1 and found["failed_count"] == 0
    assert "ttft_p95_s" in found and "ttft_p99_s" not in found
    assert "void_count" not in found  # no client, no verdict
    many = bench.load_metrics(Emulated().run(work(460)).trace)
    assert many["ttft_p99_s"] >= many["ttft_p95_s"] >= many["ttft_median_s"]


def test_a_verdict_of_the_client_is_kept():
    trace = Emulated().run(work()).trace
    client = {"valid": False, "late_ratio": 0.2, "cpu_ratio": 0.1}
    found = bench.load_metrics(Trace(trace.requests, {"client": client}))
    assert (found["void_count"], found["client_late_ratio"]) == (1.0, 0.2)


def test_a_server_that_answers_nothing_is_no_measurement():
    failed = Trace((Request("a", 0.0, 0.0, 3, (), "error", "HTTP 500: no"),))
    with pytest.raises(MeasurementError, match="HTTP 500: no"):
        bench.load_metrics(failed)


def test_a_case_expects_what_an_emulated_server_shows():
    runner, one, kept = Emulated(), work(), []
    expected = SERVER.open_loop(lengths_of(one), times_of(one))
    case = bench.load_case(runner, one, {"phase": "x"}, expected, SLO_WIDE, kept.append)
    assert case.run() == pytest.approx(case.predicted)
    assert len(kept) == 1 and runner.seen == [one]
    seeds = iter(range(9))
    anew = bench.load_case(runner, lambda: work(seed=next(seeds)), {})
    anew.run(), anew.run()
    first, second = (w.requests[0].prompt_token_ids for w in runner.seen[1:])
    assert first != second and anew.predicted == {}


PAGE = """# HELP inferlab:x y
inferlab:prefix_cache_hits_total{{model_name="m"}} {hits}
inferlab:prompt_tokens_total{{model_name="m"}} {asked}
inferlab:e2e_bucket{{le="1"}} 3
process_cpu_seconds_total 3
"""


@pytest.fixture
def metrics_page():
    """(url, list of pages): each request gets the next page, the last one again and again."""
    pages = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = (pages.pop(0) if len(pages) > 1 else pages[0]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", pages
        server.shutdown()
        thread.join()


def test_the_servers_own_hit_rate_is_reported(metrics_page):
    url, pages = metrics_page
    pages += [PAGE.format(hits=10, asked=100), PAGE.format(hits=40, asked=160)]
    rounds = []
    case = bench.repeating_case(
        Emulated(), url, lambda n: rounds.append(n) or work(), {"phase": "prefix"}, {}
    )
    assert case.run()["hit_ratio"] == pytest.approx(0.5)
    assert case.run()["hit_ratio"] == 0 and rounds == [0, 1]  # nothing asked since
    assert set(bench.counters(url)) == {"prefix_cache_hits_total", "prompt_tokens_total"}


def test_counters_that_cannot_be_read_are_said_so(metrics_page):
    url, pages = metrics_page
    pages.append("up 1\ninferlab:x nonsense\n")
    with pytest.raises(MeasurementError, match="nothing of ours"):
        bench.counters(url)
    with pytest.raises(MeasurementError, match="cannot be read"):
        bench.counters("http://127.0.0.1:9")


def test_steps_of_an_engine_become_two_lines():
    torch.set_num_threads(1)
    engine = Engine(decoder_of(), num_blocks=32, block_size=8, max_num_seqs=4)
    cases = bench.step_cases(engine, (1, 3), (5, 20), 6, steps=3)
    assert list(cases) == ["steps/decode-1", "steps/decode-3", "steps/read-5", "steps/read-20"]
    infos, rows = {}, []
    for name, case in cases.items():
        found = case.run()
        assert list(found.values())[0] > 0 and not engine.has_work
        infos[name] = CaseInfo(params=dict(case.params), block="steps")
        rows += [(name, metric, value, 0, "ok") for metric, value in found.items()]
    model = bench.step_model(Record(manifest(cases=infos), samples(rows)))
    assert model.step_s(2) > 0 and model.read_s(10) > 0
    with pytest.raises(UserError, match="no timed steps"):
        bench.step_model(Record(manifest(), samples()))


def test_published_lengths_are_held_against_the_roofline():
    config, ceilings = get_config("llama-3.1-8b"), Ceilings(4.8e12, 989e12)
    cases = crowd.published_cases(Emulated(), config, "bfloat16", ((10, 4),), 3, ceilings)
    case = cases["published/10-4"]
    assert case.params["roofline_tok_per_s"] > 0 and case.params["dtype"] == "bfloat16"
    assert case.run()["output_tok_per_s"] > 0


def test_the_cache_takes_what_is_free_beside_the_weights():
    small, huge = get_config("smollm2-135m"), get_config("llama-3.1-8b")
    assert crowd.cache_room(small, "bfloat16", "cpu", 1000) == 1000
    beyond = dataclasses.replace(huge, num_layers=40_000)
    with pytest.raises(UserError, match="does not fit"):
        crowd.cache_room(beyond, "bfloat16", "cpu", 1000)


@pytest.fixture
def texting():
    """A TextRunner whose backend answers with the run that the test sets."""
    answers = []

    @dataclasses.dataclass(frozen=True)
    class Backend(HttpBackend):
        def drive(self, workload, prompts=None):
            assert len(prompts) == len(workload.requests)
            return answers[0]

    class Words:
        def get_vocab(self, with_added_tokens):
            return {"Ġ" + "abcdefghij"[n // 10] + "klmnopqrst"[n % 10]: n for n in range(100)}

        def decode(self, ids, skip_special_tokens):
            return " x" * len(ids)

        def encode(self, text, add_special_tokens):
            return SimpleNamespace(ids=text.split())

    return bench.TextRunner(Backend("http://127.0.0.1:1", "m", is_strict=True), Words()), answers


def test_runs_with_text_are_checked_as_runs_with_token_ids_are(texting):
    runner, answers = texting
    trace = Emulated().run(work(2)).trace
    sound = SimpleNamespace(valid=True, reasons=())
    answers[:] = [LoadRun(trace, [[]], [""], sound)]
    assert runner.run(work(2)).trace is trace
    answers[:] = [LoadRun(trace, [[]], [""], SimpleNamespace(valid=False, reasons=("late",)))]
    with pytest.raises(MeasurementError, match="void: late"):
        runner.run(work(2))
    answers[:] = [LoadRun(trace, [[]], [""], sound, interrupted=True)]
    with pytest.raises(KeyboardInterrupt):
        runner.run(work(2))
    failed = Trace((Request("a", 0.0, 0.0, 3, (), "error", "HTTP 500: no"),))
    answers[:] = [LoadRun(failed, [[]], [""], sound)]
    with pytest.raises(MeasurementError, match="every request failed; the first: HTTP 500"):
        runner.run(work(2))


def test_a_calibration_reports_errors_in_seconds():
    found = bench.calibration_case(1).run()
    assert all(map(is_metric_name, found)) and found["ttft_error_max_s"] < 0.5


def test_a_runner_opened_anew_is_warmed_up_and_closed_for_each_run():
    opened = []

    @contextlib.contextmanager
    def one():
        runner = Emulated()
        opened.append([runner, "open"])
        try:
            yield runner
        finally:
            opened[-1][1] = "closed"

    anew = bench.Anew(one, lambda: work(2, seed=9))
    assert len(anew.run(work()).trace.requests) == 20
    anew.run(work())
    assert [state for _, state in opened] == ["closed", "closed"]
    assert [len(sent.requests) for sent in opened[0][0].seen] == [2, 20]
    with pytest.raises(UserError):
        bench.Anew(one, lambda: work(2)).run(dataclasses.replace(work(), requests=()))
    assert opened[-1][1] == "closed"
