"""What the client's tests share: small workloads, and a server that plays a script."""

import contextlib
import socket
import threading

from inferlab.workload import constant_times, scheduled_at, uniform_batch


def requests(count=6, output_len=8, rate=200.0):
    """`count` requests, due at an even pace."""
    batch = uniform_batch(1000, count, 5, output_len)
    return scheduled_at(batch, constant_times(count, rate))


@contextlib.contextmanager
def scripted(play):
    """The URL of a server that calls `play(connection, number)` for each connection."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    threads = []

    def accept():
        number = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(connection, number), daemon=True))
            threads[-1].start()
            number += 1

    def answer(connection, number):
        with connection, contextlib.suppress(OSError):
            play(connection, number)

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)
