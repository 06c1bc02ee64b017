"""The `inferlab` command: its verbs, and the one place where a failure becomes an exit code.

0 success · 1 the work failed · 2 wrong input or usage · 130 interrupted. An error is one line on
stderr; with --json too, and nothing is then on stdout.
"""

import contextlib
import errno
import os
import sys
from typing import Annotated, Any

import typer
import typer.core

import inferlab
from inferlab.cli import doctor, load, measure, metrics, report, run, serve, status
from inferlab.cli.output import print_error
from inferlab.errors import UserError


class Interrupted(UserError):
    """Ctrl-C reached a verb."""

    exit_code = 130


class _Group(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            kept = "; finished samples are kept: run the same command again to go on"
            on_run = ctx.invoked_subcommand == "run"
            raise Interrupted(f"interrupted{kept if on_run else ''}") from None


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# A verb is one line: a function with typer annotations, from a module that imports nothing heavy
# at its top.
app.command("doctor")(doctor.doctor)
app.command("measure")(measure.measure)
app.command("metrics")(metrics.metrics)
app.command("run")(run.run)
app.command("status")(status.status)
app.command("report")(report.report)
app.command("load")(load.load)
app.command("serve")(serve.serve)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(inferlab.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")
    ] = False,
) -> None:
    """Measure LLM inference: predict, measure, record, compare."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit the process."""
    arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if sys.stdout is None:
        print_error("standard output is closed: give the command somewhere to write its results")
        sys.exit(1)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a letter shows "?"
    try:
        code = app(arguments, prog_name="inferlab", standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        print_error(str(error))
        code = error.exit_code
    except typer.Abort:
        print_error("stopped at a question")
        code = 1
    except BrokenPipeError:  # `| head -1`: the reader has what it wanted
        _discard_stdout()
        code = 1
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error: typer's own boxes are not one line
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "inferlab"
            print_error(f"{error.format_message()} (see `{command} --help`)")
            code = 2
        elif "--debug" in arguments:
            raise
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            print_error("disk full while writing the results: free some space and run again")
            _discard_stdout()
            code = 1
        else:
            hint = "run again as `inferlab --debug ...` for the traceback"
            print_error(f"unexpected {type(error).__name__}: {str(error)[:300]} ({hint})")
            code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _discard_stdout() -> None:
    """Let nothing that is still buffered fail once more while the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
