"""Command that answers requests over HTTP: serve."""

from pathlib import Path
from typing import Annotated

import typer

from diffuserec.errors import ConfigError


def serve(
    run: Annotated[Path, typer.Argument(help="A finished run, or a saved model.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="A further model as NAME=PATH, to ask beside; may be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(help="File of API keys, lines of NAME KEY; else of DIFFUSEREC_KEYS."),
    ] = None,
    jobs: Annotated[
        Path | None, typer.Option(help="Directory of batch jobs, which outlive restarts.")
    ] = None,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Let assistants ask at /mcp. Needs diffuserec[mcp].")
    ] = False,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Find lists by an index of the items, for large catalogs. Needs diffuserec[ann].",
        ),
    ] = False,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="A limit as NAME=VALUE, such as max_k=50; may be repeated."),
    ] = None,
) -> None:
    """Answers requests over HTTP, and shows a page at /. Needs diffuserec[serve].

    Only this machine can ask, unless there are keys: with them, --host 0.0.0.0 opens it. SIGHUP
    loads all models again without a lost request; SIGTERM ends it when all are answered.

    Limits: max_k, max_history, max_batch, max_draws, max_body, max_job_body, max_jobs,
    max_waiting, at_once, rate (requests a second and caller) and timeout (seconds). The page
    docs/service.md has requests, answers, metrics and how to stand behind a proxy.

    Examples:

        diffuserec serve runs/sasrec
        diffuserec serve runs/sasrec --model diffrec=runs/diffrec --port 8080
        diffuserec serve runs/sasrec --host 0.0.0.0 --keys keys.txt --limit rate=50
        diffuserec serve runs/sasrec --jobs jobs
        curl -s localhost:8000/v1/recommend -H "Content-Type: application/json" \\
          -d '{"history": ["B0012"], "k": 5}'
    """
    from diffuserec.cli import options

    try:
        from diffuserec.serving.served import name_of
        from diffuserec.serving.server import serve as run_server
        from diffuserec.serving.settings import service_settings
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the service needs {error.name}: pip install 'diffuserec[serve]'"
        ) from error

    paths = {name_of(run): run}
    for pair in model or []:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--model is written NAME=PATH, got {pair!r}")
        if name in paths:
            raise ConfigError(f"two models are called {name}: give another NAME=PATH")
        paths[name] = Path(path)
    settings = service_settings(
        options.parse_pairs(limit),
        keys=keys,
        jobs=jobs,
        assistants=mcp,
        approximate=approximate,
        host=host,
    )
    run_server(paths, settings, host, port)
