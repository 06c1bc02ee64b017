"""Quality rows: each is built when its turn comes, from a copy of its own, and judged alike."""

import pytest
import torch
from quality_examples import own_text, sure_decoder
from tiny_models import tiny

from inferlab import quantquality
from inferlab.models.load import load_decoder
from inferlab.models.projections import projections
from inferlab.quality.compare import Reference
from inferlab.quality.task import TaskResult
from inferlab.quant.linear import RoundedLinear
from inferlab.quantquality import Judge, finetuned_copy, quality_case, rounded_copy, row_key

CONFIG = tiny("tiny-64", hidden_size=64, intermediate_size=128, num_q_heads=4, num_kv_heads=2,
              head_dim=16, vocab_size=64, tie_embeddings=False)  # fmt: skip


def judge(keep=(), **changes):
    generator = torch.Generator().manual_seed(1)
    calibration = torch.randint(64, (8, 32), generator=generator)
    fields = {
        "model": "tiny-64", "device": "cpu", "reference": None, "tokenizer": None,
        "questions": (), "answers": None, "calibration": calibration, "keep": keep,
    }  # fmt: skip
    return Judge(**{**fields, **changes})


@pytest.fixture(autouse=True)
def copies(monkeypatch):
    """Random tiny models instead of copies of the real one; one set of weights."""
    made = []

    def load(model, kind, dtype, device, seed=0):
        made.append(kind)
        return load_decoder(CONFIG, dtype, device, "random", seed=3, pack=False)

    monkeypatch.setattr(quantquality, "load_equivalent", load)
    return made


def rounded(decoder):
    return [name for name, module in projections(decoder) if isinstance(module, RoundedLinear)]


@pytest.mark.parametrize("method", ["rtn", "awq", "gptq"])
def test_every_projection_is_rounded_but_for_what_is_kept(method, copies):
    assert len(rounded(rounded_copy(judge(), "rotated", "int4-g32", method))) == 9
    part = rounded_copy(judge(keep=("layers.1", "head")), "rotated", "int4-g32", method)
    assert len(rounded(part)) == 4 and copies == ["rotated", "rotated"]


def test_layers_only_and_none_leave_what_they_say():
    assert "head" not in rounded(rounded_copy(judge(), "plain", "int4-g32", "rtn-layers"))
    assert rounded(rounded_copy(judge(), "plain", "bfloat16", "none")) == []


def test_a_fine_tuned_copy_is_rounded_and_has_other_codes(copies):
    decoder, losses = finetuned_copy(judge(), "rotated", "int4-g32", 3, tokens_per_step=64)
    assert len(losses) == 3 and len(rounded(decoder)) == 9 and decoder.dtype == torch.bfloat16
    assert copies == ["rotated", "plain", "rotated"]


def test_a_row_is_judged_with_its_flips(monkeypatch):
    decoder = sure_decoder()
    reference = Reference(decoder, own_text(decoder))
    before = TaskResult(("a", "b", "c"), (True, True, False), (1.0, 1.0, -1.0))
    after = TaskResult(("a", "b", "c"), (False, True, True), (-1.0, 1.0, 1.0))
    monkeypatch.setattr(quantquality, "score", lambda *_: after)
    built = []
    case = quality_case(
        judge(reference=reference, answers=before), "rotated", "int8", "rtn",
        make=lambda: built.append(1) or decoder,
    )  # fmt: skip
    assert not built and case.params["copy"] == "rotated" and case.params["model"] == "tiny-64"
    found = case.run()
    assert built and found["kld_mean_nats"] == pytest.approx(0, abs=1e-6)
    assert (found["num_flips_worse"], found["num_flips_better"]) == (1, 1)
    assert found["num_questions"] == 3 and found["task_score"] == pytest.approx(2 / 3)


def test_the_name_of_a_row():
    assert row_key("rotated", "int8", "rtn") == "quality/rotated/int8/rtn"
