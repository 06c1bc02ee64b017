import pytest
import torch
from compression_examples import SMALL, SMALL_BIASED, make_decoder, text

from inferlab.compression.observe import observe
from inferlab.errors import UserError
from inferlab.models.projections import projections


@torch.no_grad()
def inputs_seen(decoder, token_ids):
    """What really goes into each projection, by hooks around the decoder's own forward."""
    seen, handles = {}, []
    for name, module in projections(decoder):
        handles.append(
            module.register_forward_pre_hook(
                lambda _m, args, name=name: seen.update({name: args[0].flatten(0, -2)})
            )
        )
    windows, length = token_ids.shape
    cache = decoder.new_cache("none", windows, length)
    decoder(token_ids, cache, torch.arange(length)[None], all_positions=True)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("config", [SMALL, SMALL_BIASED], ids=lambda config: config.name)
def test_stats_are_those_of_what_goes_in(config, monkeypatch):
    monkeypatch.setattr("inferlab.compression.observe.TOKENS_AT_ONCE", 70)  # several batches
    decoder, ids = make_decoder(config), text(8, 32)
    stats = observe(decoder, ids, hessians=True, sample_size=40)
    expected = inputs_seen(decoder, ids)
    assert list(stats) == [name for name, _ in projections(decoder)] == list(expected)
    for name, x in expected.items():
        found = stats[name]
        assert found.num_tokens == 256
        assert torch.allclose(found.absmax, x.abs().amax(0), rtol=1e-4)
        assert torch.allclose(found.mean_abs, x.abs().mean(0), rtol=1e-4)
        moments = x.T @ x / 256
        assert torch.allclose(found.hessian, moments, rtol=1e-3, atol=1e-4 * moments.max())
        assert found.sample.shape == (40, x.shape[1])
        distances = torch.cdist(found.sample, x).amin(1)
        assert distances.max() < 1e-3 * x.norm(dim=1).max()


def test_hessians_are_kept_only_on_request_and_nothing_stays_hooked():
    decoder = make_decoder()
    assert observe(decoder, text())["head"].hessian is None
    assert not any(module._forward_pre_hooks for module in decoder.modules())


def test_the_last_hidden_state_is_what_the_head_reads():
    decoder, ids = make_decoder(), text()
    with torch.no_grad():
        hidden = decoder.final_hidden(ids)
    assert torch.allclose(hidden.flatten(0, 1), inputs_seen(decoder, ids)["head"], atol=1e-5)


def test_too_few_tokens_are_refused_with_the_number():
    decoder = make_decoder()
    with pytest.raises(UserError, match="127 calibration tokens are too few: give at least 128"):
        observe(decoder, text(1, 127))
    observe(decoder, text(1, 128))
    wide = make_decoder(SMALL.__class__(**{**as_dict(SMALL), "intermediate_size": 192}))
    with pytest.raises(UserError, match="at least 192 for second moments of 192 channels"):
        observe(wide, text(1, 128), hessians=True)


def as_dict(config):
    return {name: getattr(config, name) for name in config.__slots__}


def test_calibration_text_that_is_not_the_decoders_is_refused():
    decoder = make_decoder()
    for bad in (torch.full((1, 128), 64), torch.full((1, 128), -1)):
        with pytest.raises(UserError, match="outside 0 to 63"):
            observe(decoder, bad)
    for bad in (torch.zeros(128, dtype=torch.int64), text().float(), text()[:0]):
        with pytest.raises(UserError, match="give token ids"):
            observe(decoder, bad)
    with pytest.raises(UserError, match="129 tokens are more than the 128"):
        observe(decoder, text(1, 129))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_name_the_layer(bad):
    decoder = make_decoder()
    decoder.layers[1].mlp_norm.weight[3] = bad
    with pytest.raises(UserError, match="input of layers.1.mlp.gate_up holds inf or NaN"):
        observe(decoder, text())
    assert not any(module._forward_pre_hooks for module in decoder.modules())
