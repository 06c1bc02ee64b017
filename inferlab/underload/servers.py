"""How is a server started for a measurement, and ended whatever happens?

    with launch("inferlab", "smollm2-135m", max_num_seqs=8) as server:
        ... HttpBackend(server.url, server.model_id) ...

Two kinds: `inferlab` (our own `inferlab serve`) and `transformers` (`transformers serve`, offline,
on the same folder of weights). Each runs in a process group of its own, on a leash: it ends
with the process that started it, and nothing of it is left.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferlab.errors import MeasurementError, UserError
from inferlab.underload.leash import SCRATCH_PREFIX

KINDS = ("inferlab", "transformers")
HOST = "127.0.0.1"
READY_S = 120.0
GRACE_S = 10.0
_ANNOUNCED = re.compile(r"^serving .* at (http://\S+)$", re.MULTILINE)
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(slots=True)
class RunningServer:
    """A server that answers at `url`; a context manager that ends it, or call `stop()`.

    `model_id` is what requests must name as their model.
    """

    kind: str
    url: str
    model_id: str
    process: subprocess.Popen = field(repr=False)
    log: Path = field(repr=False)
    scratch: Path = field(repr=False)  # removed with the server
    _is_stopped: bool = field(default=False, repr=False)

    @property
    def pid(self) -> int:
        """Process id of the server, the leader of its group."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def cpu_s(self) -> float:
        """Processor seconds that the server and its children have used; MeasurementError if gone.

        Children that ended count as far as the server has collected them.
        """
        return sum(t.user + t.system + t.children_user + t.children_system for t in self._times())

    def rss_bytes(self) -> int:
        """Memory of the server and its children that is resident now."""
        return sum(one.memory_info().rss for one in self._family())

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Ask it to end (it drains), end it by force after `grace_s`; twice does no harm."""
        if self._is_stopped:
            return  # its number may be another process's by now
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # the server if it did not end, and what it left
        self.process.wait()
        self._is_stopped = True
        if self.process.stdin:
            self.process.stdin.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _family(self) -> list[Any]:
        import psutil

        if not self.alive:
            raise MeasurementError(f"the server ({self.kind}) has ended: {last_line(self.log)}")
        leader = psutil.Process(self.pid)
        return [leader, *leader.children(recursive=True)]

    def _times(self) -> list[Any]:
        import psutil

        times = []
        for one in self._family():
            with suppress(psutil.NoSuchProcess):
                times.append(one.cpu_times())
        return times


def launch(
    kind: str = "inferlab",
    model: str = "smollm2-135m",
    port: int = 0,
    *,
    device: str = "cpu",
    dtype: str = "bfloat16",
    threads: int | None = None,
    log: Path | str | None = None,
    ready_s: float = READY_S,
    **options: Any,
) -> RunningServer:
    """Start a server of `model` on the loopback and wait until it answers.

    `port` 0 takes any free one. `options` become its flags: `max_num_seqs=8` is `--max-num-seqs 8`,
    True a bare flag, None and False nothing. `ignore_eos=True` is for `transformers`, which refuses
    the field in a request: the end-of-sequence token is taken out of its generation settings, so
    that every answer has exactly the tokens asked for (our server has the field). `log` keeps what
    it prints. UserError for a bad argument or a port that is taken, MeasurementError with the last
    line of its log when it ends, or does not answer within `ready_s`.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of server {str(kind)[:40]!r}; known: {', '.join(KINDS)}")
    if port and _taken(port):
        raise UserError(f"port {port} is taken: give another one, or 0 for any free one")
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
    try:
        if kind == "inferlab":
            command, url = _our_command(model, port, device, dtype, threads, options), None
        else:
            _linked_model(model, scratch, bool(options.pop("ignore_eos", False)))
            port = port or _free_port()
            command = _transformers_command(model, port, device, dtype, options)
            url = f"http://{HOST}:{port}"
        path = Path(log) if log else scratch / "server.log"
        with path.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
                [sys.executable, "-m", "inferlab.underload.leash", *command],
                cwd=scratch, env=_environment(threads), stdin=subprocess.PIPE, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    server = RunningServer(kind, url or "", model, process, path, scratch)
    try:
        _wait_until_ready(server, ready_s)
    except BaseException:
        server.stop(grace_s=1.0)
        raise
    return server


def last_line(log: Path) -> str:
    """Last line of a log that says something, for a message."""
    with suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1].strip()[:200]
    return "it printed nothing"


def flags(options: Mapping[str, Any]) -> list[str]:
    """`max_num_seqs=8, prefix_cache=True, chunk_size=None` as `--max-num-seqs 8 --prefix-cache`."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(str(value))
    return words


def _our_command(
    model: str, port: int, device: str, dtype: str, threads: int | None, options: dict[str, Any]
) -> list[str]:
    if "ignore_eos" in options:
        raise UserError("our server reads ignore_eos from each request: say it there")
    known = {"model": model, "device": device, "dtype": dtype, "host": HOST}
    # port 0 must reach the server: it picks a free one and says which
    return ["inferlab", "serve", "--port", str(port), *flags(known),
            *flags({"threads": threads, **options})]  # fmt: skip


def _transformers_command(
    model: str, port: int, device: str, dtype: str, options: dict[str, Any]
) -> list[str]:
    known = {"host": HOST, "port": port, "device": device, "dtype": dtype}
    # a folder of the working directory by its bare name: requests then name the model, not a path
    return ["transformers.cli.transformers", "serve", *flags({**known, **options}), model]


def _linked_model(model: str, scratch: Path, ignore_eos: bool) -> None:
    """Links to the model's files as scratch/MODEL; a changed generation_config.json if asked."""
    from inferlab.models.load import ensure_model

    folder = scratch / model
    folder.mkdir()
    for file in ensure_model(model).iterdir():
        (folder / file.name).symlink_to(file)
    if ignore_eos:
        path = folder / "generation_config.json"
        settings = json.loads(path.read_text()) if path.is_file() else {}
        settings.pop("eos_token_id", None)
        path.unlink(missing_ok=True)  # the link, not the cached file
        path.write_text(json.dumps(settings))


def _environment(threads: int | None) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    width = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    return {**os.environ, **offline, **width, "PYTHONUNBUFFERED": "1"}


def _wait_until_ready(server: RunningServer, ready_s: float) -> None:
    deadline = time.monotonic() + ready_s
    while True:
        if not server.alive:
            code = server.process.returncode
            raise MeasurementError(
                f"the server ({server.kind}) ended with code {code} before it answered: "
                f"{last_line(server.log)}"
            )
        if not server.url and (found := _ANNOUNCED.search(server.log.read_text(errors="replace"))):
            server.url = found[1]
        if server.url and _healthy(server.url):
            return
        if time.monotonic() > deadline:
            raise MeasurementError(
                f"the server ({server.kind}) did not answer within {ready_s:.0f} s: "
                f"{last_line(server.log)}"
            )
        time.sleep(0.05)


def _healthy(url: str) -> bool:
    try:
        with _NO_PROXY.open(f"{url}/health", timeout=2.0) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
