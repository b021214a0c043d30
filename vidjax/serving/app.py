"""The HTTP server: puts the routes together, answers errors in one shape, counts and notes each request."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from importlib.util import find_spec
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from vidjax.errors import InputError
from vidjax.serving import routes
from vidjax.serving.bodies import FORM_BYTES
from vidjax.serving.guard import Guard, foreign, open_audit
from vidjax.serving.jobs import Jobs
from vidjax.serving.keys import Keys
from vidjax.serving.metrics import Metrics
from vidjax.serving.orders import Orders
from vidjax.serving.refused import Refused
from vidjax.serving.requests import Card, message_of

EXPIRE_SECONDS = 60.0
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")  # other words of strangers are counted as one
QUIET = {"/health", "/metrics"}  # not in the audit log
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def make_app(
    jobs: Jobs,
    keys: Keys,
    cards: Mapping[str, Card],
    *,
    require_keys: bool = True,
    shown: Mapping[str, str] | None = None,
) -> FastAPI:
    """Makes the server of these models. Without `require_keys` it serves one machine: whoever gives no key is the user
    `local`, and pages of other sites are refused. With Gradio, the extra `page`, it has a page, with the reports of the
    runs `shown`."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(expire(jobs))
        yield
        task.cancel()

    app = FastAPI(title="vidjax", lifespan=lifespan, max_body_size=jobs.limits.upload + FORM_BYTES)
    audit = open_audit(jobs.database.file.parent / "audit.log")
    app.state.jobs, app.state.orders = jobs, Orders(jobs, cards, audit)
    app.state.guard, metrics = Guard(keys, require_keys), Metrics(jobs)
    add_errors(app)
    add_notes(app, metrics, audit, require_keys)
    app.include_router(routes.router)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Says that the server answers."""
        return {"status": "ok", "models": list(cards)}

    @app.get("/metrics", dependencies=[Depends(routes.find_user)])
    def show_metrics() -> Response:
        """Shows counts and times as Prometheus reads them."""
        return Response(metrics.text(), media_type=metrics.media_type)

    if (found := find_spec("gradio")) and found.origin:  # a folder that an uninstall left has none
        from vidjax.serving import page

        page.mount(app, jobs, app.state.orders, app.state.guard, shown)
    return app


async def expire(jobs: Jobs) -> None:
    """Removes what has expired, again and again."""
    while True:
        try:
            await run_in_threadpool(jobs.expire)
        except Exception:
            logging.exception("expired videos can't be removed")
        await asyncio.sleep(EXPIRE_SECONDS)


def answer(refused: Refused) -> JSONResponse:
    """Makes the response to a refused request."""
    wait = refused.retry_after
    headers = {} if wait is None else {"retry-after": str(wait)}
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(refused.body, refused.status, headers)


def add_errors(app: FastAPI) -> None:
    """Answers every error as {"error": {code, message}}, without a word about the inside."""

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        return answer(error)

    @app.exception_handler(InputError)
    async def refuse_input(request: Request, error: InputError) -> Response:
        return answer(Refused(400, "invalid_request", str(error)))

    @app.exception_handler(RequestValidationError)
    async def refuse_values(request: Request, error: RequestValidationError) -> Response:
        return answer(Refused(400, "invalid_request", message_of(error.errors()[0])))

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> Response:
        return answer(Refused(error.status_code, CODES.get(error.status_code, "invalid_request"), str(error.detail)))

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return answer(Refused(500, "internal_error", "the server made a mistake; its log says which"))


def add_notes(app: FastAPI, metrics: Metrics, audit: logging.Logger, require_keys: bool) -> None:
    """Counts every request, notes it in the audit log, and refuses pages of other sites, also to stand in theirs."""

    @app.middleware("http")
    async def note(request: Request, call_next: Any) -> Response:
        began = time.perf_counter()
        refused = foreign(request, require_keys)
        status = 500
        try:
            response = answer(refused) if refused else await call_next(request)
            status = response.status_code
        finally:
            route = getattr(request.scope.get("route"), "path", "other")
            method = request.method if request.method in METHODS else "other"
            metrics.count(method, route, status, time.perf_counter() - began)
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["content-security-policy"] = "frame-ancestors 'self'"
        response.headers.setdefault("cache-control", "private, no-store")
        if route not in QUIET and not (request.method == "GET" and request.url.path.startswith("/page/")):
            user, client = getattr(request.state, "user", None), request.client and request.client.host
            who = dict(at=round(time.time(), 3), client=client, user=user and user.name)
            what = dict(method=request.method, path=request.url.path[:200], status=response.status_code)
            audit.info(json.dumps({**who, **what}))
        return response
