"""The command line: one JSON document or one error line, and the right exit code."""

import json
import subprocess
import sys
import time

import pytest

from inferlab.cli import app
from inferlab.errors import MeasurementError
from inferlab.trace import Request, Trace, save_trace

WORKED = Request("a", 0.0, 0.0, 5, [(0.100, 1), (0.140, 2), (0.180, 2)])


@pytest.fixture
def trace_file(tmp_path):
    return str(save_trace(Trace((WORKED,), {"label": "emulated"}), tmp_path / "trace.jsonl"))


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            app.main(list(arguments))
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return call


def one_line(err):
    return err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")


def test_metrics_prints_ours_and_six_dialects(run, trace_file):
    code, out, err = run("metrics", trace_file, "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert list(report) == [
        "inferlab",
        "vllm",
        "aiperf",
        "guidellm",
        "llmperf",
        "mlperf",
        "databricks",
    ]
    assert report["inferlab"]["tpot_s"]["mean"] == pytest.approx(0.020)
    assert report["inferlab"]["label"] == "emulated"
    assert report["databricks"]["time_per_output_token_ms"] == pytest.approx(16)


def test_an_slo_in_milliseconds_gives_goodput(run, trace_file):
    _, out, _ = run("metrics", trace_file, "--json", "--slo-ttft-ms", "100.1", "--slo-tpot-ms", "9")
    goodput = json.loads(out)["inferlab"]["goodput"]
    assert goodput["good_requests"] == 0
    assert goodput["slo"] == {"ttft_s": pytest.approx(0.1001), "tpot_s": 0.009, "e2e_s": None}


def test_the_table_shows_every_reading_and_what_was_refused(run, trace_file):
    code, out, _ = run("metrics", trace_file)
    assert code == 0
    for words in ("vllm", "guidellm", "36.0", "16.0", "20.0", "refused: p99 needs at least 459"):
        assert words in out


def test_markup_and_controls_in_a_file_do_not_reach_the_terminal(run, tmp_path):
    meta = {"label": "[red]x[/red]\x1b[31m"}
    path = save_trace(Trace((WORKED,), meta), tmp_path / "[bold]t.jsonl")
    code, out, _ = run("metrics", str(path))
    assert code == 0 and "[bold]t.jsonl" in out and "[red]x" in out and "\x1b" not in out


@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_a_bad_file_is_one_line_with_its_line_number(run, tmp_path, extra):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"schema": "inferlab.trace/1", "meta": {}}\n{"id": "a", "sent')
    code, out, err = run("metrics", str(path), *extra)
    assert code == 2 and out == "" and one_line(err) and f"{path}:2: " in err


def test_a_trace_without_requests_is_refused(run, tmp_path):
    path = save_trace(Trace(()), tmp_path / "t.jsonl")
    code, out, err = run("metrics", str(path), "--json")
    assert code == 2 and out == "" and one_line(err) and "nothing to measure" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("metrics",), "Missing argument"),
        (("metrics", "/no/such/file"), "no such file"),
        (("nonsense",), "No such command"),
        (("metrics", "x", "--nonsense"), "No such option"),
        (("metrics", "x", "--warmup", "many"), "--warmup"),
        (("metrics", "x", "--slo-ttft-ms", "-1"), "above zero"),
        (("metrics", "x", "--slo-ttft-ms", "nan"), "above zero"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(run, arguments, words):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and one_line(err) and words in err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MeasurementError("no\nluck"), 1, "no luck"),
        (RuntimeError("boom\x1b[31m"), 1, "unexpected RuntimeError: boom?[31m"),
    ],
)
def test_failures_inside_a_verb(run, monkeypatch, trace_file, error, code, words):
    def fail(*_):
        raise error

    monkeypatch.setattr("inferlab.trace.load_trace", fail)
    got, out, err = run("metrics", trace_file, "--json")
    assert got == code and out == "" and one_line(err) and words in err


def test_debug_shows_the_traceback(monkeypatch, trace_file):
    def fail(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr("inferlab.trace.load_trace", fail)
    with pytest.raises(RuntimeError, match="boom"):
        app.main(["--debug", "metrics", trace_file])


def test_help_and_version(run):
    for arguments in ((), ("--help",)):
        code, out, _ = run(*arguments)
        assert code == 0 and "metrics" in out
    assert run("--version")[1].strip().count(".") == 2


def test_help_is_fast_and_imports_nothing_heavy():
    heavy = ("torch", "transformers", "scipy", "pandas", "matplotlib", "numpy")
    code = (
        "import sys; sys.argv = ['inferlab', '--help']\n"
        "from inferlab.cli.app import main\n"
        "try:\n    main()\n"
        f"finally:\n    print(sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        times.append(time.perf_counter() - start)
    assert done.returncode == 0 and done.stderr.strip() == "[]"
    assert min(times) < 1.0  # 0.2 s on a quiet machine; the band is for a busy one
