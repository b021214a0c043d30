"""Tells a client step by step how far a video is, as server-sent events."""

import asyncio
import base64
from collections.abc import AsyncIterator

from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from vidjax.serving.files import PREVIEW, TYPES
from vidjax.serving.jobs import RUNNING, WAITING, Job, Jobs
from vidjax.serving.keys import User
from vidjax.serving.refused import Refused
from vidjax.serving.views import view_job

LOOK_SECONDS = 0.2  # between two looks at a job


async def watch(jobs: Jobs, user: User, job: Job) -> AsyncIterator[ServerSentEvent]:
    """Yields `progress` with the video whenever something about it is new, `preview` with a data URL of a picture, and
    ends when the video is done or gone."""
    told, shown = None, 0
    while True:
        view = await run_in_threadpool(lambda job=job: view_job(job, jobs.position(job)))
        if view != told:
            told = view
            yield ServerSentEvent(event="progress", data=view)
        if job.status == RUNNING and job.preview != shown:
            shown = job.preview
            if content := await run_in_threadpool(read_preview, jobs, job):
                url = f"data:{TYPES[PREVIEW]};base64,{base64.b64encode(content).decode()}"
                yield ServerSentEvent(event="preview", data={"id": job.id, "step": shown, "url": url})
        if job.status not in (WAITING, RUNNING):
            return
        await asyncio.sleep(LOOK_SECONDS)
        try:
            job = await run_in_threadpool(jobs.get, user, job.id)
        except Refused:
            return


def read_preview(jobs: Jobs, job: Job) -> bytes | None:
    """Reads the newest preview of a video, if it is still there."""
    try:
        return (jobs.folder(job.id) / PREVIEW).read_bytes()
    except OSError:
        return None
