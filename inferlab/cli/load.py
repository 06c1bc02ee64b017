"""`inferlab load`: drive an OpenAI-compatible URL, open or closed loop, and judge the client."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferlab.cli.output import print_json, print_note
from inferlab.errors import MeasurementError, UserError

if TYPE_CHECKING:
    from inferlab.cli.loadkeep import Kept
    from inferlab.client.target import Target
    from inferlab.load.plan import LoadPlan
    from inferlab.load.point import LoadPoint
    from inferlab.metrics import SLO

START_SHARE = 0.5  # of what one request at a time reaches: where a sweep or a search begins
LOWEST_SHARE = 0.05  # of the same: below it a search ends, requests do not meet each other


def load(
    url: Annotated[str, typer.Option(help="The server, such as http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests a second; first one of a sweep.")
    ] = None,
    arrivals: Annotated[
        str, typer.Option(help="poisson, gamma, constant, bursts, azure-conv or azure-code.")
    ] = "poisson",
    cv: Annotated[float, typer.Option(help="Of the gaps between gamma arrivals.")] = 1.0,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Closed loop: requests in flight.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Rates, doubled until the server falls behind.")
    ] = False,
    rates: Annotated[str, typer.Option(help="The rates of a sweep: 1,2,4.")] = "",
    max_rate: Annotated[
        bool, typer.Option("--max-rate", help="Search the highest rate within the SLO.")
    ] = False,
    precision: Annotated[float, typer.Option(help="Of that search, as a ratio.")] = 0.1,
    num_requests: Annotated[
        int | None, typer.Option(min=1, help="Requests (100 without a duration).")
    ] = None,
    duration_s: Annotated[float | None, typer.Option(help="Send for so many seconds.")] = None,
    warmup: Annotated[
        int, typer.Option(min=0, help="Requests before the run, left out of everything.")
    ] = 2,
    lengths: Annotated[
        str, typer.Option(help="constant, lognormal, azure-conv, azure-code, or a CSV file.")
    ] = "constant",
    prompt_len: Annotated[int, typer.Option(min=1, help="Prompt tokens (mean).")] = 128,
    output_len: Annotated[int, typer.Option(min=1, help="Output tokens (mean).")] = 64,
    length_cv: Annotated[float, typer.Option(help="Of lognormal lengths.")] = 1.0,
    length_scale: Annotated[float, typer.Option(help="Multiplies all lengths.")] = 1.0,
    shared_prefix_len: Annotated[
        int, typer.Option(min=0, help="Tokens with which every prompt begins alike.")
    ] = 0,
    num_prefixes: Annotated[int, typer.Option(min=1, help="Different ones of them.")] = 1,
    max_len: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of prompt and output.")
    ] = None,
    api: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    text: Annotated[bool, typer.Option("--text", help="Send text, not token ids.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer for text (a preset's: its own).")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(min=1, help="Token ids lie below it.")] = None,
    extensions: Annotated[
        bool, typer.Option(help="Ask for ignore_eos and return_token_ids; strict servers refuse.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Draws lengths, prompts and arrivals.")] = 0,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="Limit on TTFT.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Limit on TPOT.")] = None,
    goodput_ratio: Annotated[float, typer.Option(help="Share that must meet the SLO.")] = 0.9,
    timeout_s: Annotated[float, typer.Option(help="Most seconds for a request.")] = 600.0,
    save_trace: Annotated[
        Path | None, typer.Option(help="Event log (.jsonl, .jsonl.gz); of rates: one file each.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Load a server: TTFT, TPOT, ITL, throughput and goodput, and whether the client was honest.

    An API key is taken from the environment (OPENAI_API_KEY). Exit code 1: a run is void (late
    sends or a busy client), or every request failed. Ctrl-C and SIGTERM keep what there is.
    """
    from inferlab.cli.loadkeep import Kept, ended_by_sigterm
    from inferlab.cli.metrics import slo_in_ms
    from inferlab.client.target import Target
    from inferlab.load.plan import LoadPlan

    many = sweep or max_rate or bool(rates)
    chosen = [name for name, is_set in (
        ("--rate", rate is not None and not many), ("--concurrency", concurrency is not None),
        ("--sweep", sweep or bool(rates)), ("--max-rate", max_rate)) if is_set]  # fmt: skip
    if len(chosen) != 1:
        said = f"not {' and '.join(chosen)}" if chosen else "none is given"
        raise UserError(f"choose one of --rate, --concurrency, --sweep and --max-rate: {said}")
    slo = slo_in_ms(slo_ttft_ms, slo_tpot_ms, None)
    if max_rate and slo is None:
        raise UserError("--max-rate needs an SLO: --slo-ttft-ms, --slo-tpot-ms or both")
    listed = _rates(rates)
    target = Target(
        url, model, api, timeout_s, extensions, api_key=os.environ.get("OPENAI_API_KEY")
    )
    plan = LoadPlan(
        model=model,
        rate_req_per_s=None if concurrency is not None else 1.0 if rate is None else rate,
        concurrency=concurrency,
        num_requests=num_requests or (None if duration_s else 100),
        duration_s=duration_s,
        arrivals=arrivals,
        arrival_cv=cv,
        lengths=lengths,
        prompt_len=prompt_len,
        output_len=output_len,
        length_cv=length_cv,
        length_scale=length_scale,
        shared_prefix_len=shared_prefix_len,
        num_prefixes=num_prefixes,
        max_len=max_len,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        as_text=text or api == "chat",
        seed=seed,
    )
    for one in listed:
        plan.at_rate(one, seed)  # what cannot be sent is refused before anything is
    if save_trace is not None:
        from inferlab.journal import writable_folder

        writable_folder(save_trace.parent, "the trace", "--save-trace")
    kept = Kept(save_trace, many)
    how = _How(rate, listed, max_rate, many, goodput_ratio, precision, warmup)
    with ended_by_sigterm():
        result, ended = _measure(target, plan, slo, how, kept)
        for path in kept.saved:
            print_note(f"trace: {path}")
        _print(kept.points, result, many, json)
    if ended is not None:
        raise ended
    _judge(kept.points, result)


