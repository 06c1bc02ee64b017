"""Between engine and loop: pieces, refusals, and what happens at the end."""

import asyncio
import threading
import time
from multiprocessing import Pipe

import httpx
import pytest
from server_examples import ScriptedEngine, Stats, worker_for

from inferlab.errors import MeasurementError
from inferlab.server.app import ServedModel, create_app
from inferlab.server.schema import ApiError
from inferlab.server.text import NumberCodec
from inferlab.server.worker import MAX_TAKEN, ClientGone, EngineWorker, TokenStream


def run(scenario, engine=None, **options):
    """`scenario(worker)` on a loop, with an engine at the other end of its line."""

    async def main():
        worker = worker_for(engine or ScriptedEngine(), **options)
        worker.start()
        try:
            return await scenario(worker)
        finally:
            await worker.close()

    return asyncio.run(asyncio.wait_for(main(), 20))


async def all_tokens(worker, stream):
    taken = []
    while not taken or taken[-1][1] is None:
        taken += await stream.take()
    worker.release(stream)
    return taken


def test_tokens_come_in_order_with_the_reason_last():
    async def scenario(worker):
        worker.submit(stream := TokenStream("a", [1], 5))
        return await all_tokens(worker, stream)

    taken = run(scenario)
    assert taken == [(2, None), (3, None), (4, None), (5, None), (6, "length")]


def test_what_waited_long_comes_in_bounded_pieces():
    async def scenario(_):
        stream = TokenStream("a", [1], 1000)
        for token in range(1000):
            stream.push(token, None)
        sizes = [len(await stream.take()) for _ in range(1000 // MAX_TAKEN)]
        return sizes, len(stream.pending)

    sizes, left = run(scenario)
    assert set(sizes) == {MAX_TAKEN} and left == 1000 % MAX_TAKEN


def test_tokens_come_before_an_error_and_nothing_after_the_client_left():
    async def scenario(_):
        stream = TokenStream("a", [1], 5)
        stream.push(3, None)
        stream.fail(ApiError(500, "broken"))
        assert await stream.take() == [(3, None)]
        with pytest.raises(ApiError, match="broken"):
            await stream.take()
        stream.push(4, None)
        stream.leave()
        with pytest.raises(ClientGone):
            await stream.take()

    run(scenario)


def test_a_request_that_left_before_the_engine_saw_it_is_not_added():
    engine = ScriptedEngine(step_s=0.05)

    async def scenario(worker):
        worker.submit(running := TokenStream("a", [1], 3))
        await running.take()  # the engine is in a step now
        worker.submit(late := TokenStream("b", [1], 3))
        worker.release(late)
        await all_tokens(worker, running)

    run(scenario, engine)
    assert [seen[0] for seen in engine.seen] == ["a"]


def test_a_place_is_free_again_when_an_answer_is_over():
    async def scenario(worker):
        worker.submit(stream := TokenStream("a", [1], 3))
        with pytest.raises(ApiError, match="as many as this server takes") as caught:
            worker.submit(TokenStream("b", [1], 3))
        assert caught.value.status == 429
        await all_tokens(worker, stream)
        worker.submit(stream := TokenStream("c", [1], 3))
        await all_tokens(worker, stream)

    run(scenario, max_open=1)


def test_the_engines_own_full_queue_is_429():
    class Full(ScriptedEngine):
        def add_request(self, *_, **__):
            raise MeasurementError("as many wait as may")

    async def scenario(worker):
        worker.submit(stream := TokenStream("a", [1], 3))
        with pytest.raises(ApiError, match="as many wait") as caught:
            await stream.take()
        return caught.value

    error = run(scenario, Full())
    assert error.status == 429 and error.headers["retry-after"]


def test_a_failed_engine_takes_no_more_requests():
    async def scenario(worker):
        worker.submit(stream := TokenStream("a", [1], 30))
        with pytest.raises(ApiError, match="the engine failed"):
            await all_tokens(worker, stream)
        assert worker.failure.startswith("RuntimeError")
        with pytest.raises(ApiError) as caught:
            worker.submit(TokenStream("b", [1], 3))
        return caught.value.status

    assert run(scenario, ScriptedEngine(fail_at=3)) == 503


def test_an_engine_that_ended_without_a_word_is_waited_for_beside_the_loop():
    asked = []

    def ending():
        asked.append(threading.current_thread())
        time.sleep(0.5)
        return "its process ended with code 3"

    async def main():
        line, other = Pipe()
        worker = EngineWorker(line, Stats(), ending=ending)
        worker.start()
        worker.submit(stream := TokenStream("a", [1], 3))
        other.close()
        with pytest.raises(ApiError, match="the engine failed"):
            await stream.take()
        assert worker.failure == "its process has ended" and not worker._ended.done()
        await worker.close()
        return worker.failure

    began_s = time.monotonic()
    assert asyncio.run(asyncio.wait_for(main(), 20)) == "its process ended with code 3"
    assert len(asked) == 1 and asked[0] is not threading.main_thread()
    assert time.monotonic() - began_s < 5


def test_closing_waits_only_so_long_for_an_engine_that_hangs():
    async def main():
        line, other = Pipe()  # nobody reads the other end
        worker = EngineWorker(line, Stats())
        worker.start()
        worker.submit(TokenStream("a", [1], 3))
        await worker.close(last_step_s=0.2)
        other.close()

    began_s = time.monotonic()
    asyncio.run(asyncio.wait_for(main(), 20))
    assert 0.2 <= time.monotonic() - began_s < 5


def test_health_says_that_the_engine_has_failed():
    async def scenario(worker):
        app = create_app(ServedModel("tiny", 61, 128, NumberCodec()), worker)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
            before = await client.get("/health")
            worker.submit(stream := TokenStream("a", [1], 3))
            with pytest.raises(ApiError):
                await stream.take()
            return before, await client.get("/health")

    before, after = run(scenario, ScriptedEngine(fail_at=1))
    assert (before.status_code, before.json()) == (200, {"status": "ok"})
    assert (after.status_code, after.json()) == (503, {"status": "failed"})


def test_closing_ends_the_engines_side_and_tells_who_waits():
    stream = TokenStream("a", [1], 10**6)

    async def scenario(worker):
        worker.submit(stream)
        await stream.take()
        return worker

    worker = run(scenario, ScriptedEngine(step_s=0.001))
    assert worker._line.closed and not worker._sender.is_alive() and stream.error.status == 503
