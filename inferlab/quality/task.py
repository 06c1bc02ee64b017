"""How many short questions does a model answer, and which answers does a variant of it flip?

A question is a text to continue and four continuations; the model's answer is the one whose tokens
it finds most likely in sum, not divided by their number (the options of a question are about
equally long). Nothing is generated, so nothing has to be parsed.
The score of 200 questions is uncertain by several percent, but two models answer the same ones:
what they answer differently is the sharper figure.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inferlab.errors import MeasurementError, UserError
from inferlab.models.decoder import Decoder
from inferlab.paths import shown_path
from inferlab.quality.compare import LogitsFunction, all_logits
from inferlab.quality.text import read_frozen

NUM_OPTIONS = 4
BATCH_TOKENS = 512  # of one forward pass, padding included
PAD_TOKEN_ID = 0  # stands to the right of a text, where causal attention never looks


@dataclass(frozen=True, slots=True)
class Question:
    """A text, its possible continuations (with the space before them), the right one's place."""

    id: str
    kind: str
    prompt: str
    options: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if not self.prompt or len(self.options) < 2 or not all(self.options):
            raise UserError(f"question {self.id}: a prompt and two or more options are needed")
        if len(set(self.options)) < len(self.options):
            raise UserError(f"question {self.id}: two options are the same")
        if not 0 <= self.answer < len(self.options):
            raise UserError(f"question {self.id}: answer {self.answer} is none of its options")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Which questions were answered correctly. `score` is their share, `stderr` its binomial
    standard error: that of drawing these n questions, not of the model.

    `margins`: nats by which the right option leads the best wrong one, below 0 where it is wrong.
    """

    ids: tuple[str, ...]
    correct: tuple[bool, ...]
    margins: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.correct)

    @property
    def score(self) -> float:
        """Share answered correctly, 0 to 1."""
        return sum(self.correct) / self.n

    @property
    def stderr(self) -> float:
        """sqrt(score (1 - score) / n)."""
        return math.sqrt(self.score * (1 - self.score) / self.n)

    def metrics(self) -> dict[str, float]:
        """Values for a Recorder, by the names that records use."""
        return {"task_score": self.score, "task_stderr_ratio": self.stderr}


@dataclass(frozen=True, slots=True)
class Flips:
    """Questions that a baseline and a variant answer differently.

    `p_value`: McNemar's exact test, two-sided: how often would as uneven a split of the flips, or a
    more uneven one, come about if both directions were equally likely. 1 when nothing flipped.
    """

    lost: tuple[str, ...]  # right before, wrong now
    gained: tuple[str, ...]  # wrong before, right now
    p_value: float


def load_questions(path: Path | None = None) -> tuple[Question, ...]:
    """The book's own questions (data/quality/questions.jsonl), or those of another file.

    Kinds are mixed, so that the first few of them are a fair sample.
    """
    questions: list[Question] = []
    try:
        name = "data/quality/questions.jsonl" if path is None else shown_path(path)
        content = read_frozen("questions")[0] if path is None else path.read_bytes()
        for line in content.decode("utf-8").splitlines():
            row = json.loads(line)
            questions.append(Question(**{**row, "options": tuple(row["options"])}))
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{name}:{len(questions) + 1}: not a question (id, kind, prompt, options, answer)"
        ) from error
    if len({question.id for question in questions}) < len(questions):
        raise UserError(f"{name}: two questions have the same id")
    return tuple(questions)


@torch.inference_mode()
def score(
    variant: Decoder | LogitsFunction, tokenizer: Any, questions: Sequence[Question]
) -> TaskResult:
    """Answer every question; `variant` as in `compare`, `tokenizer` that of the model.

    Raises MeasurementError when a log-likelihood is not finite.
    """
    if not questions:
        raise UserError("there are no questions: load_questions()")
    wanted = _wanted(tokenizer, questions)
    likelihoods = [[0.0] * len(question.options) for question in questions]
    for batch in _batches(sorted(wanted, key=len)):
        width = max(map(len, batch))
        token_ids = torch.tensor([[*row, *[PAD_TOKEN_ID] * (width - len(row))] for row in batch])
        # Every answer's tokens are the last of its text or come after it: (row, column, token).
        asked = [(i, *ask) for i, row in enumerate(batch) for ask in wanted[row]]
        rows, columns = (torch.tensor([ask[axis] for ask in asked]) for axis in (0, 1))
        logits = all_logits(variant, token_ids)
        chosen = logits[rows.to(logits.device), columns.to(logits.device)].float()
        tokens = torch.tensor([ask[2] for ask in asked], device=logits.device)
        values = chosen.log_softmax(dim=-1).gather(-1, tokens[:, None]).squeeze(-1)
        if not torch.isfinite(values).all():
            raise MeasurementError("the variant's logits are not finite: check its weights")
        for (_, _, _, question, option), value in zip(asked, values.tolist(), strict=True):
            likelihoods[question][option] += value
    margins = tuple(
        values[question.answer] - max(v for i, v in enumerate(values) if i != question.answer)
        for question, values in zip(questions, likelihoods, strict=True)
    )
    ids = tuple(question.id for question in questions)
    # A tie is no answer: a model that finds everything equally likely scores 0, not by luck.
    return TaskResult(ids, tuple(margin > 0 for margin in margins), margins)


def paired_flips(baseline: TaskResult, variant: TaskResult) -> Flips:
    """What the variant answers differently; both must have been asked the same questions."""
    from scipy.stats import binomtest

    if baseline.ids != variant.ids:
        raise UserError("flips need the same questions in the same order: score both on one set")
    pairs = list(zip(baseline.ids, baseline.correct, variant.correct, strict=True))
    lost = tuple(id for id, before, now in pairs if before and not now)
    gained = tuple(id for id, before, now in pairs if now and not before)
    flips = len(lost) + len(gained)
    p_value = float(binomtest(len(lost), flips, 0.5).pvalue) if flips else 1.0
    return Flips(lost, gained, p_value)


Ask = tuple[int, int, int, int]  # column, token that is to follow it, question, option


def _wanted(tokenizer: Any, questions: Sequence[Question]) -> dict[tuple[int, ...], list[Ask]]:
    """Texts to read -> what to look up there; options of one token share their question's text."""
    wanted: dict[tuple[int, ...], list[Ask]] = {}
    for number, question in enumerate(questions):
        prompt = tokenizer.encode(question.prompt, add_special_tokens=False)
        for place, text in enumerate(question.options):
            option = tokenizer.encode(text, add_special_tokens=False)
            asks = wanted.setdefault((*prompt, *option[:-1]), [])
            asks += [
                (len(prompt) - 1 + step, token, number, place) for step, token in enumerate(option)
            ]
    return wanted


def _batches(rows: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Rows in order of length, as many together as fit into BATCH_TOKENS."""
    batch: list[tuple[int, ...]] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch
