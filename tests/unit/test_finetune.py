import pytest
import torch
from compression_examples import (
    SMALL,
    SMALL_BIASED,
    all_logits,
    divergence,
    lively_weights,
    make_decoder,
    text,
)

from inferlab.compression.apply import quantize_decoder
from inferlab.compression.finetune import (
    finetune_quantized,
    kl_loss,
    round_straight_through,
)
from inferlab.errors import UserError
from inferlab.models.layers import Projection
from inferlab.models.projections import projections
from inferlab.quant.formats import get_format
from inferlab.quant.grid import quantize


def tune(decoder=None, steps=30, **changes):
    decoder = decoder or make_decoder()
    settings = {"learning_rate": 5e-3, "tokens_per_step": 256, **changes}
    return decoder, finetune_quantized(
        decoder, make_decoder(decoder.config), text(160), "int4-channel", steps, **settings
    )


def loss_of(decoder, ids):
    expected = all_logits(make_decoder(decoder.config), ids)
    return divergence(quantize_decoder(decoder, "int4-channel", kernel="rounded"), expected, ids)


@pytest.mark.parametrize("config", [SMALL, SMALL_BIASED], ids=lambda config: config.name)
def test_training_wins_back_a_good_part_on_text_it_never_saw(config):
    held_out = text(16, seed=99)
    before = loss_of(make_decoder(config), held_out)
    decoder, losses = tune(make_decoder(config), steps=40)
    assert len(losses) == 40 and losses[-1] < 0.9 * losses[0]
    assert loss_of(decoder, held_out) < 0.85 * before


def test_the_first_loss_is_that_of_rounding_to_nearest():
    ids = text(1)
    expected = loss_of(make_decoder(), ids)
    reference = make_decoder()
    losses = finetune_quantized(make_decoder(), reference, ids, "int4-channel", 1)
    assert losses[0] == pytest.approx(expected, rel=1e-3)


def test_a_gradient_passes_the_rounding_unchanged():
    weight = torch.nn.Parameter(torch.randn(8, 32))
    rounded = round_straight_through(weight, get_format("int4-g32"))
    assert torch.allclose(rounded, quantize(weight, get_format("int4-g32")).dequantize())
    direction = torch.randn(8, 32)
    (rounded * direction).sum().backward()
    assert torch.equal(weight.grad, direction)


def test_the_loss_is_the_divergence_from_the_reference():
    student, reference = torch.randn(2, 5, 11), torch.randn(2, 5, 11)
    old, new = reference.log_softmax(-1), student.log_softmax(-1)
    expected = (old.exp() * (old - new)).sum(-1).mean()
    assert kl_loss(student, reference).item() == pytest.approx(expected.item(), rel=1e-5)
    assert kl_loss(student, student).item() == pytest.approx(0, abs=1e-6)


def test_only_projections_are_trained_and_nothing_stays_behind():
    decoder, _ = tune(steps=3, keep=("layers.0",))
    fresh = lively_weights(SMALL)
    assert torch.equal(decoder.embedding, fresh["model.embed_tokens.weight"])
    assert torch.equal(decoder.norm.weight, fresh["model.norm.weight"])
    plain = dict(projections(make_decoder()))
    for name, module in projections(decoder):
        assert isinstance(module, Projection) and module.weight.grad is None
        trained = not torch.equal(module.weight, plain[name].weight)
        assert trained == name.startswith("layers.1"), name
    assert decoder.head.weight is decoder.embedding
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_it_is_repeatable_and_reports_each_step():
    seen = []
    first, losses = tune(steps=4, on_step=lambda step, loss: seen.append((step, loss)))
    assert seen == list(enumerate(losses))
    second, again = tune(steps=4)
    assert again == losses
    assert torch.equal(first.layers[1].mlp.down.weight, second.layers[1].mlp.down.weight)
    assert tune(steps=4, seed=1)[1] != losses


@torch.inference_mode()
def test_it_trains_where_a_caller_has_gradients_switched_off():
    decoder = make_decoder_outside_inference()
    all_logits(decoder, text())  # its rotary table is an inference tensor
    finetune_quantized(decoder, make_decoder(), text(), "int4-channel", 2)


def make_decoder_outside_inference():
    with torch.inference_mode(False):
        return make_decoder()


def test_divergence_keeps_the_weights_of_the_last_finite_loss():
    decoder, good = make_decoder(), []

    def break_at_two(step, _loss):
        good.append(decoder.layers[1].mlp.down.weight.detach().clone())
        if step == 2:  # as a far too large step would
            with torch.no_grad():
                decoder.layers[0].mlp.down.weight.fill_(float("inf"))

    with pytest.raises(UserError):
        tune(decoder, steps=9, on_step=break_at_two)
    assert len(good) == 3
    # Step 2's loss was finite with the weights that step 1 left.
    assert torch.equal(decoder.layers[1].mlp.down.weight, good[1])
    assert all(torch.isfinite(parameter).all() for parameter in decoder.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reference_that_is_not_finite_stops_before_the_first_step(bad):
    decoder, reference = make_decoder(), make_decoder()
    reference.norm.weight[0] = bad
    with pytest.raises(UserError, match="diverged at step 0.*lower the learning rate"):
        finetune_quantized(decoder, reference, text(), "int4-channel", 3)
    plain = dict(projections(make_decoder()))
    for name, module in projections(decoder):
        assert torch.equal(module.weight, plain[name].weight)


def test_an_interruption_leaves_whole_weights():
    decoder = make_decoder()

    def interrupt(step, _loss):
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(UserError, match="interrupted after 2 of 9 steps"):
        tune(decoder, steps=9, on_step=interrupt)
    assert all(isinstance(module, Projection) for _, module in projections(decoder))
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    quantize_decoder(decoder, "int4-channel", kernel="rounded")


def test_what_cannot_be_trained_is_refused():
    decoder = make_decoder()
    with pytest.raises(UserError, match="decoder of its own"):
        finetune_quantized(decoder, decoder, text(), "int4-channel", 1)
    with pytest.raises(UserError, match="float32 master weights"):
        finetune_quantized(make_decoder().bfloat16(), decoder, text(), "int4-channel", 1)
    with pytest.raises(UserError, match="do not divide"):
        finetune_quantized(decoder, make_decoder(), text(), "int4-g64", 1)
    with pytest.raises(UserError, match="1 step or more"):
        finetune_quantized(decoder, make_decoder(), text(), "int4-channel", 0)
    for rate in (0, -1e-4, 2, float("nan")):
        with pytest.raises(UserError, match="learning rate"):
            tune(learning_rate=rate)
    with pytest.raises(UserError, match="outside 0 to 63"):
        finetune_quantized(decoder, make_decoder(), text() + 60, "int4-channel", 1)
    quantized = quantize_decoder(make_decoder(), "int4-channel", kernel="rounded")
    with pytest.raises(UserError, match="already quantized"):
        finetune_quantized(quantized, make_decoder(), text(), "int4-channel", 1)
