"""What does each way of rounding cost? Quality cases beside the speed of the same format.

Every row is judged against the unquantized model in float32, on the same text and questions. The
row of the plain dtype says what number format alone costs: the floor of all others.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from inferlab.compression.apply import quantize_decoder
from inferlab.compression.finetune import finetune_quantized
from inferlab.models.decoder import Decoder
from inferlab.models.equivalent import load_equivalent
from inferlab.models.load import load_decoder, load_tokenizer
from inferlab.models.placement import available_bytes
from inferlab.models.projections import projections
from inferlab.quality.compare import KEPT_BYTES, Reference, compare
from inferlab.quality.task import TaskResult, load_questions, paired_flips, score
from inferlab.quality.text import calibration_ids, load_text
from inferlab.quantbench import genai_int4
from inferlab.recorder import Case

BASELINE = "bfloat16"
NONE = "none"  # the method of a row that rounds no weights
LAYERS_ONLY = "rtn-layers"  # of one that leaves the head as it is
# What a notebook leaves unrounded, so that it ends while one watches: all but the first 8 layers.
SHORT_KEEP = (*(f"layers.{index}" for index in range(8, 30)), "head")


@dataclass(frozen=True, slots=True)
class Judge:
    """The unquantized model's answers on a text and on questions, and what calibrates the rest.

    `keep` names projections that no row rounds, so that a short run rounds a part of the model.
    """

    model: str
    device: str
    reference: Reference
    tokenizer: Any
    questions: tuple
    answers: TaskResult  # of the unquantized model
    calibration: torch.Tensor  # token ids [n, T], of another text than the reference's
    keep: tuple[str, ...] = ()
    seed: int = 0

    def metrics(self, judged: Decoder | Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Divergence from the reference, and the task with its flips."""
        found = compare(judged, self.reference)
        task = score(judged, self.tokenizer, self.questions)
        flips = paired_flips(self.answers, task)
        return {
            **found.metrics(),
            **task.metrics(),
            "num_questions": task.n,
            "num_flips_worse": len(flips.lost),
            "num_flips_better": len(flips.gained),
            "flips_p_value_ratio": flips.p_value,
        }


def open_judge(
    model: str,
    device: str,
    num_tokens: int,
    num_calibration_tokens: int,
    num_questions: int | None = None,
    seed: int = 0,
    keep: tuple[str, ...] = (),
) -> Judge:
    """Read the text and the questions with the float32 model; questions None: all of them.

    The reference's log-probabilities are kept where a quarter of the host's memory holds them.
    """
    tokenizer = load_tokenizer(model)
    exact = load_decoder(model, "float32", device, pack=False)
    room = available_bytes() // 4 if device == "cpu" else KEPT_BYTES
    reference = Reference(exact, load_text("sampled", tokenizer, num_tokens), room)
    questions = load_questions()[:num_questions]
    answers = score(exact, tokenizer, questions)
    calibration = calibration_ids(tokenizer, num_calibration_tokens, seed)
    return Judge(model, device, reference, tokenizer, questions, answers, calibration, keep, seed)


def rounded_copy(
    judge: Judge, copy: str, format: str, method: str, search_steps: int = 20
) -> Decoder:
    """A copy of the model with weights rounded by `method`, multiplied at full width.

    Methods: those of `quantize_decoder`, none, and `rtn-layers`: to nearest, without the head.
    """
    decoder = load_equivalent(judge.model, copy, BASELINE, judge.device, judge.seed)
    if method == NONE:
        decoder.pack()
        return decoder
    if method == LAYERS_ONLY:
        return quantize_decoder(decoder, format, "rtn", None, "rounded", (*judge.keep, "head"))
    ids = judge.calibration if method in ("awq", "gptq") else None
    return quantize_decoder(
        decoder, format, method, None, "rounded", judge.keep, token_ids=ids, steps=search_steps
    )


def finetuned_copy(
    judge: Judge, copy: str, format: str, steps: int, tokens_per_step: int = 512
) -> tuple[Decoder, list[float]]:
    """A copy that was trained with rounded weights and then rounded to nearest; its losses."""
    student = load_equivalent(judge.model, copy, "float32", judge.device, judge.seed)
    teacher = load_equivalent(judge.model, "plain", BASELINE, judge.device)
    teacher.pack()
    losses = finetune_quantized(
        student, teacher, judge.calibration, format, steps,
        tokens_per_step=tokens_per_step, keep=judge.keep, seed=judge.seed,
    )  # fmt: skip
    # As in the other rows, weights are bfloat16 before they are rounded.
    trained = load_equivalent(judge.model, copy, BASELINE, judge.device, judge.seed)
    with torch.no_grad():
        for (_, module), (_, source) in zip(
            projections(trained), projections(student), strict=True
        ):
            module.weight.copy_(source.weight)
    return quantize_decoder(trained, format, "rtn", None, "rounded", judge.keep), losses


def genai_logits(judge: Judge, copy: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The logits of ONNX Runtime GenAI's own int4 model of that copy."""
    return genai_int4(judge.model, judge.device, copy).logits


def quality_case(
    judge: Judge,
    copy: str,
    format: str,
    method: str,
    make: Callable[[], Any] | None = None,
    search_steps: int = 20,
) -> Case:
    """A row: built when its turn comes and let go afterwards, so that one lies in memory."""
    build = make or (lambda: rounded_copy(judge, copy, format, method, search_steps))
    params = {
        "copy": copy, "format": format, "method": method, "model": judge.model,
        "phase": "quality",
    }  # fmt: skip
    return Case(lambda: judge.metrics(build()), params)


def row_key(copy: str, format: str, method: str) -> str:
    """Name of the case of a row."""
    return f"quality/{copy}/{format}/{method}"
