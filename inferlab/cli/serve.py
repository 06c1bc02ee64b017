"""`inferlab serve`: our engine behind an OpenAI-compatible streaming API."""

import sys
from typing import Annotated

import typer

from inferlab.cli.output import print_note


def serve(
    model: Annotated[str, typer.Option(help="A preset, such as smollm2-135m.")] = "smollm2-135m",
    served_model_name: Annotated[
        str | None, typer.Option(help="What requests call it, where that is not the preset.")
    ] = None,
    weights: Annotated[str, typer.Option(help="real, or random: the shape only.")] = "real",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the profile's.")] = "auto",
    host: Annotated[
        str, typer.Option(help="Where to listen; other than the loopback, strangers may connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests in the batch.")] = 8,
    cache_tokens: Annotated[
        int | None, typer.Option(min=1, help="Positions that the key/value store holds.")
    ] = None,
    block_size: Annotated[int, typer.Option(min=1, help="Positions in a block of it.")] = 16,
    chunk_size: Annotated[
        int | None, typer.Option(min=1, help="Most prompt tokens beside a decode step.")
    ] = None,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens in a step.")
    ] = 2048,
    prefix_cache: Annotated[
        bool, typer.Option("--prefix-cache", help="Keep prompts for others that begin alike.")
    ] = False,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; more get 429.")
    ] = 1024,
    policy: Annotated[str, typer.Option(help="continuous, or static batches.")] = "continuous",
    step: Annotated[
        str, typer.Option(help="How decode steps are taken: eager, kernels.")
    ] = "eager",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the engine; default: every core.")
    ] = None,
) -> None:
    """Serve a model over HTTP: chat and completions, streamed or whole, health, Prometheus metrics.

    Prints one line when it is ready. The first Ctrl-C or SIGTERM lets open answers finish, a second
    one ends them.
    """
    _check_packages()
    from inferlab.server.run import ServeOptions
    from inferlab.server.run import serve as serve_model

    if device == "auto":
        from inferlab.profiles import current_profile

        device = current_profile().device
    options = ServeOptions(
        model=model, weights=weights, dtype=dtype, device=device, host=host, port=port,
        max_num_seqs=max_num_seqs, cache_tokens=cache_tokens, block_size=block_size,
        chunk_size=chunk_size, max_num_batched_tokens=max_num_batched_tokens,
        prefix_cache=prefix_cache, max_waiting=max_waiting, policy=policy, step=step,
        threads=threads, served_model_name=served_model_name,
    )  # fmt: skip
    serve_model(options, ready=_ready, warn=print_note)


def _check_packages() -> None:
    from importlib.util import find_spec

    from inferlab.errors import UserError

    for name in ("fastapi", "uvicorn", "httptools", "prometheus_client"):
        if find_spec(name) is None:
            raise UserError(
                f"serving needs {name.replace('_', '-')}: `pip install -r requirements.txt`"
            )


def _ready(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # whoever started us may wait for it
