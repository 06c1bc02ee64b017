"""The `inferlab` command: its verbs, and the one place where a failure becomes an exit code.

0 success · 1 the work failed · 2 wrong input or usage · 130 interrupted. An error is one line on
stderr; with --json too, and nothing is then on stdout.
"""

import sys
from typing import Annotated, Any

import typer
import typer.core

import inferlab
from inferlab.cli import doctor, measure, metrics, report, run, status
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
            raise Interrupted("interrupted; what was finished is kept") from None


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
    try:
        code = app(arguments, prog_name="inferlab", standalone_mode=False)
    except UserError as error:
        print_error(str(error))
        code = error.exit_code
    except typer.Abort:
        print_error("stopped at a question")
        code = 1
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error: typer's own boxes are not one line
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "inferlab"
            print_error(f"{error.format_message()} (see `{command} --help`)")
            code = 2
        elif "--debug" in arguments:
            raise
        else:
            hint = "run again as `inferlab --debug ...` for the traceback"
            print_error(f"unexpected {type(error).__name__}: {str(error)[:300]} ({hint})")
            code = 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
