"""/v1/videos: jobs that are accepted at once, made in their turn, looked at, and fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response

from fewstep.server.body import FORM, JSON, Body, described, read
from fewstep.server.config import KeyEntry, ModelEntry
from fewstep.server.errors import ApiError, invalid, not_found
from fewstep.server.facts import Facts, frames_for
from fewstep.server.jobs import Job, QueueFull
from fewstep.server.media import TYPES, encoded, first_frame, from_data_url, picture_of
from fewstep.server.schema import Video, VideoDeleted, VideoFailure, VideoList, VideoRequest
from fewstep.server.service import Service, new_id, seed_of, size_of, work_of

FILES = ("input_reference",)
POLL_AFTER = {"openai-poll-after-ms": "500"}  # for the official client, which else asks once a second


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    enter, admitted = Depends(service.door.enter), Depends(service.door.admit)
    accepting = asyncio.Lock()  # between the check of a key's limit and the job that counts towards it

    def own(id: str, caller: KeyEntry) -> Job:
        job = service.jobs.get(id)
        if job is None or job.owner != caller.name or _over(job, service):
            raise not_found("video", id)
        return job

    @router.post("/v1/videos", openapi_extra=described(VideoRequest, (JSON, FORM), FILES))
    async def create(request: Request, caller: KeyEntry = admitted) -> Video:
        body = await read(request, VideoRequest, FILES)
        job = await run_in_threadpool(_asked, service, body, caller)
        async with accepting:
            service.check_waiting(caller)
            made = await run_in_threadpool(_accepted, service, job)
        return as_video(made)

    @router.get("/v1/videos")
    def listed(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        caller: KeyEntry = enter,
    ) -> VideoList:
        last = own(after, caller) if after else None
        jobs = service.jobs.page(caller.name, after=last, limit=limit + 1, newest_first=order == "desc")
        page = [as_video(job) for job in jobs[:limit] if not _over(job, service)]
        ends = (page[0].id, page[-1].id) if page else (None, None)
        return VideoList(data=page, first_id=ends[0], last_id=ends[1], has_more=len(jobs) > limit)

    @router.get("/v1/videos/{id}")
    def retrieve(id: str, response: Response, caller: KeyEntry = enter) -> Video:
        response.headers.update(POLL_AFTER)
        return as_video(own(id, caller))

    @router.delete("/v1/videos/{id}")
    def delete(id: str, caller: KeyEntry = enter) -> VideoDeleted:
        service.results.delete(own(id, caller).id)
        return VideoDeleted(id=id)

    @router.get("/v1/videos/{id}/content", response_class=FileResponse)
    def content(
        id: str, variant: Literal["video", "thumbnail", "spritesheet"] = "video", caller: KeyEntry = enter
    ) -> Response:
        job = own(id, caller)
        if variant == "spritesheet":
            raise invalid("The variants of a video here are 'video' and 'thumbnail'.", "variant")
        path = service.results.path(job.id)
        if path is None:
            raise ApiError(404, f"The video {id!r} has no content: it is {job.status}.", "not_found")
        if variant == "thumbnail":
            return Response(first_frame(path), media_type=TYPES["webp"])
        return FileResponse(path, media_type=TYPES["mp4"])

    @router.post("/v1/videos/{id}/remix")
    def remix(id: str, caller: KeyEntry = enter) -> JSONResponse:
        raise invalid(f"The model {own(id, caller).model!r} can't remix videos.", code="unsupported_by_model")

    return router


def _asked(service: Service, body: Body[VideoRequest], caller: KeyEntry) -> dict[str, Any]:
    """A request as the job that it asks for.

    Raises:
        ApiError: 400 or 404, what it asks for can't be made.
    """
    asked = body.asked
    entry, facts = service.model(asked.model, "video")
    size = size_of(facts, asked.size)
    if size is None:
        raise invalid(f"{entry.name} has no size of its own: name one.", "size", "missing_required_parameter")
    seconds, frames = length(entry, facts, asked.seconds)
    work = replace(work_of(entry, facts, size, asked.fewstep), frames=frames)
    if work.strength is not None:
        raise invalid("A video has no strength: leave it out.", "fewstep.strength")
    return {
        "id": new_id("video"),
        "owner": caller.name,
        "model": entry.name,
        "prompt": asked.prompt,
        "size": f"{size[0]}x{size[1]}",
        "seconds": seconds,
        "work": {"call": asdict(work), "seed": seed_of(asked.fewstep)},
        "reference": _reference(body, entry, facts, size),
    }


def _accepted(service: Service, job: Mapping[str, Any]) -> Job:
    """The job in the queue.

    Raises:
        ApiError: 429, the queue is full.
    """
    try:
        made = service.jobs.add(job, now=service.results.clock(), most=service.config.limits.queue)
    except QueueFull as full:
        raise service.worker.full("video", full.waiting) from None
    service.worker.awake()
    return made


def as_video(job: Job) -> Video:
    """A job as OpenAI's video object."""
    failed = VideoFailure(code=job.error_code, message=job.error_message or "") if job.error_code else None
    return Video(
        id=job.id,
        model=job.model,
        status=job.status,
        progress=job.progress,
        created_at=int(job.created_at),
        completed_at=int(job.ended_at) if job.ended_at and job.status == "completed" else None,
        expires_at=None if job.expires_at is None else int(job.expires_at),
        prompt=job.prompt,
        size=job.size,
        seconds=job.seconds,
        error=failed,
    )


def length(entry: ModelEntry, facts: Facts, seconds: float | None) -> tuple[str, int]:
    """The length of a video as OpenAI writes it, and its frames.

    Raises:
        ApiError: 400, longer than this server makes.
    """
    if seconds is None:
        assert facts.frames is not None
        return f"{facts.frames / entry.fps:.3g}", facts.frames
    if seconds > entry.max_seconds:
        raise invalid(f"A video of {entry.name} has at most {entry.max_seconds:g} seconds.", "seconds")
    return f"{seconds:g}", frames_for(seconds, entry.fps, facts.frame_step)


def _over(job: Job, service: Service) -> bool:
    """Whether a job's time is over, though it is not swept away yet."""
    if job.ended_at is None:
        return False
    return (job.expires_at or service.results.expires_at(job.ended_at)) <= service.results.clock()


def _reference(body: Body[VideoRequest], entry: ModelEntry, facts: Facts, size: tuple[int, int]) -> bytes | None:
    """The picture to start from, as a PNG of the video's size.

    Raises:
        ApiError: 400, wrong, missing, or the model can't start from one.
    """
    given, url = body.files.get("input_reference"), body.asked.input_reference
    if facts.starts_from != bool(given or url):
        does = "must start from a picture" if facts.starts_from else "can't start from a picture"
        raise invalid(f"The model {entry.name!r} {does}.", "input_reference", "unsupported_by_model")
    data = given if url is None else from_data_url(url.image_url, "input_reference")
    return encoded(picture_of(data, "input_reference").resize(size), "png", None) if data else None
