"""Layouts are timed on caches of the right size, searched for room, and judged only when real."""

import types

import pytest
import torch
from compression_examples import make_decoder, text
from tiny_models import tiny

from inferlab import layoutbench, layoutcost, layoutquality, layoutroom
from inferlab.errors import MeasurementError, UserError
from inferlab.kvcache import CacheTooSmall
from inferlab.roofline import Ceilings

CONFIG = tiny("bench", hidden_size=48, num_q_heads=6, num_kv_heads=2, vocab_size=64)
NAMES = ("mha", "gqa", "mqa", "latent-9", "absorbed-9", "decoupled-9")
LIMITS = Ceilings(1e10, 1e11, 1e-4, 1e-6)


@pytest.fixture(scope="module")
def opened():
    return layoutbench.open_layouts(CONFIG, "float32", "cpu", "random", NAMES)


def test_layouts_share_everything_but_attention(opened):
    first = opened["gqa"].decoder
    for name, found in opened.items():
        assert found.decoder.layers[0].mlp is first.layers[0].mlp
        assert layoutbench.base_name(found) == "bench"
        assert found.layout.name == name and found.dtype == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_a_case_measures_the_bytes_that_it_predicts(opened, name):
    case = layoutbench.step_case(opened[name], 3, 17, 2, LIMITS, "context")
    found = case.run()
    assert found["kv_bytes"] == case.predicted["kv_bytes"]
    assert 0 < found["fastest_step_s"] <= found["tpot_s"]
    assert found["output_tok_per_s"] == pytest.approx(3 / found["tpot_s"])
    assert case.params["family"] == name.split("-")[0] and case.params["phase"] == "context"
    assert set(case.predicted) >= {"tpot_s", "output_tok_per_s", "remake_flops"}


def test_every_step_is_taken_at_the_same_context(opened):
    for found in opened.values():
        cache = layoutbench.filled_cache(found, 2, 16)
        work = layoutbench.step_work(found, cache)
        with torch.inference_mode():
            for _ in range(3):
                work()
                assert cache.length == 17
        trace, _ = layoutbench.step_trace(found, 2, 17, 3)
        assert [len(request.events) for request in trace.requests] == [4, 4]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [9_000, 30_000])
def test_what_fits_is_what_was_predicted(opened, name, budget):
    found = opened[name]
    expected = layoutcost.largest_batch(found.layout, "float32", 11, budget)
    if not expected:
        with pytest.raises(MeasurementError, match="not one sequence of 11 tokens"):
            layoutroom.find_largest_batch(found, 11, budget)
        return
    for guess in (0, 1, expected, expected + 3):
        assert layoutroom.find_largest_batch(found, 11, budget, guess) == expected
    case = layoutroom.room_case(found, 11, budget)
    assert case.run() == {"num_seqs": expected} and case.predicted == {"num_seqs": expected}


def test_running_out_of_memory_means_that_it_does_not_fit(opened, monkeypatch):
    def lost(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(layoutroom, "filled_cache", lost)
    assert not layoutroom.fits(opened["gqa"], 1, 11, 1e9)
    monkeypatch.setattr(layoutroom, "filled_cache", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layoutroom.fits(opened["gqa"], 1, 11, 1e9)


def test_a_budget_is_imposed_on_a_cpu_and_read_off_a_gpu(opened, monkeypatch):
    assert layoutroom.kv_budget(opened.values(), 12345) == 12345
    gpu = types.SimpleNamespace(decoder=types.SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1000, 2000))
    assert layoutroom.kv_budget([gpu], 12345) == 900


def test_remaking_is_timed_where_there_is_any(opened):
    case = layoutbench.remake_case(opened["latent-9"], 2, 30, LIMITS)
    assert case.run()["remake_s"] > 0
    flops = 2 * 30 * 2 * 2 * 9 * 2 * CONFIG.kv_size  # B S L, a multiply-add, r by keys and values
    assert case.predicted["remake_s"] == pytest.approx(flops / 1e11)
    for name in ("gqa", "absorbed-9", "decoupled-9"):
        with pytest.raises(UserError, match="choose latent-R"):
            layoutbench.remake_case(opened[name], 1, 30, LIMITS)


def test_too_long_contexts_and_unknown_layouts_are_refused(opened):
    with pytest.raises(UserError, match="more than the 128"):
        layoutbench.step_metrics(opened["mqa"], 1, 129, 1)
    with pytest.raises(CacheTooSmall, match="beyond the latent cache"):
        cache = layoutbench.filled_cache(opened["latent-9"], 1, 10)
        cache.length = 11
        with torch.inference_mode():
            layoutbench.step_work(opened["latent-9"], cache)()
    with pytest.raises(UserError, match="out of range"):
        layoutbench.open_layouts(CONFIG, "float32", "cpu", "random", ["latent-99"])


def test_ceilings_are_fitted_on_shapes_of_their_own(opened, monkeypatch):
    monkeypatch.setattr(layoutbench, "quick_ceilings", lambda *_: LIMITS)
    found = layoutbench.fit_ceilings(opened["gqa"], "cpu")
    assert found.overhead_s + found.token_overhead_s > 0
    assert found.read_bytes_per_s == LIMITS.read_bytes_per_s


def shown(decoder):
    return {"heads": decoder.config.num_kv_heads, "bits": decoder.dtype.itemsize}


@pytest.fixture
def judge(monkeypatch):
    """A judge of a small model, whose answer is how many key/value heads it was shown."""
    monkeypatch.setattr(
        layoutquality, "load_decoder",
        lambda _model, dtype, _device, **_: make_decoder(CONFIG).to(getattr(torch, dtype)),
    )  # fmt: skip
    monkeypatch.setattr(layoutquality, "get_config", lambda _model: CONFIG)
    return types.SimpleNamespace(
        model="bench", device="cpu", calibration=text(4), seed=0, metrics=shown
    )


def test_rows_are_made_trained_and_judged_in_bfloat16(judge):
    moments = layoutquality.observed_moments(judge, 64)
    assert set(moments) == {"layers.0.attention.qkv", "layers.1.attention.qkv"}
    rows = layoutquality.quality_cases(judge, ["mha", "mqa", "latent-9"], moments)
    assert list(rows)[1] == layoutquality.row_key("mqa") == "quality/mqa/as-made"
    assert [case.run()["heads"] for case in rows.values()] == [6, 1, 2]
    for name in ("mqa", "latent-9"):
        case = layoutquality.tuned_case(judge, name, 2, 64, 1e-3, moments)
        found = case.run()
        assert found["bits"] == 2 and found["first_loss_nats"] > 0
        assert case.params["training"] == layoutquality.TUNED and case.params["steps"] == 2
    assert rows["quality/mqa/as-made"].params["kv_bytes_per_token"] == 2 * 2 * 8 * 2


def test_quality_of_random_attention_is_refused(judge):
    with pytest.raises(UserError, match="nothing about quality"):
        layoutquality.quality_case(judge, "decoupled-9").run()


def test_what_was_trained_is_what_is_judged(judge):
    """The weights of the student, in bfloat16, and a decoder that can read a text in it."""
    judge.metrics = lambda decoder: {"norm": float(decoder.final_hidden(text(1)).norm())}
    plain = layoutquality.quality_case(judge, "mqa").run()["norm"]
    same = layoutquality.tuned_case(judge, "mqa", 1, 64, 1e-9).run()["norm"]
    moved = layoutquality.tuned_case(judge, "mqa", 4, 64, 0.3).run()["norm"]
    assert same == pytest.approx(plain, rel=1e-3) and moved != pytest.approx(plain, rel=1e-3)
