"""Quality on a CUDA device agrees with quality on the CPU."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from quality_examples import LetterTokenizer, own_text, sure_decoder  # noqa: E402

from inferlab.models.load import load_decoder, load_tokenizer  # noqa: E402
from inferlab.quality.compare import Reference, compare  # noqa: E402
from inferlab.quality.task import load_questions, score  # noqa: E402
from inferlab.quality.text import load_text  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("kept_bytes", [2**30, 0])
@pytest.mark.parametrize("where", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_reference_and_variant_may_lie_on_different_devices(where, kept_bytes):
    reference_device, variant_device = where
    text = own_text(sure_decoder())
    reference = Reference(sure_decoder(device=reference_device), text, kept_bytes)
    expected = compare(sure_decoder("bfloat16"), Reference(sure_decoder(), text))
    found = compare(sure_decoder("bfloat16", variant_device), reference)
    assert found.kld_mean == pytest.approx(expected.kld_mean, rel=0.3)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=0.05)
    exact = compare(sure_decoder(device=variant_device), reference)
    assert exact.kld_mean == pytest.approx(0, abs=1e-4)


def test_questions_on_the_device():
    questions = load_questions()[:40]
    tokenizer = LetterTokenizer(61)
    expected = score(sure_decoder(), tokenizer, questions)
    found = score(sure_decoder(device="cuda"), tokenizer, questions)
    assert found.margins == pytest.approx(expected.margins, abs=0.05)


@pytest.mark.slow
def test_bfloat16_of_the_real_model_is_close_to_float32():
    text = load_text("sampled", load_tokenizer("smollm2-135m"), 4096)
    reference = Reference(load_decoder("smollm2-135m", "float32", "cuda"), text)
    result = compare(load_decoder("smollm2-135m", "bfloat16", "cuda"), reference)
    assert 0 < result.kld_mean < 0.005
    assert result.top1_ratio > 0.95
