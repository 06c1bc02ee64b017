"""What is said about a load: one JSON object a point, the same for a run, a sweep and a search.

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from inferlab.load.point import LoadPoint

MOST_ERRORS = 10  # different ones


def point_report(point: LoadPoint) -> dict[str, Any]:
    """JSON-ready: the plan, our metrics, what the client says of itself, tokens, errors."""
    meta = point.trace.meta
    errors = Counter(
        f"{request.status}: {request.error}"
        for request in point.trace.requests
        if request.status != "ok"
    )
    return {
        "plan": {**point.plan.to_dict(), "mix": point.mix, "clipped": point.clipped},
        "offered_req_per_s": point.offered_req_per_s,
        "inferlab": None if point.summary is None else point.summary.to_dict(),
        "client": point.run.verdict.to_dict(),
        "interrupted": point.interrupted,
        "unsent": meta["unsent"],
        "ran_out": point.ran_out,
        "short_answers": meta["short_answers"],
        "tokens_from": meta["tokens_from"],
        "usage_disagrees": meta["usage_disagrees"],
        "errors": dict(errors.most_common(MOST_ERRORS)),
    }


def notes(point: LoadPoint) -> list[str]:
    """What a reader of the numbers must know, one line each."""
    meta, found = point.trace.meta, []
    counts = point.summary.counts if point.summary else {"failed": 0, "ok": 0}
    if counts["failed"]:
        found.append(f"{counts['failed']} requests failed; the first: {point.first_error()}")
    if meta["unsent"] and point.plan.duration_s is None:
        found.append(f"{meta['unsent']} requests were not sent any more")
    if point.ran_out:
        found.append(
            f"all {meta['client']['sends']} requests that were ready were sent before "
            f"{point.plan.duration_s:g} s were over: the load ended early"
        )
    if meta["short_answers"]:
        found.append(f"{meta['short_answers']} answers are shorter than asked for")
    if point.clipped:
        found.append(f"{point.clipped} prompts or answers were cut to what the model takes")
    sources = meta["tokens_from"]
    unsure = {
        "no_usage": "one token a chunk is assumed, the server sends no usage",
        "usage": "tokens are spread over the chunks by the server's usage",
        "usage_refused": "one token a chunk is assumed: the server's usage cannot be true",
    }
    found += [f"{sources[name]} answers: {why}" for name, why in unsure.items() if name in sources]
    if meta["usage_disagrees"]:
        found.append(
            f"{meta['usage_disagrees']} answers have another number of tokens than their usage says"
        )
    return found + [f"void: {reason}" for reason in point.run.verdict.reasons]
