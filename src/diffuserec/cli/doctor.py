"""Command that looks at the installation: doctor."""

from dataclasses import asdict

import typer

from diffuserec.cli import options, show


def doctor(as_json: options.AsJson = False) -> None:
    """Shows what is installed, and what is wrong with it; status 1 if anything is.

    Versions, extras, devices, memory, disk, threads, and the parts that other packages add. Give
    its output with a question or a report of a fault; it names no data.

    Examples:

        diffuserec doctor
        diffuserec doctor --json
    """
    from diffuserec.health import examine

    found = examine()
    wrong = [finding for finding in found if finding.advice]
    if as_json:
        show.print_json({"findings": [asdict(f) for f in found], "healthy": not wrong})
    else:
        show.facts("diffuserec doctor", {finding.name: finding.value for finding in found})
        for finding in wrong:
            show.print_line(f"{finding.name}: {finding.advice}")
        if not wrong:
            show.print_line("nothing is wrong")
    if wrong:
        raise typer.Exit(1)
