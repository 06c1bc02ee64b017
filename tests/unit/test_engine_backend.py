"""The engine behind a clock: requests enter when they are due, and every token has its time."""

import json

import pytest
from test_paged import decoder_of
from tiny_models import tiny

from inferlab import fitting
from inferlab.backends import load_backend
from inferlab.backends.engine import EngineBackend
from inferlab.cli import app
from inferlab.decoding import generate
from inferlab.errors import UserError
from inferlab.models import config
from inferlab.workload import RequestSpec, Workload, scheduled_at, unequal_batch

SMALL = tiny("tiny-engine", num_layers=1)


def alone(decoder, workload):
    return [generate(decoder, [s.prompt_token_ids], s.output_len)[0] for s in workload.requests]


def test_a_batch_is_served_and_the_engine_kept_while_it_fits():
    decoder = decoder_of()
    backend = EngineBackend(decoder)
    workload = unequal_batch(61, [9, 3, 5], [4, 6, 1])
    run = backend.run(workload)
    assert run.token_ids == alone(decoder, workload)
    assert [r.output_tokens for r in run.trace.requests] == [4, 6, 1]
    assert run.trace.meta["max_num_seqs"] == 3 and run.trace.meta["computed_tokens"] == 17 + 8
    assert run.trace.meta["label"] == "measured" and run.trace.meta["backend"] == "engine"
    engine = backend.engine
    again = backend.run(unequal_batch(61, [4, 4], 3))
    assert backend.engine is engine and again.trace.meta["computed_tokens"] == 8 + 4
    backend.run(unequal_batch(61, [4] * 4, 3))
    assert backend.engine is not engine


def test_requests_enter_when_they_are_due():
    decoder = decoder_of()
    workload = scheduled_at(unequal_batch(61, [9, 3, 5], [4, 6, 2]), [0.0, 0.02, 0.08])
    backend = EngineBackend(decoder, max_num_seqs=2, chunk_size=4, max_num_batched_tokens=8)
    run = backend.run(workload)
    assert run.token_ids == alone(decoder, workload)
    for request, due in zip(run.trace.requests, [0.0, 0.02, 0.08], strict=True):
        assert request.scheduled == due <= request.sent <= request.events[0][0]
        assert request.status == "ok"
    assert run.trace.meta["chunk_size"] == 4 and run.trace.meta["policy"] == "continuous"


def test_who_finds_the_line_full_is_an_error_in_the_trace():
    backend = EngineBackend(decoder_of(), max_num_seqs=1, max_waiting=1)
    run = backend.run(unequal_batch(61, [4] * 4, 3))
    assert [r.status for r in run.trace.requests] == ["ok", "ok", "error", "error"]
    assert run.token_ids[2] == [] and "requests wait already" in run.trace.requests[3].error


def test_a_request_that_can_never_fit_leaves_nothing_behind():
    backend = EngineBackend(decoder_of(), num_blocks=1, max_num_seqs=2)
    with pytest.raises(UserError, match="16 are the most"):
        backend.run(unequal_batch(61, [4, 30], 3))
    assert not backend.engine.has_work
    assert backend.run(unequal_batch(61, [4], 3)).token_ids[0]


def test_options_come_through_the_loader():
    backend = load_backend(
        "engine", SMALL, "float32", "cpu", weights="random", cache_tokens=100, max_num_seqs=3,
        policy="static", prefix_cache=True,
    )  # fmt: skip
    meta = backend.run(unequal_batch(61, [4] * 3, 3)).trace.meta
    assert (meta["num_blocks"], meta["policy"], meta["prefix_cache"]) == (6, "static", True)
    backend.release()
    assert backend.engine is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step": "compile"}, "unknown step 'compile'; known: eager, kernels"),
        ({"step": "kernels"}, "step kernels is not possible"),
        ({"cache_tokens": 64, "num_blocks": 4}, "give one of them"),
        ({"cache_tokens": 8}, "at least a block of 16"),
        ({"colour": 1}, "backend engine has no option 'colour'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        load_backend("engine", SMALL, "float32", "cpu", weights="random", **options)


def test_workloads_that_cannot_be_are_refused():
    backend = EngineBackend(decoder_of())
    spec = RequestSpec("a", 0.0, (1, 2), 2)
    for requests, words in [((), "no requests"), ((spec, spec), "the same id")]:
        with pytest.raises(UserError, match=words):
            backend.run(Workload(requests, 0))


def test_it_is_measured_beside_the_static_batch(capsys, monkeypatch):
    monkeypatch.setitem(config.PRESETS, SMALL.name, SMALL)
    monkeypatch.setattr(fitting, "fit_shapes", lambda *_: [fitting.Shape(1, n, 4) for n in (3, 9)])
    with pytest.raises(SystemExit) as caught:
        app.main([
            "measure", "--backend", "engine,torch", "--model", SMALL.name, "--weights", "random",
            "--batch-size", "1,2", "--dtype", "float32", "--prompt-len", "5", "--output-len", "4",
            "--rounds", "3", "--time-cap-s", "0.1", "--device", "cpu", "--json",
        ])  # fmt: skip
    captured = capsys.readouterr()
    assert caught.value.code == 0, captured.err
    cases = [json.loads(line) for line in captured.out.splitlines()]
    assert [case["backend"] for case in cases] == ["engine"] * 2 + ["torch"] * 2
    assert all(case["measured"]["tpot_s"]["median"] > 0 for case in cases)
