import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inferlab.decoding.sampling import GREEDY, Sampling, choose, token_probabilities
from inferlab.errors import UserError

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 5.0, 0.0]])


def test_greedy_takes_the_largest():
    assert choose(LOGITS, GREEDY, None).tolist() == [0, 2]


def test_temperature_scales_logits():
    got = token_probabilities(LOGITS, Sampling(temperature=2.0))
    assert torch.allclose(got, (LOGITS / 2).softmax(-1))


def test_top_k_and_top_p_by_hand():
    got = token_probabilities(LOGITS[:1], Sampling(temperature=1.0, top_k=2))
    assert torch.allclose(got, torch.tensor([[0.7311, 0.2689, 0.0, 0.0]]), atol=1e-4)
    # plain: .644 .237 .087 .032; the first two hold less than .9, so the third stays
    got = token_probabilities(LOGITS[:1], Sampling(temperature=1.0, top_p=0.9))
    assert (got > 0).tolist() == [[True, True, True, False]]
    got = token_probabilities(LOGITS, Sampling(temperature=1.0, top_p=0.01))
    assert got.max(dim=-1).values.tolist() == [1.0, 1.0]


@given(
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
)
def test_trimming_keeps_a_distribution_of_the_likeliest(temperature, top_k, top_p, seed):
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(seed))
    got = token_probabilities(logits, Sampling(temperature, top_k, top_p))
    assert torch.allclose(got.sum(-1), torch.ones(4), atol=1e-5)
    kept = got > 0
    assert kept.gather(-1, logits.argmax(-1, keepdim=True)).all()
    if top_k:
        assert (kept.sum(-1) <= top_k).all()
    lowest = logits.masked_fill(~kept, torch.inf).min(-1).values
    highest = logits.masked_fill(kept, -torch.inf).max(-1).values
    assert (lowest >= highest).all()


def test_draws_follow_the_probabilities_and_the_seed():
    sampling = Sampling(temperature=1.0, seed=3)
    many = LOGITS[:1].expand(20_000, 4)
    drawn = choose(many, sampling, sampling.generator("cpu"))
    again = choose(many, sampling, sampling.generator("cpu"))
    assert torch.equal(drawn, again)
    share = drawn.bincount(minlength=4) / 20_000
    assert torch.allclose(share, LOGITS[0].softmax(-1), atol=0.015)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-45, 1e-38, 1e-9])
@pytest.mark.parametrize("more", [{}, {"top_k": 2}, {"top_p": 1e-300}, {"top_p": 0.5}])
def test_a_tiny_temperature_is_greedy(temperature, more):
    logits = torch.cat([LOGITS, LOGITS * 1e4, torch.tensor([[3e38, -3e38, 0.0, -torch.inf]])])
    sampling = Sampling(temperature=temperature, **more)
    assert token_probabilities(logits, sampling).max(-1).values.tolist() == [1.0] * 5
    drawn = choose(logits, sampling, sampling.generator("cpu"))
    assert torch.equal(drawn, logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-38, 1.0, 100.0, 1e308])
@pytest.mark.parametrize("top_p", [5e-324, 1e-300, 1e-38, 1.0])
def test_extreme_settings_still_make_a_distribution(temperature, top_p):
    logits = torch.cat([LOGITS, torch.tensor([[7.0, 7.0, -torch.inf, 0.0]])])
    got = token_probabilities(logits, Sampling(temperature=temperature, top_p=top_p))
    assert torch.allclose(got.sum(-1), torch.ones(3)) and (got[2, 2] == 0)
    assert top_p == 1 or (got > 0).sum(-1).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}]
)
def test_settings_without_meaning_are_refused(bad):
    with pytest.raises(UserError):
        Sampling(**bad)
