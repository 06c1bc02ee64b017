"""A server that is started for a measurement answers, and ends whatever happens to its starter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest

from inferlab.errors import MeasurementError, UserError
from inferlab.underload import servers
from inferlab.underload.servers import flags, last_line, launch

FAKE = '''
"""Answers /health on a free port; `stubborn` ignores SIGTERM; `parent` starts a child first."""
import http.server, os, signal, subprocess, sys

if "ends" in sys.argv:
    sys.exit("no such model: try another")
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "parent" in sys.argv:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("child", child.pid, flush=True)


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404 if "deaf" in sys.argv else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
print(f"serving fake at http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Replace our server by a small one; returns a function that sets its arguments."""
    (tmp_path / "fake_server.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a proxy has no say on the loopback

    def behave(*arguments: str) -> None:
        monkeypatch.setattr(servers, "_our_command", lambda *_: ["fake_server", *arguments])

    behave()
    return behave


def ended(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process is gone (or a zombie of somebody else) within some time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_a_server_answers_and_ends_with_the_block(fake, monkeypatch):
    with launch() as server:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert opener.open(f"{server.url}/health").status == 200
        assert server.model_id == "smollm2-135m" and server.alive
        assert server.cpu_s() > 0 and server.rss_bytes() > 1e6
        pid, scratch = server.pid, server.scratch
    assert ended(pid) and not scratch.exists()
    with monkeypatch.context() as patch:  # twice does no harm, to whoever has its number now
        patch.setattr(os, "killpg", lambda *_: pytest.fail("a group that is not ours"))
        server.stop()
    with pytest.raises(MeasurementError, match="has ended"):
        server.cpu_s()


def test_a_stubborn_server_and_its_children_end(fake, tmp_path):
    fake("stubborn", "parent")
    log = tmp_path / "kept.log"
    server = launch(log=log)
    child = int(log.read_text().split()[1])
    server.stop(grace_s=0.1)
    assert ended(server.pid) and ended(child)
    assert log.is_file()


def test_an_exception_in_the_block_ends_the_server(fake):
    with pytest.raises(RuntimeError), launch() as server:
        raise RuntimeError
    assert ended(server.pid)


def test_the_server_ends_when_its_starter_is_killed(fake, tmp_path, monkeypatch):
    code = textwrap.dedent("""
        import time
        from inferlab.underload import servers
        servers._our_command = lambda *_: ["fake_server", "parent"]
        server = servers.launch()
        print(server.pid, server.scratch, flush=True)
        time.sleep(60)
    """)
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid, scratch = starter.stdout.readline().split()
    pid = int(pid)
    assert not ended(pid, 0.1)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert ended(pid, 10.0) and not Path(scratch).exists()


def test_a_server_that_ends_early_is_named_with_its_last_line(fake):
    fake("ends")
    with pytest.raises(MeasurementError, match="ended with code 1 before.*no such model"):
        launch()


def test_our_own_server_says_why_it_did_not_start():
    with pytest.raises(MeasurementError, match="ended with code 2 .*unknown model 'nope'; known"):
        launch(model="nope")


def test_a_server_that_never_answers_is_ended(fake):
    fake("deaf")
    with pytest.raises(MeasurementError, match="did not answer within 1 s: serving fake"):
        launch(ready_s=1.0)


def test_bad_arguments_are_refused(fake):
    with pytest.raises(UserError, match="unknown kind of server 'ftp'; known: inferlab"):
        launch("ftp")
    with launch() as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(UserError, match=f"port {port} is taken"):
            launch(port=port)


def test_ignore_eos_belongs_into_the_requests_of_our_server():
    with pytest.raises(UserError, match="reads ignore_eos from each request"):
        launch(ignore_eos=True)


def test_options_become_flags():
    options = {"max_num_seqs": 8, "prefix_cache": True, "chunk_size": None, "compile": False}
    assert flags(options) == ["--max-num-seqs", "8", "--prefix-cache"]


def test_the_commands_name_the_model_and_the_loopback():
    ours = servers._our_command("tiny", 0, "cpu", "float32", 2, {"max_num_seqs": 4})
    assert " ".join(ours) == (
        "inferlab serve --port 0 --model tiny --device cpu --dtype float32 --host 127.0.0.1 "
        "--threads 2 --max-num-seqs 4"
    )
    theirs = servers._transformers_command("tiny", 8001, "cpu", "auto", {"compile": True})
    assert theirs[:2] == ["transformers.cli.transformers", "serve"]
    assert theirs[-2:] == ["--compile", "tiny"]


def test_the_last_line_of_a_log(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == "it printed nothing"
    log.write_text("first\n\n  second  \n\n")
    assert last_line(log) == "second"
