"""A batch that no memory can hold is refused before it is allocated, and costs one row."""

import json

import pytest
from hostile import the_error
from tiny_models import tiny

from inferlab.models import config, placement


@pytest.fixture
def small_machine(monkeypatch):
    """600 MB to be had, and a tiny preset without weights."""
    monkeypatch.setitem(config.PRESETS, "tiny", tiny("tiny"))
    monkeypatch.setattr(placement, "available_bytes", lambda: 600 * 2**20)


def measure(call, *arguments):
    return call(
        "measure", "--model", "tiny", "--weights", "random", "--dtype", "float32",
        "--rounds", "3", "--time-cap-s", "0.1", "--json", *arguments
    )  # fmt: skip


def test_batch_too_large_for_memory(call, small_machine, monkeypatch):
    monkeypatch.setattr("inferlab.bench.uniform_batch", lambda *_: pytest.fail("drew the prompts"))
    code, out, err = measure(
        call, "--backend", "hf,torch", "--batch-size", "65536", "--prompt-len", "100",
        "--output-len", "8"
    )  # fmt: skip
    assert code == 1
    line = the_error(err)
    assert "out of memory: hf-tiny-" in line and "use a smaller --batch-size" in line
    cases = [json.loads(row) for row in out.splitlines()]
    assert [case["status"] for case in cases] == ["oom", "oom"]
    assert all(case["measured"] == {} and "can be had" in case["detail"] for case in cases)


def test_a_batch_too_large_does_not_cost_the_others(call, small_machine):
    code, out, err = measure(
        call, "--batch-size", "1,16384", "--prompt-len", "20", "--output-len", "60"
    )
    assert code == 1 and "b16384" in the_error(err)
    small, large = (json.loads(row) for row in out.splitlines())
    assert small["status"] == "ok" and small["measured"]["tpot_s"]["n"] >= 3
    assert large["status"] == "oom" and "16384" in large["detail"]


def test_a_model_too_large_for_memory(call, small_machine):
    code, out, err = call(
        "measure", "--model", "llama-3.1-8b", "--weights", "random", "--batch-size", "1", "--json"
    )
    assert (code, out) == (1, "")
    assert "loading llama-3.1-8b in bfloat16 needs" in the_error(err)


@pytest.mark.slow
def test_batch_too_large_in_a_lab_becomes_an_oom_row(book):
    book.lab("""
import sys
from inferlab import bench
from inferlab.backends.base import load_backend
from inferlab.models import placement
from inferlab.models.config import ModelConfig
placement.available_bytes = lambda: 600 * 2**20
shape = dict(hidden_size=48, intermediate_size=80, num_layers=2, num_q_heads=6, num_kv_heads=2,
             head_dim=8, vocab_size=61, max_context_len=128, rope_theta=10_000.0,
             rms_norm_eps=1e-5, tie_embeddings=True)
backend = load_backend("torch", ModelConfig(name="tiny", **shape), "float32", "cpu",
                       weights="random")
recorder.model("tiny", "random")
recorder.measure("tpot", {
    f"b{n}": bench.generation_case(backend, bench.Shape(n, 100, 4), predicted={"tpot_s": 0.01})
    for n in (1, 65536, 2)
}, STOP)
""")
    code, out, err = book.cli("run", "90", "--json")
    (result,) = json.loads(out)
    assert (code, result["outcome"]) == (0, "measured"), err
    code, out, err = book.cli("report", "--json")
    status = {row["case"]: row["status"] for row in json.loads(out) if row["metric"] == "tpot_s"}
    assert (code, status) == (0, {"b1": "ok", "b65536": "oom", "b2": "ok"})
