"""A quality row is a format on a copy of the model; ranges say which channels are outliers."""

import pytest
import torch
from tiny_models import tiny

from inferlab import precisionquality as pq
from inferlab.compression.observe import observe
from inferlab.models.load import load_decoder

CONFIG = tiny("tiny-64", hidden_size=64, intermediate_size=128, num_q_heads=4, num_kv_heads=2,
              head_dim=16, vocab_size=64)  # fmt: skip


def test_rows_have_names_of_their_own():
    rows = [pq.Row("w8a8"), pq.Row("w8a8", "rotated"), *pq.sweep_rows("w8a8-static", (0.5, 1.0))]
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys) == 6
    assert keys[2] == "plain/w8a8-static/a0.5-2" and keys[-1] == "plain/w8a8-static/a1-4"


def test_what_has_no_kernel_is_emulated():
    assert pq.is_emulated(pq.Row("fp8-row"), "cpu")
    assert not pq.is_emulated(pq.Row("fp8-row"), "cuda")
    assert not pq.is_emulated(pq.Row("w8a8-static"), "cpu")


def test_ranges_are_relative_to_the_median_channel():
    metrics = pq.channel_metrics(torch.tensor([1.0, 2, 100, 3, 2]))
    assert metrics["outlier_ratio"] == metrics["rank_0001_ratio"] == pytest.approx(50)
    assert metrics["rank_0005_ratio"] == 0.5
    assert "rank_0008_ratio" not in metrics


def test_one_case_for_each_projection_but_the_head():
    decoder = load_decoder(CONFIG, "float32", "cpu", "random", pack=False)
    stats = observe(decoder, torch.arange(128).view(2, 64) % 61)
    cases = dict(pq.range_cases("plain", stats, CONFIG.name))
    assert len(cases) == 4 * CONFIG.num_layers
    case = cases["ranges/plain/layers.1.mlp.down"]
    assert (case.params["layer"], case.params["part"]) == (1, "mlp.down")
    assert case.run()["outlier_ratio"] >= 1
