"""The service as an ASGI application: recommendations, search, batch jobs and a page over HTTP.

``application`` builds it from the directories of models; any ASGI server runs it, ``diffuserec
serve`` runs it with uvicorn. In Ray Serve, a deployment's class is decorated with
``ray.serve.ingress(builder)``, where the builder calls ``application``.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from diffuserec import __version__
from diffuserec.errors import ConfigError, DataError
from diffuserec.serving import wire
from diffuserec.serving.answers import Asked
from diffuserec.serving.batching import OverloadError
from diffuserec.serving.guard import JSON, LINES, PARQUET, Guard, RefusedError, Visit, error_line
from diffuserec.serving.jobs import Jobs
from diffuserec.serving.served import name_of
from diffuserec.serving.service import Service
from diffuserec.serving.settings import ServiceSettings, service_settings

_PAGE_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
}


def application(
    paths: Mapping[str, Path | str] | Path | str, settings: ServiceSettings | None = None
) -> FastAPI:
    """A service of these models, as an ASGI application.

    Its ``state.service`` is the :class:`Service` behind it.

    Args:
        paths: the directory of a run or saved recommender; or of several, by the name that
            requests call each by, of which the first answers where none is named.
        settings: limits, keys and the like; by default those of :func:`service_settings`, which
            answers this machine alone unless the environment has keys.

    Raises:
        DataError: a model is missing or damaged.
        ConfigError: a directory holds no recommender, or its method is not known here.
    """
    if isinstance(paths, Path | str):
        paths = {name_of(paths): paths}
    settings = settings or service_settings({})
    service = Service({name: Path(path) for name, path in paths.items()}, settings)
    assistant = None
    if settings.assistants:
        from diffuserec.serving.assistant import assistant_server, routes_of

        assistant = assistant_server(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(service.running())
            if assistant is not None:
                await stack.enter_async_context(assistant.session_manager.run())
            yield

    app = FastAPI(
        title="diffuserec",
        version=__version__,
        description="Recommendations of the next item. Errors are one line of JSON.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        responses={"4XX": {"model": wire.ErrorAnswer}, "5XX": {"model": wire.ErrorAnswer}},
        separate_input_output_schemas=False,
    )
    app.state.service = service
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    _answer_errors(app)
    _add_watching(app, service)
    _add_recommending(app, service)
    _add_administration(app, service)
    if settings.jobs is not None:
        _add_jobs(app, service)
    if assistant is not None:
        app.router.routes += routes_of(assistant, settings.limits.max_body)
    return app


def _json(content: Any, status: int = 200) -> Response:
    """An answer that is not checked again on its way out."""
    return Response(to_json(content, inf_nan_mode="null"), status, media_type=JSON)


def _visit(request: Request) -> Visit:
    found: Visit = request.scope["state"]["visit"]
    return found


def _answer_errors(app: FastAPI) -> None:
    """Makes every error of a request one line of JSON."""

    def line(request: Request, status: int, message: str, **headers: str) -> Response:
        body = error_line(status, message, _visit(request).request_id)
        return Response(body, status, headers=headers, media_type=JSON)

    def refused(request: Request, error: Any) -> Response:
        if error.reason:
            app.state.service.metrics.refused.labels(error.reason).inc()
        retry = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        return line(request, error.status, error.message, **retry)

    def overloaded(request: Request, error: Any) -> Response:
        app.state.service.metrics.refused.labels("overload").inc()
        message = "too many requests wait: try again later"
        return line(request, 503, message, **{"retry-after": "1"})

    def malformed(request: Request, error: Any) -> Response:
        return line(request, 422, wire.problem_of(error.errors()))

    def wrong(request: Request, error: Any) -> Response:
        return line(request, 422, " ".join(str(error).split()))

    def unrouted(request: Request, error: Any) -> Response:
        messages = {404: "there is nothing at this path", 405: "this path takes another method"}
        message = messages.get(error.status_code, "the body cannot be read as JSON")
        return line(request, error.status_code, message, **(error.headers or {}))

    for kind, handler in (
        (RefusedError, refused),
        (OverloadError, overloaded),
        (RequestValidationError, malformed),
        (DataError, wrong),
        (ConfigError, wrong),
        (HTTPException, unrouted),
    ):
        app.add_exception_handler(kind, handler)


def _add_watching(app: FastAPI, service: Service) -> None:
    """The page, health and metrics."""
    page = {
        name: files("diffuserec.serving").joinpath("page", name).read_bytes()
        for name in _PAGE_FILES
    }

    def page_file(name: str) -> Response:
        return Response(page[name], media_type=_PAGE_FILES[name], headers=_PAGE_HEADERS)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page_file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in page:
            raise HTTPException(404)
        return page_file(name)

    @app.get("/healthz", summary="Whether the process answers at all")
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.get("/readyz", summary="Whether requests can be answered, and by which models")
    async def readyz() -> Response:
        models = {served.name: served.sha256 for served in service.models.all()}
        return _json({"status": "ready", "models": models})

    @app.get("/metrics", summary="Counters and times, in Prometheus' format")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_recommending(app: FastAPI, service: Service) -> None:
    """Lists, search, augmentation and model cards."""

    @app.get("/v1/models", summary="Cards of all models")
    async def models() -> Response:
        return _json({"models": [served.card() for served in service.models.all()]})

    @app.get("/v1/models/{name}", summary="The card of a model")
    async def model(name: str) -> Response:
        return _json(service.model(name).card())

    @app.post(
        "/v1/recommend",
        summary="The next items of one history",
        response_model=wire.RecommendAnswer,
    )
    async def recommend(request: Request, asked: wire.RecommendRequest) -> Response:
        served, lists = await service.lists(
            asked.model, asked.options(), [Asked(asked.history, asked.times)], _visit(request)
        )
        return _json({"model": served.name, "sha256": served.sha256, **lists[0]})

    @app.post(
        "/v1/recommend/batch",
        summary="The next items of several histories",
        response_model=wire.BatchAnswer,
    )
    async def batch(request: Request, asked: wire.BatchRequest) -> Response:
        served, lists = await service.lists(
            asked.model, asked.options(), _asked(asked), _visit(request)
        )
        return _json({"model": served.name, "sha256": served.sha256, "lists": lists})

    @app.post(
        "/v1/next-items",
        summary="The items that come after one item alone",
        response_model=wire.RecommendAnswer,
    )
    async def next_items(request: Request, asked: wire.NextItemsRequest) -> Response:
        options = wire.Options(k=asked.k, on_unknown="refuse")
        served, lists = await service.lists(
            asked.model, options, [Asked([asked.item])], _visit(request)
        )
        return _json({"model": served.name, "sha256": served.sha256, **lists[0]})

    @app.post(
        "/v1/items/search", summary="Items by name or raw id", response_model=wire.SearchAnswer
    )
    async def search(asked: wire.SearchRequest) -> Response:
        served, found = await asyncio.to_thread(
            service.search, asked.model, asked.query, asked.limit
        )
        return _json({"model": served.name, "items": found})

    @app.post(
        "/v1/augment",
        summary="What the augmenter of a model writes into a history",
        response_model=wire.AugmentAnswer,
    )
    async def augment(asked: wire.AugmentRequest) -> Response:
        return _json(await service.augment(asked))


def _asked(request: wire.BatchRequest) -> list[Asked]:
    if request.times is None:
        return [Asked(history) for history in request.histories]
    return [Asked(*pair) for pair in zip(request.histories, request.times, strict=True)]


def _add_administration(app: FastAPI, service: Service) -> None:
    """What needs the key of an administrator."""

    @app.post("/v1/admin/reload", summary="Load a model's directory again; needs an admin's key")
    async def reload(request: Request, asked: wire.ReloadRequest) -> Response:
        if not _visit(request).caller.is_admin:
            raise RefusedError(403, "this needs the key of an admin", "admin")
        before = service.model(asked.model)
        try:
            served = await service.reload(before.name)
        except (DataError, ConfigError) as error:
            raise RefusedError(
                409, "the model cannot be loaded, and the old one stays: the log says why"
            ) from error
        return _json({"model": served.name, "before": before.sha256, "sha256": served.sha256})


def _add_jobs(app: FastAPI, service: Service) -> None:
    """Batch jobs."""

    def jobs() -> Jobs:
        assert service.jobs is not None
        return service.jobs

    def body_of(model: type[BaseModel]) -> dict[str, Any]:
        content: dict[str, Any] = {
            LINES: {"schema": model.model_json_schema(ref_template="{model}")},
            PARQUET: {"schema": {"type": "string", "format": "binary"}},
        }
        return {"requestBody": {"required": True, "content": content}}

    @app.post(
        "/v1/jobs",
        status_code=202,
        summary="Lists of many histories, sent as JSON lines or Parquet; kept across restarts",
        response_model=wire.JobStatus,
        openapi_extra=body_of(wire.JobLine),
    )
    async def accept(request: Request) -> Response:
        model, options = _of_query(request)
        served = service.model(model)
        service.check_options(options)
        await service.queue.lists(
            served, options, [Asked([])]
        )  # refuses what no list could be made by
        visit = _visit(request)
        is_parquet = request.headers["content-type"].partition(";")[0].strip().lower() == PARQUET
        job = await jobs().accept(
            request.stream(), is_parquet, visit.caller.name, options, served.name
        )
        visit.facts |= {"job": job.path.name, "histories": job.n, "model": served.name}
        return _json(jobs().status(job), 202)

    @app.get("/v1/jobs/{job_id}", summary="What became of a job", response_model=wire.JobStatus)
    async def status(request: Request, job_id: str) -> Response:
        found = jobs()
        return _json(found.status(found.find(job_id, _visit(request).caller.name)))

    @app.get("/v1/jobs/{job_id}/result", summary="The lists of a job that is done, as JSON lines")
    async def result(request: Request, job_id: str) -> Response:
        found = jobs()
        lines = found.result(found.find(job_id, _visit(request).caller.name))
        return StreamingResponse(lines, media_type=LINES)

    @app.delete("/v1/jobs/{job_id}", status_code=204, summary="Remove a job and its lists")
    async def delete(request: Request, job_id: str) -> Response:
        found = jobs()
        found.delete(found.find(job_id, _visit(request).caller.name))
        return Response(status_code=204)


def _of_query(request: Request) -> tuple[str | None, wire.Options]:
    """Model and options of a job, from the parameter ``options``: a JSON object.

    Raises:
        RefusedError: it is none, or there are other parameters.
    """
    if set(request.query_params) - {"model", "options"}:
        raise RefusedError(422, "a job takes the parameters model and options")
    try:
        options = wire.Options.model_validate_json(request.query_params.get("options", "{}"))
    except ValidationError as error:
        raise RefusedError(422, f"options: {wire.problem_of(error.errors())}") from error
    return request.query_params.get("model"), options
