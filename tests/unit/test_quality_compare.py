"""KL divergence from a reference: exact, small in memory, and refused where it means nothing."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from quality_examples import own_text, sure_decoder
from tiny_models import TINY

from inferlab.errors import MeasurementError, UserError
from inferlab.models.load import load_decoder
from inferlab.quality.compare import (
    BATCH_TOKENS,
    SLICE_NUMBERS,
    Reference,
    all_logits,
    compare,
    kl_divergence,
)

VOCAB = 61


@functools.cache
def example():
    decoder = sure_decoder()
    text = own_text(decoder)
    return decoder, text, Reference(decoder, text)


def disturbed(token_ids, size=0.3):
    """Logits of the example with noise that depends on nothing but the position and the token."""
    decoder, _, _ = example()
    logits = all_logits(decoder, token_ids)
    noise = torch.sin(torch.arange(VOCAB) * 7.0 + token_ids.unsqueeze(-1))
    return logits + size * noise


def in_float64(text):
    """The definitions, on all logits at once."""
    decoder, _, _ = example()
    log_p = all_logits(decoder, text.windows).double().log_softmax(-1)
    log_q = disturbed(text.windows).double().log_softmax(-1)
    klds = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)  # [n, T]
    losses = -log_q[:, :-1].gather(-1, text.windows[:, 1:, None])
    return klds, float(losses.mean().exp()), (log_p.argmax(-1) == log_q.argmax(-1)).double().mean()


def test_the_reference_differs_from_itself_by_nothing():
    decoder, text, reference = example()
    result = compare(decoder, reference)
    assert result.kld_mean == pytest.approx(0, abs=1e-9)
    assert result.top1_ratio == 1
    assert result.perplexity == pytest.approx(reference.perplexity)
    assert result.reference_perplexity == reference.perplexity < VOCAB / 2


@pytest.mark.parametrize("kept_bytes", [2**30, 0])
@pytest.mark.parametrize("numbers", [VOCAB, 7 * VOCAB, 2**21])
def test_slices_give_what_the_definition_gives(kept_bytes, numbers, monkeypatch):
    decoder, text, _ = example()
    monkeypatch.setitem(SLICE_NUMBERS, "cpu", numbers)
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 100)
    result = compare(disturbed, Reference(decoder, text, kept_bytes))
    klds, perplexity, agreement = in_float64(text)
    assert result.num_tokens == klds.numel()
    assert result.kld_mean == pytest.approx(float(klds.mean()), rel=1e-5)
    assert result.kld_p99 == pytest.approx(np.percentile(klds.numpy(), 99), rel=1e-4)
    assert result.window_klds == pytest.approx(klds.mean(1).tolist(), rel=1e-5)
    expected = float(klds.mean(1).std()) / math.sqrt(len(klds))
    assert result.kld_stderr == pytest.approx(expected, rel=1e-4)
    assert result.perplexity == pytest.approx(perplexity, rel=1e-5)
    assert result.top1_ratio == pytest.approx(float(agreement))


def test_metrics_have_the_names_of_records():
    from inferlab.records.schema import is_metric_name

    metrics = compare(disturbed, example()[2]).metrics()
    assert set(metrics) == {
        "kld_mean_nats", "kld_stderr_nats", "kld_p99_nats", "top1_ratio", "perplexity"
    }  # fmt: skip
    assert all(is_metric_name(name) for name in metrics)


def test_an_array_is_as_good_as_a_tensor():
    reference = example()[2]
    arrays = compare(lambda ids: disturbed(ids).numpy(), reference)
    assert arrays == compare(disturbed, reference)


def test_a_decoder_in_another_number_format():
    _, _, reference = example()
    result = compare(sure_decoder("bfloat16"), reference)
    assert 0 < result.kld_mean < 0.1


def test_few_positions_have_no_p99_and_one_window_no_error():
    decoder, text, _ = example()
    short = dataclasses.replace(text, windows=text.windows[:1])
    result = compare(disturbed, Reference(decoder, short))
    assert result.kld_p99 is None and math.isnan(result.kld_stderr)
    assert set(result.metrics()) == {"kld_mean_nats", "top1_ratio", "perplexity"}


def test_another_vocabulary_is_refused():
    _, text, reference = example()
    other = load_decoder(dataclasses.replace(TINY["llama"], vocab_size=71), weights="random")
    with pytest.raises(UserError, match="vocabulary of 71, the reference one of 61"):
        compare(other, reference)
    with pytest.raises(UserError, match="vocabulary of 60"):
        compare(lambda ids: disturbed(ids)[..., :60], reference)
    with pytest.raises(UserError, match="for each position"):
        compare(lambda ids: disturbed(ids)[:, -1], reference)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    _, text, reference = example()

    def broken(token_ids):
        logits = disturbed(token_ids)
        logits[-1, 5, 40] = bad
        return logits

    with pytest.raises(MeasurementError, match=r"variant's logits are not finite \(window \d+, po"):
        compare(broken, reference)


def test_a_broken_reference_is_refused():
    decoder = sure_decoder()
    text = own_text(decoder)
    decoder.norm.weight[3] = math.nan
    with pytest.raises(MeasurementError, match="reference's logits are not finite"):
        Reference(decoder, text)


def test_random_weights_and_foreign_texts_are_refused():
    decoder, text, _ = example()
    random = load_decoder(TINY["llama"], "float32", weights="random")
    with pytest.raises(UserError, match="no better than chance"):
        Reference(random, text)
    foreign = dataclasses.replace(text, windows=text.windows + VOCAB)
    with pytest.raises(UserError, match="outside 0 to 60"):
        Reference(decoder, foreign)
    with pytest.raises(UserError, match="must be an unquantized decoder"):
        Reference(disturbed, text)


def test_the_decoder_of_the_reference_may_be_quantized_afterwards():
    from inferlab.models.projections import replace_weights
    from inferlab.quant.formats import get_format

    decoder = sure_decoder()
    reference = Reference(decoder, example()[1], kept_bytes=0)
    replace_weights(decoder, get_format("int8"), kernel="rounded")
    result = compare(decoder, reference)
    assert 0 < result.kld_mean < 1


@pytest.mark.parametrize("kept_bytes", [0])
def test_a_head_that_was_changed_in_place_is_noticed(kept_bytes):
    decoder = sure_decoder()
    reference = Reference(decoder, example()[1], kept_bytes)
    decoder.head.weight.mul_(1.5)
    with pytest.raises(UserError, match="head of the reference was changed"):
        compare(disturbed, reference)


@given(st.integers(0, 2**31), st.floats(1e-5, 3.0))
def test_divergences_agree_with_float64_and_are_not_below_zero(seed, size):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(4, 1000, generator=generator) * 4
    q = p + size * torch.randn(4, 1000, generator=generator)
    exact = F.kl_div(
        q.double().log_softmax(-1), p.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    found = kl_divergence(p.log_softmax(-1), q.log_softmax(-1))
    assert torch.allclose(found.double(), exact, rtol=1e-5, atol=5e-7)
    assert found.min() > -5e-7
