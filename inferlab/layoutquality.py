"""What does each layout of keys and values cost in quality, and what does training win back?

Every row is judged against the model as trained, in float32, on the same text and questions.
Chapter: chapters/21_gqa.md    Lab: labs/21_gqa.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferlab import layoutcost
from inferlab.compression.latents import attention_moments
from inferlab.compression.training import finetune
from inferlab.errors import UserError
from inferlab.layoutbench import build
from inferlab.layoutcost import get_layout
from inferlab.models.config import get_config
from inferlab.models.decoder import Decoder
from inferlab.models.latent import Moments
from inferlab.models.load import load_decoder
from inferlab.quantquality import Judge
from inferlab.recorder import Case

DTYPE = "bfloat16"
TUNED = "fine-tuned"
AS_MADE = "as made"


@dataclass(frozen=True, slots=True)
class Depth:
    """How thoroughly quality is judged and how long layouts are trained."""

    ranks: tuple[int, ...]  # the first one is full
    num_tokens: int
    calibration_tokens: int  # of another text; the first `moment_tokens` show what varies
    moment_tokens: int
    num_questions: int | None  # None: all
    steps: int  # of training
    tokens_per_step: int
    tuned: tuple[tuple[str, float], ...]  # layouts that are trained, and at which rate


# Rates found by trying a few on SmolLM2-135M: averaged heads have to move far, chosen directions
# would only be lost at that rate.
DEEP = Depth(
    (384, 256, 192, 128, 64), 20_480, 16_384, 4096, 200, 32, 512,
    (("mqa", 1e-2), ("latent-128", 1e-3)),
)  # fmt: skip
# What a notebook takes, so that it ends while one watches.
SHORT = Depth((384, 192, 128), 512, 1024, 1024, 12, 3, 256, (("mqa", 1e-2),))


def observed_moments(judge: Judge, num_tokens: int) -> Moments:
    """Second moments of attention's inputs over the first `num_tokens` of the calibration text."""
    windows = max(1, num_tokens // judge.calibration.shape[1])
    decoder = load_decoder(judge.model, DTYPE, judge.device)
    return attention_moments(decoder, judge.calibration[:windows])


def quality_case(judge: Judge, name: str, moments: Moments | None = None) -> Case:
    """A row: the layout as it comes out of the trained weights, without training."""

    def run() -> dict[str, float]:
        made = _made(judge, name, moments, DTYPE)
        made.pack()
        return judge.metrics(made)

    return Case(run, _params(judge, name, AS_MADE))


def tuned_case(
    judge: Judge,
    name: str,
    steps: int,
    tokens_per_step: int,
    learning_rate: float,
    moments: Moments | None = None,
) -> Case:
    """A row: the layout after `steps` of training towards the model as it was.

    Trained in float32, judged in bfloat16 as the other rows are.
    """

    def run() -> dict[str, float]:
        student = _made(judge, name, moments, "float32")
        teacher = load_decoder(judge.model, DTYPE, judge.device)
        losses = finetune(
            student, teacher, judge.calibration, steps, learning_rate=learning_rate,
            tokens_per_step=tokens_per_step, seed=judge.seed,
        )  # fmt: skip
        trained = _made(judge, name, moments, DTYPE)
        trained.load_state_dict(student.state_dict())  # rounded on the way in
        del student, teacher
        trained.pack()
        found = judge.metrics(trained)
        return {**found, "first_loss_nats": losses[0], "last_loss_nats": losses[-1]}

    params = {"steps": steps, "tokens_per_step": tokens_per_step, "learning_rate": learning_rate}
    return Case(run, {**_params(judge, name, TUNED), **params})


def _made(judge: Judge, name: str, moments: Moments | None, dtype: str) -> Decoder:
    base = load_decoder(judge.model, dtype, judge.device, pack=False)
    layout = get_layout(base.config, name)
    if layout.kind == "decoupled":
        raise UserError(
            f"{name} has random weights, which say nothing about quality: choose latent-R"
        )
    return build(base, layout, moments)


def _params(judge: Judge, name: str, training: str) -> dict[str, object]:
    layout = get_layout(get_config(judge.model), name)
    return {
        "layout": name, "family": layout.kind if layout.rank else name, "rank": layout.rank,
        "model": judge.model, "phase": "quality", "training": training,
        "kv_bytes_per_token": layoutcost.kv_bytes_per_token(layout, DTYPE),
    }  # fmt: skip


def row_key(name: str, training: str = AS_MADE) -> str:
    """Name of the case of a row."""
    return f"quality/{name}/{training.replace(' ', '-')}"


def quality_cases(
    judge: Judge, names: Sequence[str], moments: Moments | None = None
) -> dict[str, Case]:
    """A row for each layout, none of them trained."""
    return {row_key(name): quality_case(judge, name, moments) for name in names}
