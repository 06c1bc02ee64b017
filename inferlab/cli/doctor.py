"""`inferlab doctor`: what can this machine run, and what should be mended?"""

from typing import Annotated

import typer

from inferlab.cli.output import one_line, print_json, stdout_console


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    probe: Annotated[
        bool, typer.Option(help="Measure bandwidth and FLOP/s too (a few seconds).")
    ] = True,
) -> None:
    """Packages, device, memory, measured ceilings, model: what this machine can run.

    Exits with 1 when a finding stops the labs.
    """
    from rich.markup import escape

    from inferlab.doctor import examine, to_dict

    findings = []
    console = stdout_console()
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for finding in examine(probe):
        findings.append(finding)
        if not json:
            mark = f"[{colours[finding.state]}]{finding.state:4}[/]"
            detail = escape(one_line(finding.detail))
            console.print(f"{mark}  {finding.name}: {detail}", highlight=False)
            if finding.fix and finding.state != "ok":
                console.print(f"      {escape(finding.fix)}", highlight=False)
    report = to_dict(findings)
    if json:
        print_json(report)
    if not report["ready"]:
        raise typer.Exit(1)
