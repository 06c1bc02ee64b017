"""Shares of a step by operator."""

import pytest
import torch

from inferlab.errors import MeasurementError
from inferlab.stepprofile import group_of, operator_shares


def test_shares_add_up_and_every_call_counts():
    a, w = torch.randn(64, 64), torch.ones(64)

    def work():
        torch.nn.functional.rms_norm(a @ a, (64,), w) + a

    shares = operator_shares(work)
    assert shares.pop("operators_count") == 3
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares[f"{g}_share_ratio"] for g in ("products", "norms", "other")) > 0
    assert shares["attention_share_ratio"] == 0


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("mkldnn::_linear_pointwise", "products"),
        ("aten::_weight_int4pack_mm_for_cpu", "products"),
        ("aten::scaled_dot_product_attention", "attention"),
        ("aten::rms_norm", "norms"),
        ("aten::roll", "other"),
    ],
)
def test_groups(name, group):
    assert group_of(name) == group


def test_nothing_seen_is_an_error():
    with pytest.raises(MeasurementError, match="no operator"):
        operator_shares(lambda: None)
