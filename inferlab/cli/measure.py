"""`inferlab measure`: predict and time one backend, batch size by batch size."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from inferlab.cli.output import print_note, stdout_console
from inferlab.errors import MeasurementError, UserError


def measure(
    backend: Annotated[
        str, typer.Option(help="hf, torch, engine, or several with commas: they take turns.")
    ] = "torch",
    model: Annotated[str, typer.Option(help="A preset, such as smollm2-135m.")] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    quant: Annotated[
        str, typer.Option(help="Weight formats with commas: int8, int4-g32, ..., or none.")
    ] = "none",
    step: Annotated[
        str, typer.Option(help="How decode steps are taken: eager, compile, graph, ... (commas).")
    ] = "eager",
    batch_size: Annotated[str, typer.Option(help="Sizes with commas: 1,4.")] = "1,4",
    prompt_len: Annotated[int, typer.Option(min=1, help="Prompt tokens a request.")] = 64,
    output_len: Annotated[int, typer.Option(min=1, help="Output tokens a request.")] = 64,
    weights: Annotated[str, typer.Option(help="real, or random: the shape only.")] = "real",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the profile's.")] = "auto",
    rounds: Annotated[int, typer.Option(min=3, help="Most rounds of samples.")] = 15,
    time_cap_s: Annotated[float, typer.Option(min=0.1, help="Most seconds of sampling.")] = 60.0,
    save_trace: Annotated[
        Path | None, typer.Option(help="Folder for one event log a case (inferlab.trace/1).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a case.")] = False,
) -> None:
    """Prediction, TTFT, TPOT, throughput and MBU of one model, by batch size.

    Sizes, backends, weight formats and steps take turns, so that drift falls on all of them. A size
    that does not fit in memory is reported with status `oom`; the exit code is then 1.
    """
    from inferlab.journal import writable_folder
    from inferlab.measure import Plan, measure_plan, save_traces
    from inferlab.timing import StopRule

    plan = Plan(
        backends=tuple(_words(backend, "--backend")),
        model=model,
        dtype=dtype,
        batch_sizes=tuple(_sizes(batch_size)),
        prompt_len=prompt_len,
        output_len=output_len,
        weights=weights,
        device=device,
        formats=tuple(None if word == "none" else word for word in _words(quant, "--quant")),
        steps=tuple(_words(step, "--step")),
    )
    stop = StopRule(min_rounds=3, max_rounds=rounds, time_cap_s=time_cap_s)
    if save_trace:
        writable_folder(save_trace, "traces", "--save-trace")  # before minutes are spent
    results = measure_plan(plan, stop, say=print_note, keep_traces=save_trace is not None)
    if json:
        for result in results:
            sys.stdout.write(jsonlib.dumps(result.to_dict(), allow_nan=False) + "\n")
        sys.stdout.flush()
    else:
        _print_table(results)
    if save_trace:
        save_traces(results, save_trace)  # after the results, which a full disk must not cost
    lost = [result.case for result in results if result.status != "ok"]
    if lost:
        raise MeasurementError(
            f"out of memory: {', '.join(lost)}; use a smaller --batch-size, shorter prompts or "
            "another --dtype"
        )


def _words(text: str, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or len(set(words)) != len(words):
        raise UserError(f"{option} needs different values with commas between, not {text!r}")
    return words


def _sizes(text: str) -> list[int]:
    sizes = []
    for word in _words(text, "--batch-size"):
        if not word.isascii() or not word.isdigit() or not 1 <= int(word) <= 65536:
            raise UserError(f"--batch-size needs whole numbers from 1 to 65536, not {word!r}")
        sizes.append(int(word))
    return sizes


def _variant(params) -> str:
    """Backend, and the weight format and the kind of step where there is a choice."""
    step = params["step"] if params["step"] != "eager" else None
    return " ".join(filter(None, (params["backend"], params["format"], step)))


def _print_table(results) -> None:
    from inferlab.cli.tables import headline_cells, headline_columns, headline_table

    first = results[0]
    title = f"{first.params['model']}, {first.params['dtype']}, {first.machine.title}"
    table = headline_table(title, "backend", "batch")
    for result in results:
        values = {metric: estimate.value for metric, estimate in result.measured.items()}
        absent = "undefined" if result.status == "ok" else result.status
        status = dict.fromkeys(headline_columns(), absent)
        cells = headline_cells(result.predicted, values, status)
        table.add_row(_variant(result.params), str(result.params["batch_size"]), *cells)
    console = stdout_console()
    console.print(table)
    rounds = min((e.n for r in results for e in r.measured.values()), default=0)
    console.print(f"medians of at least {rounds} rounds; --json has the 95 % intervals")
