"""The server of batches in real time, on a tiny decoder."""

import pytest
from tiny_models import tiny

from inferlab.backends import load_backend
from inferlab.backends.batched import BatchedBackend
from inferlab.decoding.generate import generate
from inferlab.errors import UserError
from inferlab.models import placement
from inferlab.models.load import load_decoder
from inferlab.models.placement import BatchTooLarge
from inferlab.serving.batcher import NONE, dynamic, static
from inferlab.serving.waits import PREFILLS, batches_of, waits_s
from inferlab.workload import Workload, scheduled_at, unequal_batch, uniform_batch

ODD = unequal_batch(61, [3, 11, 7, 1, 5], [6, 2, 9, 1, 4], seed=2)


@pytest.fixture(scope="module")
def decoder():
    return load_decoder(tiny(), "float32", "cpu", "random")


@pytest.fixture(scope="module")
def alone(decoder):
    return [generate(decoder, [s.prompt_token_ids], s.output_len)[0] for s in ODD.requests]


@pytest.mark.parametrize("prefill", PREFILLS)
@pytest.mark.parametrize("policy", [NONE, static(2), static(5), dynamic(3), dynamic(8, 0.01)])
def test_no_policy_changes_a_token(decoder, alone, policy, prefill):
    run = BatchedBackend(decoder, policy, prefill).run(ODD)
    assert run.token_ids == alone
    assert [r.output_tokens for r in run.trace.requests] == [6, 2, 9, 1, 4]
    assert [r.id for r in run.trace.requests] == [s.id for s in ODD.requests]
    assert max(batch.size for batch in batches_of(run.trace)) <= policy.size


def test_the_store_is_used_again_and_stays_dense(decoder, alone):
    backend = BatchedBackend(decoder, dynamic(5))
    backend.run(ODD)
    store = backend._store
    assert backend.run(ODD).token_ids == alone
    assert backend._store is store
    rows = [store.manager.block_table(row) for row in range(5)]
    assert rows == [(0,), (1,), (2,), (3,), (4,)]  # side by side: read without a copy
    backend.release()
    assert backend._store is None


def test_requests_wait_for_their_time_and_the_trace_says_so(decoder):
    due = scheduled_at(uniform_batch(61, 4, 3, 2), [0.0, 0.05, 0.05, 0.3])
    trace = BatchedBackend(decoder, dynamic(8, 0.02)).run(due).trace
    batches = batches_of(trace)
    assert [batch.size for batch in batches] == [1, 2, 1]
    assert batches[1].start_s >= 0.07
    assert all(wait >= 0.02 - 1e-9 for wait in waits_s(trace)[::3])
    assert batches[2].start_s >= 0.32
    meta = trace.meta
    assert (meta["policy"], meta["max_batch_size"], meta["max_wait_s"]) == ("dynamic", 8, 0.02)
    assert meta["label"] == "measured" and meta["backend"] == "batched"


def test_a_static_batch_waits_for_the_last_of_it(decoder):
    due = scheduled_at(uniform_batch(61, 3, 3, 2), [0.0, 0.1, 0.15])
    trace = BatchedBackend(decoder, static(2)).run(due).trace
    assert [batch.size for batch in batches_of(trace)] == [2, 1]
    assert batches_of(trace)[0].start_s >= 0.1
    assert trace.meta["max_wait_s"] is None


def test_a_batch_that_fails_leaves_no_store_behind(decoder, monkeypatch):
    backend = BatchedBackend(decoder, dynamic(5))

    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(backend, "read", fail)
    with pytest.raises(MemoryError):
        backend.run(ODD)
    assert backend._store is None


def test_requests_out_of_order_are_refused(decoder):
    first, second = scheduled_at(uniform_batch(61, 2, 3, 2), [0.0, 0.05]).requests
    with pytest.raises(UserError, match="order of arrival"):
        BatchedBackend(decoder, static(2)).run(Workload((second, first), 0))


def test_it_is_a_backend_by_name():
    backend = load_backend(
        "batched", tiny(), weights="random", policy="static", batch_size=2, prefill="padded"
    )
    assert backend.name == "batched" and backend.policy == static(2)
    assert len(backend.run(ODD).token_ids) == 5


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"policy": "later"}, "none, static, dynamic"),
        ({"prefill": "none"}, "padded, packed"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_wait_s": -1.0}, "max_wait_s"),
        ({"max_size": 3}, "no option"),
    ],
)
def test_bad_options_end_in_one_line(options, word):
    with pytest.raises(UserError, match=word) as error:
        load_backend("batched", tiny(), weights="random", **options)
    assert "\n" not in str(error.value)


def test_nothing_to_serve_and_too_much_to_hold(decoder, monkeypatch):
    with pytest.raises(UserError, match="no requests"):
        BatchedBackend(decoder).run(Workload((), 0))
    with pytest.raises(UserError, match="trained for"):
        BatchedBackend(decoder).run(uniform_batch(61, 1, 120, 20))
    monkeypatch.setattr(placement, "available_bytes", lambda: 1000)
    with pytest.raises(BatchTooLarge, match="a batch of 2"):
        BatchedBackend(decoder, static(2)).run(uniform_batch(61, 3, 20, 20))
