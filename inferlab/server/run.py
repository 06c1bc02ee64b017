"""How does the server start, say that it is ready, and end without cutting anybody off?

The socket is bound before the model is loaded, so that a taken port costs no minute. A first
SIGTERM or SIGINT lets the open answers finish while new requests get 503; a second one ends them.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
from collections.abc import Callable
from typing import Any

from inferlab.errors import MeasurementError, UserError
from inferlab.server.app import ServedModel, create_app
from inferlab.server.connection import Protocol, drop_stalled
from inferlab.server.options import ServeOptions, check_options, codec_of
from inferlab.server.process import EngineProcess
from inferlab.server.reply import STALLED_READER_S
from inferlab.server.schema import ApiError
from inferlab.server.worker import EngineWorker

KEEP_ALIVE_S = 75.0  # longer than clients keep idle connections: they should close first
LOOK_S = 0.05
LAST_WORDS_S = 5.0  # for what is in the sockets when the server ends


def serve(options: ServeOptions, ready: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Serve until a signal comes; `ready` gets the line that says where, `warn` what to know.

    MeasurementError when the engine failed, or when a second signal cut answers off.
    """
    with listening_socket(options.host, options.port) as listener:
        drop_stalled(listener, STALLED_READER_S)
        if not is_loopback(options.host):
            warn(
                f"{options.host} is not the loopback: everybody who reaches this machine can use "
                "the server, which asks nobody who they are"
            )
        with EngineProcess(options) as engine:  # which reads its weights meanwhile
            config = check_options(options)
            codec = codec_of(config, options.weights)
            stats = engine.wait_ready()
            room = stats.num_blocks * options.block_size
            model = ServedModel(
                options.served_model_name or config.name, config.vocab_size,
                min(config.max_context_len, room), codec,
            )  # fmt: skip
            worker = EngineWorker(
                engine.line,
                stats,
                max_open=options.max_num_seqs + options.max_waiting,
                num_slots=options.max_num_seqs,
                ending=engine.ending,
            )
            app = create_app(model, worker)
            gc.collect()
            gc.freeze()  # what lives as long as the server need not be searched again and again
            asyncio.run(run_server(app, worker, listener, model.name, ready))


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; UserError where host or port cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise UserError(f"--host {host[:60]!r} is no address of this machine") from error
    # Named TCP, not 0: asyncio sends small pieces at once (TCP_NODELAY) only where it sees that.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen at {host} port {port} ({error.strerror}): is another server there? "
            "Give another --port, or 0 for any free one"
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


async def run_server(
    app: Any,
    worker: EngineWorker,
    listener: socket.socket,
    name: str,
    ready: Callable[[str], None],
) -> None:
    """uvicorn on `listener` until a signal, or until the engine fails."""
    import uvicorn

    config = uvicorn.Config(
        app, http=Protocol, ws="none", lifespan="on", log_config=None, access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE_S, backlog=2048,
        timeout_graceful_shutdown=LAST_WORDS_S,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # ours drain first
    signals = _Signals(worker)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    announced = False
    while not task.done():
        if server.started and not announced:
            host, port = listener.getsockname()[:2]
            place = f"[{host}]" if ":" in host else host
            ready(f"serving {name} at http://{place}:{port}")
            announced = True
        drained = worker.draining and not worker.num_open
        if drained or worker.failure is not None or signals.count > 1:
            server.should_exit = True
            if not drained:
                worker.fail_all(ApiError(503, "the server is stopping"))
        await asyncio.sleep(LOOK_S)
    await task
    if worker.failure is not None:
        raise MeasurementError(f"the engine failed: {worker.failure}")
    if signals.cut_off:
        raise MeasurementError(f"stopped while {signals.cut_off} requests were not answered")


class _Signals:
    """SIGTERM and SIGINT: the first drains, the second ends."""

    def __init__(self, worker: EngineWorker) -> None:
        self.count, self.cut_off = 0, 0
        self._worker = worker
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                asyncio.get_running_loop().add_signal_handler(number, self._came)

    def _came(self) -> None:
        self.count += 1
        self._worker.draining = True
        if self.count == 2:
            self.cut_off = self._worker.num_open
