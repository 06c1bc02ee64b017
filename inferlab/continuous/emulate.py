"""What would an engine do, step by step, if each step took what is predicted? An emulation.

The scheduler is the real one, over a real BlockManager; only the model is missing. So who runs in
which step is exact, and the seconds are as good as the prediction of a step.
Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inferlab.continuous.cost import is_decode
from inferlab.continuous.setting import Setting
from inferlab.errors import UserError
from inferlab.lengths import Lengths
from inferlab.serving.scheduler import Scheduler, StepPlan
from inferlab.serving.sequence import Sequence as Text
from inferlab.trace import Request, Trace

StepSeconds = Callable[[StepPlan], float]


@dataclass(frozen=True, slots=True)
class Step:
    """One step: when it ended, how many rows it decoded, how much of prompts it read."""

    end_s: float
    num_decodes: int
    num_prompt_tokens: int
    num_waiting: int  # after it was planned


@dataclass(frozen=True, slots=True)
class Emulated:
    """A trace labelled emulated, the steps behind it, and what preemption cost."""

    trace: Trace
    steps: tuple[Step, ...]
    num_preempted: int
    recomputed_tokens: int

    @property
    def wall_s(self) -> float:
        """Seconds from the start to the last token."""
        return self.steps[-1].end_s

    @property
    def output_tok_per_s(self) -> float:
        """Output tokens over all seconds, ramp and drain included."""
        return sum(r.output_tokens for r in self.trace.requests) / self.wall_s

    @property
    def num_seqs(self) -> float:
        """Rows of a decode step, on average."""
        rows = [step.num_decodes for step in self.steps if step.num_decodes]
        return sum(rows) / len(rows) if rows else 0.0


def one_second_a_step(plan: StepPlan) -> float:
    """Time counted in decode steps; reading a prompt takes none."""
    return float(any(map(is_decode, plan.segments)))


def emulate(
    requests: Sequence[Lengths], setting: Setting, step_s: StepSeconds,
    arrivals_s: Sequence[float] | None = None,
) -> Emulated:  # fmt: skip
    """Serve `requests`, due at `arrivals_s` (all at once if None), in the order given.

    UserError when one of them can never fit, or when arrivals are not one a request and in order.
    """
    due = list(arrivals_s) if arrivals_s is not None else [0.0] * len(requests)
    if len(due) != len(requests) or not requests or sorted(due) != due or due[0] < 0:
        raise UserError("arrivals must be one a request, in order and not negative")
    meta = {"label": "emulated", "policy": setting.policy, "store": setting.store}
    return drive(setting.scheduler(), requests, step_s, due, meta)


def drive(
    scheduler: Scheduler, requests: Sequence[Lengths], step_s: StepSeconds,
    sent_s: Sequence[float], meta: dict[str, Any],
) -> Emulated:  # fmt: skip
    """Let `scheduler` serve `requests` in virtual time; the trace carries `meta`.

    `sent_s` are the times, in order, at which the first of them are sent. Any beyond those are
    sent one by one, each when another is answered: a closed loop.
    """
    texts = [Text(f"r{i:05d}", range(r.prompt_len), r.output_len) for i, r in enumerate(requests)]
    due = list(sent_s)
    events: dict[str, list[tuple[float, int]]] = {text.seq_id: [] for text in texts}
    now, entered, steps, preempted, recomputed = 0.0, 0, [], 0, 0
    while True:
        while entered < len(due) and due[entered] <= now:
            scheduler.add(texts[entered])
            entered += 1
        held = {seq.seq_id: seq.num_computed for seq in scheduler.running}
        plan = scheduler.schedule()
        if not plan.segments:
            if entered == len(due):
                break
            now = due[entered]
            continue
        preempted += len(plan.preempted)
        recomputed += sum(held.get(seq.seq_id, 0) for seq in plan.preempted)
        now += step_s(plan)
        decodes = sum(map(is_decode, plan.segments))
        read = sum(segment.num_tokens for segment in plan.segments) - decodes
        steps.append(Step(now, decodes, read, scheduler.num_waiting))
        for seq in _take(scheduler, plan):
            events[seq.seq_id].append((now, 1))
            if seq.finish_reason and len(due) < len(texts):
                due.append(now)
    found = tuple(
        Request(text.seq_id, at, at, len(text.prompt_token_ids), tuple(events[text.seq_id]))
        for text, at in zip(texts, due, strict=True)
    )
    return Emulated(Trace(found, meta), tuple(steps), preempted, recomputed)


def _take(scheduler: Scheduler, plan: StepPlan) -> list[Text]:
    """Do what a step does to the bookkeeping, every token being 0; who got one."""
    scheduler.manager.append_all({s.seq.seq_id: s.num_tokens for s in plan.segments})
    scheduler.computed(plan)
    got = [segment.seq for segment in plan.segments if segment.samples]
    for seq in got:
        if reason := seq.append(0):
            scheduler.finish(seq, reason)
    return got
