"""The routes under /v1, in the shape that serving systems agreed on. An app's state holds `jobs`, `orders` and the
`guard`."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from vidjax.serving.bodies import FILE, MASK, idempotency_of, read_fields
from vidjax.serving.events import watch
from vidjax.serving.files import PREVIEW, TYPES, VARIANTS, VIDEO
from vidjax.serving.jobs import DONE, Job, Jobs
from vidjax.serving.keys import User
from vidjax.serving.refused import Refused
from vidjax.serving.requests import find_card, invalid
from vidjax.serving.uploads import read_aside
from vidjax.serving.views import view_card, view_job

router = APIRouter(prefix="/v1")


def find_user(request: Request) -> User:
    """Returns who sent a request. Raises Refused."""
    return request.app.state.guard(request)


def find_jobs(request: Request) -> Jobs:
    """Returns the jobs of the app."""
    return request.app.state.jobs


Who: TypeAlias = Annotated[User, Depends(find_user)]
All: TypeAlias = Annotated[Jobs, Depends(find_jobs)]


def find_job(user: Who, jobs: All, id: str) -> Job:
    """Returns the job of the path. Raises Refused if it is not the user's."""
    return jobs.get(user, id)


Found: TypeAlias = Annotated[Job, Depends(find_job)]


def show(jobs: Jobs, job: Job) -> dict[str, Any]:
    """Describes a job, with its place in the queue."""
    return view_job(job, jobs.position(job))


@router.post("/videos")
async def create(request: Request, user: Who, jobs: All) -> dict[str, Any]:
    """Lets a video wait."""
    fields, files = await read_fields(request, jobs.limits.upload)
    orders, key = request.app.state.orders, idempotency_of(request)
    aside = read_aside if files else run_in_threadpool
    return await aside(lambda: show(jobs, orders.create(user, fields, files.get(FILE), key)))


@router.post("/videos/edits")
async def edit(request: Request, user: Who, jobs: All) -> dict[str, Any]:
    """Lets a clip wait that a prompt changes, inside a mask if there is one."""
    fields, files = await read_fields(request, jobs.limits.upload, (FILE, MASK))
    orders, key = request.app.state.orders, idempotency_of(request)
    return await read_aside(lambda: show(jobs, orders.edit(user, fields, files.get(FILE), files.get(MASK), key)))


@router.post("/tunes")
async def tune(request: Request, user: Who, jobs: All) -> dict[str, Any]:
    """Lets a model wait that is tuned on a clip or a picture."""
    fields, files = await read_fields(request, jobs.limits.upload)
    orders, key = request.app.state.orders, idempotency_of(request)
    return await read_aside(lambda: show(jobs, orders.tune(user, fields, list(files.values()), key)))


@router.post("/videos/{id}/remix")
async def remix(request: Request, user: Who, jobs: All, id: str) -> dict[str, Any]:
    """Lets a video wait that starts from a finished one."""
    fields, files = await read_fields(request, jobs.limits.upload)
    if files:
        raise invalid("a remix starts from its video: leave input_reference out")
    orders, key = request.app.state.orders, idempotency_of(request)
    return await read_aside(lambda: show(jobs, orders.remix(user, id, fields, key)))


@router.get("/videos")
def list_videos(
    user: Who,
    jobs: All,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64)] = None,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """Lists the user's videos."""
    found, more = jobs.list(user, limit, after, order == "desc")
    ends = {"first_id": found[0].id if found else None, "last_id": found[-1].id if found else None}
    return {"object": "list", "data": [show(jobs, job) for job in found], "has_more": more, **ends}


@router.get("/videos/{id}")
def retrieve(jobs: All, job: Found) -> dict[str, Any]:
    """Describes a video."""
    return show(jobs, job)


@router.get("/videos/{id}/content")
def send(
    jobs: All, job: Found, variant: Literal["video", "thumbnail", "spritesheet", "preview"] = "video"
) -> FileResponse:
    """Sends a video or a picture of it; a preview is there while it is made. Raises Refused."""
    name = VARIANTS[variant]
    if name != PREVIEW and job.status != DONE:
        raise Refused(409, "not_completed", f"{job.id} is {job.status}: wait until it is completed")
    if not (file := jobs.folder(job.id) / name).is_file():
        raise Refused(404, "not_found", f"{job.id} has no {variant}")
    shown = f"{job.id}.mp4" if name == VIDEO else f"{job.id}-{name}"
    return FileResponse(file, media_type=TYPES[name], filename=shown, content_disposition_type="inline")


@router.get("/videos/{id}/events", response_class=EventSourceResponse)
async def send_events(user: Who, jobs: All, job: Found) -> AsyncIterator[ServerSentEvent]:
    """Sends `progress` whenever a video is a step further, and `preview` with a picture, until it is done."""
    async for event in watch(jobs, user, job):
        yield event


@router.post("/videos/{id}/cancel")
def cancel(user: Who, jobs: All, id: str) -> dict[str, Any]:
    """Stops a video that is not done, after the step that it is in."""
    return show(jobs, jobs.cancel(user, id))


@router.delete("/videos/{id}")
@router.delete("/tunes/{id}")
def remove(user: Who, jobs: All, job: Found) -> dict[str, Any]:
    """Removes a video or a tuned model; one that is not done is stopped."""
    jobs.remove(user, job.id)
    return {"id": job.id, "object": f"{job.kind}.deleted", "deleted": True}


@router.get("/models")
def list_models(request: Request, user: Who) -> dict[str, Any]:
    """Lists the models, also those that the user has tuned."""
    return {"object": "list", "data": [view_card(card) for card in request.app.state.orders.cards_of(user).values()]}


@router.get("/models/{name}")
def retrieve_model(request: Request, user: Who, name: str) -> dict[str, Any]:
    """Describes a model."""
    return view_card(find_card(name, request.app.state.orders.cards_of(user)))