@dataclass(frozen=True, slots=True)
class _How:
    """One run, the rates of a sweep (listed or doubled from `first_rate`), or a search."""

    first_rate: float | None
    listed: tuple[float, ...]
    max_rate: bool
    many: bool
    goodput_ratio: float
    precision: float
    warmup: int


def _measure(
    target: "Target", plan: "LoadPlan", slo: "SLO | None", how: _How, kept: "Kept"
) -> tuple[dict[str, Any], BaseException | None]:
    """Fill `kept`: (what a search found, what ended it early); raises where there is no point."""
    from inferlab.cli.progress import LiveProgress
    from inferlab.load.plan import CannotPlan
    from inferlab.load.point import run_point, warm_up
    from inferlab.load.search import ended_search, find_max_rate, sweep

    found, refused = None, []
    ended: BaseException | None = None
    with LiveProgress() as progress:

        def measure(rate_req_per_s: float, offset: int) -> "LoadPoint":
            progress.title = f"{rate_req_per_s:.3g} req/s, "
            try:
                at_rate = plan.at_rate(rate_req_per_s, plan.seed + offset)
                point = run_point(target, at_rate, slo, progress)
            except CannotPlan as error:
                refused.append(f"{rate_req_per_s:.3g} req/s was not tried: {error}")
                raise
            return kept.add(point)

        try:
            alone_s = warm_up(target, plan, max(how.warmup, 1) if how.many else how.warmup)
            alone_req_per_s = 1 / max(alone_s or 1.0, 1e-3)
            start = START_SHARE * alone_req_per_s if how.first_rate is None else how.first_rate
            if how.max_rate:
                found = find_max_rate(
                    measure, start, how.goodput_ratio, how.precision,
                    lowest_req_per_s=LOWEST_SHARE * alone_req_per_s,
                )  # fmt: skip
            elif how.many:
                sweep(measure, start, how.listed)
            else:
                kept.add(run_point(target, plan, slo, progress))
        except (KeyboardInterrupt, UserError) as error:
            if not kept.points:
                raise
            ended = error
    for line in refused:
        print_note(line)
    if how.max_rate and found is None:
        why = "interrupted" if isinstance(ended, KeyboardInterrupt) else f"with an error: {ended}"
        found = ended_search(kept.points, how.goodput_ratio, why)
    if found is None:
        return {}, ended
    result = {
        "max_rate_req_per_s": found.passing_req_per_s,
        "failing_rate_req_per_s": found.failing_req_per_s,
        "goodput_ratio": how.goodput_ratio,
        "complete": found.complete,
        "why": found.why,
    }
    return result, ended


def _print(points: "list[LoadPoint]", result: dict[str, Any], many: bool, json: bool) -> None:
    from inferlab.cli.loadreport import print_points
    from inferlab.load.report import point_report

    if json:
        reports = [point_report(point) for point in points]
        print_json({**result, "points": reports} if many else reports[0])
    else:
        print_points(points, result)


def _judge(points: "list[LoadPoint]", result: dict[str, Any]) -> None:
    """Raise what makes the exit code other than 0."""
    from inferlab.load.search import void_points

    if points[-1].interrupted:
        raise KeyboardInterrupt
    if all(point.all_failed for point in points):
        raise MeasurementError(f"every request failed; the first: {points[0].first_error()}")
    void = void_points(points)
    if void:
        at = f" at {void[0].plan.rate_req_per_s:.3g} req/s" if len(points) > 1 else ""
        raise MeasurementError(f"the run{at} is void: {void[0].run.verdict.reasons[0]}")
    if result and result["max_rate_req_per_s"] is None:
        raise MeasurementError(
            "no rate met the SLO: take a wider one, or a lower --rate to begin with"
        )


def _rates(listed: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in listed.split(",") if word.strip())
    except ValueError:
        raise UserError(f"--rates needs numbers with commas between, not {listed!r}") from None
